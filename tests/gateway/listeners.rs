//! Where it listens (CONFORMANCE A1), what it says about it, and the metrics endpoint.

use crate::harness::{Client, Scratch, cat, http, start};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

fn at(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

#[test]
fn start_up_lines_say_what_it_does() {
    let scratch = Scratch::new();
    let spool = scratch.join("deep/spool");
    let domains = scratch.join("domains");
    std::fs::write(&domains, "# ours\none.example\n.two.example\n\n").expect("a writable file");
    let options = [
        "--listen=127.0.0.1:0",
        "--listen=[::1]:0",
        "--shards=3",
        &format!("--accept-domains-file={}", domains.display()),
        "--next-hop=127.0.0.1:2526",
    ];
    let mut gateway = start(&spool, &options);
    let spool = spool.canonicalize().expect("it was made");
    assert_eq!(gateway.listening.len(), 2);
    let expected = [
        format!("gatepost {}: mx.test.example, 3 shards", env!("CARGO_PKG_VERSION")),
        format!("listening on {}", gateway.listening[0]),
        format!("listening on {}", gateway.listening[1]),
        // The order of domains is nobody's business.
        String::new(),
        format!("spooling to {} (0 messages, 0 octets are queued)", spool.display()),
        "delivering to 127.0.0.1:2526".to_owned(),
        format!("admin socket at {}", spool.join("admin.sock").display()),
        format!("metrics at http://{}/metrics", gateway.metrics),
    ];
    assert_eq!(gateway.started.len(), expected.len(), "{:?}", gateway.started);
    for (line, expected) in gateway.started.iter().zip(&expected).filter(|(_, expected)| !expected.is_empty()) {
        assert_eq!(line, expected);
    }
    let mut accepting: Vec<&str> =
        gateway.started[3].strip_prefix("accepting mail for ").expect("a line").split(", ").collect();
    accepting.sort_unstable();
    assert_eq!(accepting, [".two.example", "one.example", "test.example"]);
    assert!(gateway.listening.iter().all(|address| address.port() != 0));
    // Every address it names is served.
    for address in gateway.listening.clone() {
        let mut client = Client::connect(address, None);
        client.hello();
        client.quit();
    }
    assert!(gateway.is_running());
    gateway.stop();
}

#[test]
fn clients_are_shown_as_they_came() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--listen=[::]:0", "--listen=127.0.0.1:0", "--listen=[::1]:0"]);
    let [_, ipv4, ipv6] = gateway.listening[..] else { panic!("three listeners") };
    for (address, source, shown, received) in [
        (ipv4, None, "127.0.0.1", "[127.0.0.1]"),
        (ipv4, Some("127.6.7.8"), "127.6.7.8", "[127.6.7.8]"),
        (ipv6, None, "::1", "[IPv6:::1]"),
    ] {
        let mut client = Client::connect(address, source.map(|source| source.parse().expect("an address")));
        assert_eq!(client.hello(), format!("250-mx.test.example Hello [{shown}]"));
        let id = client.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
        let (field, _) = cat(&gateway.spool, &id);
        assert!(field.starts_with(&format!("Received: from client.test.example ({received})\r\n")), "{field}");
        client.quit();
    }
}

#[test]
fn one_dual_stack_listener_is_reached_by_both() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--listen=[::]:0", "--max-connections-per-source=2"]);
    let port = gateway.address().port();
    for (address, source, shown, received) in [
        // An IPv4-mapped address is that IPv4 address everywhere.
        (at(Ipv4Addr::LOCALHOST, port), Some("127.7.0.1"), "127.7.0.1", "[127.7.0.1]"),
        (at(Ipv4Addr::LOCALHOST, port), None, "127.0.0.1", "[127.0.0.1]"),
        (at(Ipv6Addr::LOCALHOST, port), None, "::1", "[IPv6:::1]"),
    ] {
        let mut client = Client::connect(address, source.map(|source| source.parse().expect("an address")));
        assert_eq!(client.hello(), format!("250-mx.test.example Hello [{shown}]"));
        let id = client.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
        assert!(cat(&gateway.spool, &id).0.contains(&format!("({received})")));
        client.quit();
    }
    // Mapped addresses are no common /64 of IPv6: each has its own count.
    let mut clients: Vec<Client> = (1..=6)
        .map(|number| {
            let source = IpAddr::from([127, 7, 1, number]);
            Client::connect(at(Ipv4Addr::LOCALHOST, port), Some(source))
        })
        .collect();
    for client in &mut clients {
        client.hello();
    }
}

