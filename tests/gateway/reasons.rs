//! Every refusal of CONFORMANCE E, and of the timers D, under a reason of its own: in the metrics, in the
//! log, and as a hit of the limit that an operator sets.

use crate::harness::{Client, Gateway, Scratch, start, until};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::Path;

const REFUSED: &str = "gatepost_connections_refused_total";
const REFUSALS: &str = "gatepost_refusals_total";

/// A refusal, how to come by it, and where it is told.
struct Row {
    id: &'static str,
    options: &'static [&'static str],
    act: fn(&Gateway),
    counter: &'static str,
    reason: &'static str,
    limit: &'static str,
    reply: &'static str,
}

const HOPS: &[u8] = b"Received: from a by b; x\r\nReceived: from c by d; x\r\n\r\nbody\r\n";
const LOCAL_HOPS: &[u8] = b"Received: from a by here.example; x\r\nReceived: from c by here.example; x\r\n\r\nbody\r\n";

const TABLE: &[Row] = &[
    Row {
        id: "E1",
        options: &["--max-hops=1"],
        act: |gateway| message(gateway, HOPS),
        counter: REFUSALS,
        reason: "hop_count",
        limit: "max-hops",
        reply: "554 5.4.6 Hop count exceeded - possible mail loop",
    },
    Row {
        id: "E2",
        options: &["--max-local-hops=1", "--local-name=here.example"],
        act: |gateway| message(gateway, LOCAL_HOPS),
        counter: REFUSALS,
        reason: "local_hop_count",
        limit: "max-local-hops",
        reply: "554 5.4.6 Hop count exceeded - possible mail loop",
    },
    Row {
        id: "E3",
        options: &["--max-recipients=1"],
        act: |gateway| commands(gateway, &["MAIL FROM:<a@b.example>", RCPT, "RCPT TO:<second@test.example>"]),
        counter: REFUSALS,
        reason: "too_many_recipients",
        limit: "max-recipients",
        reply: "452 4.5.3 Too many recipients",
    },
    Row {
        id: "E4",
        options: &["--message-rate=1"],
        act: |gateway| commands(gateway, &["MAIL FROM:<a@b.example>", "RSET", "MAIL FROM:<a@b.example>"]),
        counter: REFUSALS,
        reason: "message_rate",
        limit: "message-rate",
        reply: "421 4.4.2 Message submission rate for this client has exceeded the configured limit",
    },
    Row {
        id: "E5",
        options: &["--max-header-size=20"],
        act: |gateway| message(gateway, b"Subject: longer than that\r\n\r\nbody\r\n"),
        counter: REFUSALS,
        reason: "header_size",
        limit: "max-header-size",
        reply: "552 5.3.4 Header size exceeds fixed maximum size",
    },
    Row {
        id: "E6",
        options: &["--max-message-size=20"],
        act: |gateway| message(gateway, b"Subject: x\r\n\r\nlonger than that\r\n"),
        counter: REFUSALS,
        reason: "message_size",
        limit: "max-message-size",
        reply: "552 5.3.4 Message size exceeds fixed maximum message size",
    },
    Row {
        id: "E7",
        options: &["--max-protocol-errors=1"],
        act: |gateway| commands(gateway, &["WHAT", "WHAT"]),
        counter: REFUSALS,
        reason: "protocol_errors",
        limit: "max-protocol-errors",
        reply: "421 4.7.0 Too many errors on this connection, closing transmission channel",
    },
    Row {
        id: "E8",
        options: &["--min-free-disk=1000TB"],
        act: |gateway| refused(gateway),
        counter: REFUSED,
        reason: "resources",
        limit: "min-free",
        reply: "452 4.3.1 Insufficient system resources",
    },
    Row {
        id: "E10",
        options: &["--listen=127.0.0.1:0,allow=192.0.2.1"],
        act: |gateway| refused(gateway),
        counter: REFUSED,
        reason: "binding_not_configured",
        limit: "allow",
        reply: "421 4.3.2 Service not available",
    },
    Row {
        id: "E11",
        options: &["--max-connections=1", "--max-connections-per-source=0"],
        act: second_is_refused,
        counter: REFUSED,
        reason: "connections_total",
        limit: "max-connections",
        reply: "421 4.3.2 The maximum number of concurrent server connections has exceeded a limit, closing transmission channel",
    },
    Row {
        id: "E12",
        options: &["--max-connections-per-source=1"],
        act: second_is_refused,
        counter: REFUSED,
        reason: "connections_per_source",
        limit: "max-connections-per-source",
        reply: "421 4.3.2 The maximum number of concurrent connections has exceeded a limit, closing transmission channel",
    },
    Row {
        id: "E13",
        options: &["--block=127.0.0.0/8"],
        act: |gateway| refused(gateway),
        counter: REFUSED,
        reason: "blocked",
        limit: "block",
        reply: "550 5.7.1 External client with IP address 127.0.0.1 does not have permissions to submit to this server. Visit http://support.microsoft.com/kb/928123 for more information",
    },
    Row {
        id: "E14",
        options: &[],
        act: |gateway| {
            gateway.tell(&["block", "add", "127.0.0.0/8"]);
            refused(gateway);
        },
        counter: REFUSED,
        reason: "blocked_for_a_time",
        limit: "block",
        reply: "550 5.7.1 External client with IP address 127.0.0.1 does not have permissions to submit to this server",
    },
    Row {
        id: "D1",
        options: &["--connection-timeout=300ms"],
        act: |gateway| ends(gateway.session()),
        counter: REFUSALS,
        reason: "connection_timeout",
        limit: "connection-timeout",
        reply: "421 4.4.1 Connection timed out",
    },
    Row {
        id: "D2",
        options: &["--inactivity-timeout=300ms"],
        act: |gateway| ends(gateway.session()),
        counter: REFUSALS,
        reason: "inactivity_timeout",
        limit: "inactivity-timeout",
        reply: "451 4.7.0 Timeout waiting for client input",
    },
];

