//! Several bindings at once (A2): each has its role, its clients (A3) and its timers.

use crate::harness::{Client, D1, D2, NOT_CONFIGURED, Scratch, start};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

fn from(to: SocketAddr, source: &str) -> Client {
    Client::connect(to, Some(source.parse().expect("an address")))
}

#[test]
fn only_who_is_allowed() {
    let scratch = Scratch::new();
    let gateway = start(
        &scratch.join("spool"),
        &[
            "--listen=127.0.0.1:0,allow=127.9.1.0/24+127.9.2.1",
            "--listen=[::]:0,allow=127.9.3.0/24",
            "--listen=[::1]:0,role=relay,allow=2001:db8::/32",
            "--listen=127.0.0.1:0,role=relay,allow=127.9.3.0/24",
            "--listen=[::1]:0",
        ],
    );
    let [gateway_role, both, closed, relay, open] = gateway.listening[..] else { panic!("{:?}", gateway.listening) };
    let mapped = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), both.port());
    let both = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), both.port());
    for (to, source, allowed) in [
        (gateway_role, "127.9.1.0", true),
        (gateway_role, "127.9.1.255", true),
        (gateway_role, "127.9.2.1", true),
        (gateway_role, "127.9.2.2", false),
        (gateway_role, "127.9.3.1", false),
        (mapped, "127.9.3.1", true),
        (mapped, "127.9.1.1", false),
        (both, "::1", false),
        (closed, "::1", false),
        (relay, "127.9.3.1", true),
        (relay, "127.9.1.1", false),
        (open, "::1", true),
    ] {
        let mut client = from(to, source);
        if allowed {
            client.hello();
            client.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
            client.quit();
        } else {
            assert_eq!(client.reply(), NOT_CONFIGURED, "{to} {source}");
            client.assert_ended();
        }
    }
    assert_eq!(gateway.refusals("gatepost_connections_refused_total", "binding_not_configured"), 6.0);
    gateway.stop();
}

/// Sessions that wait on bindings whose role has no time limit, and on those whose role has: only
/// the latter end, and not too early.
fn assert_timed(options: &[&str], timed: &[usize], untimed: &[usize], last_words: &str) {
    const TIME: Duration = Duration::from_millis(700);
    let scratch = Scratch::new();
    let listen = [
        "--listen=127.0.0.1:0",
        "--listen=[::1]:0",
        "--listen=127.0.0.1:0,role=relay",
        "--listen=[::1]:0,role=relay,auth=optional",
    ];
    let gateway = start(&scratch.join("spool"), &[&listen[..], options].concat());
    let begun = Instant::now();
    let mut patient: Vec<Client> = untimed.iter().map(|&at| Client::connect(gateway.listening[at], None)).collect();
    patient.iter_mut().for_each(|client| _ = client.hello());
    for &at in timed {
        let mut client = Client::connect(gateway.listening[at], None);
        client.hello();
        assert_eq!(client.reply(), last_words, "{}", gateway.listening[at]);
        client.assert_ended();
    }
    assert!(begun.elapsed() >= TIME);
    for client in patient {
        client.quit();
    }
    gateway.stop();
}

const GATEWAYS: &[usize] = &[0, 1];
const RELAYS: &[usize] = &[2, 3];

#[test]
fn silence_is_timed_by_role() {
    assert_timed(&["--inactivity-timeout=700ms", "--relay-inactivity-timeout=1h"], GATEWAYS, RELAYS, D2);
    assert_timed(&["--inactivity-timeout=0", "--relay-inactivity-timeout=700ms"], RELAYS, GATEWAYS, D2);
}

#[test]
fn sessions_are_timed_by_role() {
    assert_timed(&["--connection-timeout=700ms", "--relay-connection-timeout=0"], GATEWAYS, RELAYS, D1);
    assert_timed(&["--connection-timeout=1h", "--relay-connection-timeout=700ms"], RELAYS, GATEWAYS, D1);
}