#[test]
fn listeners_of_one_port_and_both_families() {
    let scratch = Scratch::new();
    // Below the ports that the kernel gives to clients, and free.
    let first = 10_000 + (std::process::id() % 20_000) as u16;
    let port = (first..first + 1000).find(|&port| TcpListener::bind(at(Ipv6Addr::UNSPECIFIED, port)).is_ok());
    let port = port.expect("a free port");
    let _gateway = start(
        &scratch.join("two"),
        &[
            &format!("--listen=127.0.0.1:{port}"),
            &format!("--listen=[::]:{port}"),
            &format!("--listen=127.0.0.2:{port}"),
        ],
    );
    for (address, shown) in [
        (at(Ipv4Addr::LOCALHOST, port), "127.0.0.1"),
        (at(Ipv6Addr::LOCALHOST, port), "::1"),
        (at([127, 0, 0, 2], port), "127.0.0.1"),
    ] {
        let mut client = Client::connect(
            address,
            Some(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }),
        );
        assert_eq!(client.hello(), format!("250-mx.test.example Hello [{shown}]"));
        client.quit();
    }
}

#[test]
fn nowhere() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--listen=none"]);
    assert!(gateway.listening.is_empty());
    assert!(gateway.started.contains(&"listening nowhere (--listen none)".to_owned()), "{:?}", gateway.started);
    assert_eq!(gateway.stop().last().map(String::as_str), Some("drained"));
}

#[test]
fn sessions_are_spread_over_all_shards() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--shards=3", "--max-connections-per-source=0"]);
    // The kernel chooses by a hash: a shard left out by this many does not listen.
    for _ in 0..150 {
        let mut client = gateway.session();
        client.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
        client.quit();
    }
    for shard in 0..3 {
        let used =
            gateway.files("segment-").iter().any(|path| path.starts_with(gateway.spool.join(format!("shard-{shard}"))));
        assert!(used, "shard {shard} has taken no message");
    }
    assert_eq!(crate::harness::list(&gateway.spool).len(), 150);
}

#[test]
fn the_metrics_endpoint_speaks_http() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[]);
    let mut client = gateway.session();
    client.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
    let scrape = gateway.scrape();
    assert!(scrape.to_ascii_lowercase().contains("content-type: text/plain; version=0.0.4"), "{scrape}");
    for (name, value) in [
        ("gatepost_connections", 1.0),
        ("gatepost_connections_accepted_total", 1.0),
        ("gatepost_messages_accepted_total", 1.0),
        ("gatepost_queue_messages", 1.0),
        ("gatepost_spool_commit_messages_sum", 1.0),
        ("gatepost_spool_commit_seconds_count", 1.0),
        ("gatepost_build_info", 1.0),
    ] {
        assert_eq!(gateway.metric(name), value, "{name}");
    }
    let request =
        |line: &str| http(gateway.metrics, &format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    assert!(request("GET /").starts_with("HTTP/1.1 404 "));
    assert!(request("POST /metrics").starts_with("HTTP/1.1 405 "));
    assert!(request("HEAD /metrics").starts_with("HTTP/1.1 200 "));
    // The queue is counted again after a restart.
    client.quit();
    let spool = gateway.spool.clone();
    gateway.stop();
    let gateway = start(&spool, &[]);
    assert_eq!(
        (gateway.metric("gatepost_queue_messages"), gateway.metric("gatepost_messages_accepted_total")),
        (1.0, 0.0)
    );
}
