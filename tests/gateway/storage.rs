//! Storage that fails, as far as a test can break it without being root: a shard's directory is away
//! when its first segment is to be made. Disks that fail are in `.ci/suites`.

use crate::harness::{BANNER, Client, Gateway, RESOURCES, Scratch, http, start, until};
use rustix::process::Signal;
use std::fs;

const SENDER: &str = "a@b.example";
const RECIPIENTS: [&str; 1] = ["rcpt@test.example"];
const HEADER: &str = "PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n";

/// Shows or hides the directory of every shard.
fn hide(gateway: &Gateway, hidden: bool) {
    for shard in 0..2 {
        let (here, away) = (gateway.spool.join(format!("shard-{shard}")), gateway.spool.join(format!("away-{shard}")));
        let (from, to) = if hidden { (&here, &away) } else { (&away, &here) };
        fs::rename(from, to).expect("a directory");
    }
}

fn readiness(gateway: &Gateway) -> String {
    let answer = http(gateway.metrics, "GET /readyz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    let (status, body) = (answer.lines().next().unwrap_or_default(), answer.lines().last().unwrap_or_default());
    format!("{status}: {body}")
}

/// Sends messages that are refused until each shard has had one. Whoever comes to one that has is refused at once.
fn find_out(gateway: &Gateway) {
    until("both shards have found out", || {
        let mut client = gateway.connect();
        if client.reply() == BANNER {
            client.ehlo();
            assert_eq!(client.message(SENDER, &RECIPIENTS, b"x\r\n"), RESOURCES);
            client.expect("NOOP", "250 2.0.0 OK");
            client.quit();
        }
        gateway.metric("gatepost_spool_unavailable") == 2.0
    });
}

#[test]
fn while_storage_fails_nobody_is_served_and_then_everybody() {
    let scratch = Scratch::new();
    let options = ["--listen=127.0.0.1:0", "--listen=127.0.0.1:0,proxy=127.0.0.1"];
    let mut gateway = start(&scratch.join("spool"), &options);
    let mut idle = gateway.session();
    let mut begun = gateway.session();
    for command in [format!("MAIL FROM:<{SENDER}>"), format!("RCPT TO:<{}>", RECIPIENTS[0])] {
        assert!(begun.command(&command).starts_with("250 "));
    }
    hide(&gateway, true);
    find_out(&gateway);
    // C6 and E8, behind a proxy too; what is open goes on.
    assert_eq!(idle.command(&format!("MAIL FROM:<{SENDER}>")), RESOURCES);
    begun.expect("NOOP", "250 2.0.0 OK");
    assert_eq!(begun.data(b"x\r\n"), RESOURCES);
    assert_eq!(begun.command(&format!("MAIL FROM:<{SENDER}>")), RESOURCES);
    let refused = gateway.refusals("gatepost_connections_refused_total", "resources");
    for _ in 0..8 {
        let mut client = gateway.connect();
        assert_eq!(client.reply(), RESOURCES);
        client.assert_ended();
        let mut client = Client::connect(gateway.listening[1], None);
        client.send(HEADER);
        assert_eq!(client.reply(), RESOURCES);
        client.assert_ended();
    }
    assert_eq!(gateway.refusals("gatepost_connections_refused_total", "resources"), refused + 16.0);
    assert_eq!(readiness(&gateway), "HTTP/1.1 503 Service Unavailable: not ready: storage fails");

    hide(&gateway, false);
    // Without any mail.
    until("storage is found to work", || gateway.metric("gatepost_spool_unavailable") == 0.0);
    assert_eq!(readiness(&gateway), "HTTP/1.1 200 OK: ready");
    for client in [&mut idle, &mut begun] {
        client.deliver(SENDER, &RECIPIENTS, b"x\r\n");
    }
    for _ in 0..8 {
        let mut client = gateway.session();
        client.deliver(SENDER, &RECIPIENTS, b"x\r\n");
        client.quit();
    }
    idle.quit();
    begun.quit();
    assert!(gateway.files("probe").is_empty(), "what was tried is removed");
    gateway.signal(Signal::TERM);
    let (code, said) = gateway.wait();
    assert_eq!(code, Some(0), "{said}");
    for shard in 0..2 {
        let directory = gateway.spool.join(format!("shard-{shard}")).display().to_string();
        for line in [
            format!(
                "cannot write to {directory}: No such file or directory (os error 2); mail is refused with 452 until storage works again"
            ),
            format!("{directory}: storage works again"),
        ] {
            assert_eq!(said.matches(&line).count(), 1, "{line}: {said}");
        }
    }
}