const RCPT: &str = "RCPT TO:<first@test.example>";

/// Sends a message that is refused.
fn message(gateway: &Gateway, content: &[u8]) {
    let mut client = gateway.session();
    let reply = client.message("a@b.example", &["first@test.example"], content);
    assert!(reply.starts_with('5'), "{reply}");
}

/// Says these, the last of which is refused.
fn commands(gateway: &Gateway, commands: &[&str]) {
    let mut client = gateway.session();
    let last = commands.iter().map(|command| client.command(command)).last().expect("a command");
    assert!(last.starts_with(['4', '5']), "{last}");
}

/// Connects, and is refused.
fn refused(gateway: &Gateway) {
    ends(gateway.connect());
}

fn second_is_refused(gateway: &Gateway) {
    let _first = gateway.session();
    refused(gateway);
}

/// Reads to the end of a session that the server ends.
fn ends(mut client: Client) {
    client.reply();
    client.assert_ended();
}

/// The records in this log that have this event.
fn records(log: &Path, event: &str) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let record = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
    text.lines().map(record).filter(|record: &Value| record["event"] == event).collect()
}

#[test]
fn each_event_has_its_own() {
    for Row { id, options, act, counter, reason, limit, reply } in TABLE {
        println!("{id}");
        let scratch = Scratch::new();
        let log = scratch.join("log");
        let file = format!("--log-file={}", log.display());
        let options: Vec<&str> = options.iter().copied().chain(["--log-format=json", &file]).collect();
        let mut gateway = start(&scratch.join("spool"), &options);
        act(&gateway);
        // E14's own refusal is all that there is of its kind.
        assert_eq!(gateway.metric_with(counter, "reason", reason), 1.0, "{id}: {}", gateway.scrape());
        assert_eq!(gateway.metric_with("gatepost_limit_hits_total", "limit", limit), 1.0, "{id}");
        let of_reason = || {
            let all = records(&log, "refused").into_iter();
            all.filter(|record| record["reason"] == *reason).collect::<Vec<_>>()
        };
        until("a record", || !of_reason().is_empty());
        let of_reason = of_reason();
        assert_eq!(of_reason.len(), 1, "{id}: {of_reason:?}");
        assert_eq!(of_reason[0]["reply"], *reply, "{id}");
        assert_eq!(of_reason[0]["client"], "127.0.0.1", "{id}");
        gateway.signal(Signal::TERM);
        assert_eq!(gateway.wait().0, Some(0), "{id}");
    }
}

/// What an operator sees with `grep` and the id that a sender has been told.
#[test]
fn a_message_is_followed_by_its_id() {
    let scratch = Scratch::new();
    let log = scratch.join("log");
    let file = format!("--log-file={}", log.display());
    let hop = crate::next_hop::NextHop::start();
    let next_hop = format!("--next-hop={}", hop.address);
    let gateway = start(&scratch.join("spool"), &[&file, &next_hop]);
    let mut client = gateway.session();
    let id =
        client.deliver("a@b.example", &["first@test.example", "second@test.example"], b"Subject: x\r\n\r\nbody\r\n");
    gateway.until_delivered();
    let of_id = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.lines().filter(|line| line.contains(&id)).map(str::to_owned).collect::<Vec<_>>()
    };
    until("its records", || of_id().len() >= 2);
    let of_id = of_id();
    let line = |event: &str| of_id.iter().find(|line| line.contains(event)).unwrap_or_else(|| panic!("{of_id:?}"));
    let recipients = "from=a@b.example to=first@test.example,second@test.example";
    for part in [" session=", " client=127.0.0.1 ", recipients, " nrcpt=2 "] {
        assert!(line(" info accepted ").contains(part), "{part}: {of_id:?}");
    }
    for part in [recipients, &format!(" relay={}", hop.address), " reply=\"250 ", " status=delivered ", " attempts=1"] {
        assert!(line(" info delivered ").contains(part), "{part}: {of_id:?}");
    }
    assert_eq!(of_id.len(), 2, "{of_id:?}");
    gateway.stop();
}
