//! The sink as the next hop of a relay that is tested: what it offers, stores, notes, and does wrong. Nothing passes by
//! being fast: where silence has to be shown, waiting too briefly could only hide a failure.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{PROGRAM, Scratch, Sink, path, send, summary};

const PATIENCE: Duration = Duration::from_secs(60);
const CONTENT: &[u8] = b"X-Gatepost-Load-Id: run-0000000001\r\n\r\n.dot\r\nbare\nLF and \0\r\n";
/// The same, dot-stuffed and ended.
const WIRE: &str = "X-Gatepost-Load-Id: run-0000000001\r\n\r\n..dot\r\nbare\nLF and \0\r\n.\r\n";
const TRANSACTION: [&str; 3] = ["MAIL FROM:<a@x>\r\n", "RCPT TO:<b@y>\r\n", "DATA\r\n"];

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(sink: &Sink) -> Self {
        let stream = TcpStream::connect(&sink.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// A session behind EHLO.
    fn session(sink: &Sink) -> Self {
        let mut client = Self::connect(sink);
        assert_eq!(client.reply(), "220");
        assert_eq!(client.say("EHLO client.example\r\n"), "250");
        client
    }

    fn send(&mut self, input: &str) {
        self.0.get_mut().write_all(input.as_bytes()).unwrap();
    }

    /// The code of the next reply, or how the stream ended.
    fn reply(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            line.clear();
            match self.0.read_until(b'\n', &mut line) {
                Ok(0) => return "end".to_owned(),
                Ok(_) if line.get(3) == Some(&b'-') => {}
                Ok(_) => return String::from_utf8(line[..3].to_vec()).unwrap_or("noise".to_owned()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return "silence".to_owned(),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return "reset".to_owned(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn say(&mut self, input: &str) -> String {
        self.send(input);
        self.reply()
    }

    /// A whole message; its final reply.
    fn message(&mut self) -> String {
        for (command, code) in TRANSACTION.into_iter().zip(["250", "250", "354"]) {
            assert_eq!(self.say(command), code, "{command}");
        }
        self.say(WIRE)
    }
}

/// Envelopes and messages of a dump, in the order they came.
fn dumped(dump: &Path) -> Vec<(String, Vec<u8>)> {
    let mut paths: Vec<_> = fs::read_dir(dump).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "eml"));
    paths.sort();
    let read = |path: &Path| (fs::read_to_string(path.with_extension("envelope")).unwrap(), fs::read(path).unwrap());
    paths.iter().map(|path| read(path)).collect()
}

#[test]
fn envelopes_and_messages_are_kept_as_they_came() {
    let scratch = Scratch::new("kept");
    let dump = scratch.file("dump");
    let sink = Sink::start(&["--dump", path(&dump)]);
    // Known to the sink before the other is.
    let mut one = Client::connect(&sink);
    assert_eq!((one.reply(), one.say("HELO old.example\r\n")), ("220".to_owned(), "250".to_owned()));
    let mut two = Client::session(&sink);
    assert_eq!(one.message(), "250");
    for command in [
        "mail from:<> BODY=8BITMIME SIZE=99 RET=HDRS ENVID=QQ+2B1\r\n",
        "RCPT TO:<\"a>b\"@y> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;a+3Eb@y\r\n",
        "RCPT TO:<c@y> NOTIFY=NEVER\r\n",
    ] {
        assert_eq!(two.say(command), "250", "{command}");
    }
    assert_eq!(two.say("RCPT TO:c@y\r\n"), "501");
    let (start, rest) = CONTENT.split_at(20);
    for (chunk, last) in [(start, ""), (rest, ""), (&[], " LAST")] {
        let chunk = format!("BDAT {}{last}\r\n{}", chunk.len(), String::from_utf8_lossy(chunk));
        assert_eq!(two.say(&chunk), "250");
    }
    assert_eq!(two.message(), "250");
    assert_eq!((two.say("QUIT\r\n"), two.reply()), ("221".to_owned(), "end".to_owned()));
    let (report, code) = sink.stop();
    assert_eq!((code, &report["connections"], &report["transactions"]), (1, &2.into(), &3.into()), "{report}");
    assert_eq!((&report["transactions_per_connection"]["max"], &report["refusals"]["rcpt"]), (&2.into(), &1.into()));
    let dumped = dumped(&dump);
    let head = "client 127.0.0.1\nehlo client.example\nconnection 2\n";
    let expected = [
        "client 127.0.0.1\nhelo old.example\nconnection 1\ntransaction 1\nMAIL FROM:<a@x>\nRCPT TO:<b@y>\nDATA\n"
            .to_owned(),
        format!(
            "{head}transaction 1\nmail from:<> BODY=8BITMIME SIZE=99 RET=HDRS ENVID=QQ+2B1\n\
             RCPT TO:<\"a>b\"@y> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;a+3Eb@y\nRCPT TO:<c@y> NOTIFY=NEVER\nBDAT\n"
        ),
        format!("{head}transaction 2\nMAIL FROM:<a@x>\nRCPT TO:<b@y>\nDATA\n"),
    ];
    let (envelopes, messages): (Vec<_>, Vec<_>) = dumped.into_iter().unzip();
    assert_eq!(envelopes, expected);
    assert!(messages.iter().all(|message| message == CONTENT));
}

#[test]
fn extensions_can_be_left_out() {
    let offered = |options: &[&str]| {
        let sink = Sink::start(options);
        let mut client = Client::connect(&sink);
        client.reply();
        client.send("EHLO c\r\n");
        let mut lines = String::new();
        while !lines.lines().any(|line| line.starts_with("250 ")) {
            client.0.read_line(&mut lines).unwrap();
        }
        lines.lines().filter_map(|line| line.strip_prefix("250").map(|rest| rest[1..].to_owned())).collect::<Vec<_>>()
    };
    let all = ["sink.load.example", "PIPELINING", "SIZE 0", "8BITMIME", "DSN", "CHUNKING", "ENHANCEDSTATUSCODES"];
    assert_eq!(offered(&[]), all);
    let options = ["--max-message-size", "10MB", "--disable-extension", "dsn", "--disable-extension", "PIPELINING"];
    let rest = offered(&options);
    assert_eq!(rest, ["sink.load.example", "SIZE 10485760", "8BITMIME", "CHUNKING", "ENHANCEDSTATUSCODES"]);
}

#[test]
fn every_action_at_every_verb() {
    // The script of a client, and the fault's place in it: behind so many replies.
    let steps = [("connect", ""), ("ehlo", "EHLO c\r\n"), ("mail", TRANSACTION[0]), ("rcpt", TRANSACTION[1])];
    let steps =
        [&steps[..], &[("data", TRANSACTION[2]), ("end", WIRE), ("rset", "RSET\r\n"), ("quit", "QUIT\r\n")]].concat();
    for (action, expected) in [
        ("reset", "reset"),
        ("close", "end"),
        ("garbage", "noise"),
        ("451", "451"),
        ("421 4.3.2 bye", "421"),
        ("slow:50ms", ""),
        ("hang", "silence"),
    ] {
        let rules: Vec<_> = steps.iter().map(|(verb, _)| format!("{verb}={action},first:1")).collect();
        let options: Vec<_> = rules.iter().flat_map(|rule| ["--fault", rule]).collect();
        let sink = Sink::start(&options);
        for (at, (verb, _)) in steps.iter().enumerate() {
            // Each connection meets the faults of the verbs before it no more.
            let mut client = Client::connect(&sink);
            for (_, command) in &steps[..at] {
                assert!(client.say(command).starts_with(['2', '3']), "{verb}={action}");
            }
            if expected == "silence" {
                client.0.get_ref().set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            }
            let said = client.say(steps[at].1);
            match expected {
                "" => assert!(said.starts_with(['2', '3']), "{verb}={action}: {said}"),
                _ => assert_eq!(said, expected, "{verb}={action}"),
            }
            if action.starts_with("421") {
                assert_eq!(client.reply(), "end", "{verb}");
            }
        }
        let (report, _) = sink.stop();
        let faults: BTreeMap<String, u64> = serde_json::from_value(report["faults"].clone()).unwrap();
        assert_eq!(faults, steps.iter().map(|(verb, _)| ((*verb).to_owned(), 1)).collect(), "{action}");
        let unanswered = u64::from(!expected.starts_with('4') && !expected.is_empty());
        assert_eq!(
            (&report["received"], &report["unanswered"]),
            (&if expected.starts_with('4') { 2 } else { 3 }.into(), &unanswered.into()),
            "{action}"
        );
    }
}

#[test]
fn content_is_cut_off() {
    for (action, expected) in [("reset", "reset"), ("close", "end"), ("451 4.3.0 full", "451"), ("garbage", "noise")] {
        let sink = Sink::start(&["--fault", &format!("body@100KB={action},first:1")]);
        let mut client = Client::session(&sink);
        for (command, code) in TRANSACTION.into_iter().zip(["250", "250", "354"]) {
            assert_eq!(client.say(command), code);
        }
        // More than the sink reads at once, less than the kernel takes of what nobody reads.
        client.send(&"0123456789012345678901234567890\r\n".repeat(4000));
        assert_eq!(client.reply(), expected, "{action}");
        if expected == "451" {
            // The rest of the content is no command, and has no reply of its own.
            assert_eq!(client.say("more\r\n.\r\nNOOP\r\n"), "250");
        }
        drop(client);
        assert_eq!(Client::session(&sink).message(), "250");
        assert_eq!(sink.stop().0["received"], 1, "{action}");
    }
}

#[test]
fn a_copy_of_what_was_taken_without_a_reply_is_told_from_others() {
    let scratch = Scratch::new("copies");
    let (record, dump) = (scratch.file("record"), scratch.file("dump"));
    let options = ["--fault", "end=reset,first:1", "--fault", "end=slow:1h,first:1", "--record", path(&record)];
    let sink = Sink::start(&[&options[..], &["--dump", path(&dump)]].concat());
    assert_eq!(Client::session(&sink).message(), "reset");
    // Leaves while it is kept waiting.
    let mut client = Client::session(&sink);
    TRANSACTION.iter().for_each(|command| client.send(command));
    client.send(WIRE);
    while dumped(&dump).len() < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(client);
    while fs::read_to_string(&record).unwrap().matches("unanswered").count() < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    // The third copy is excused too, those behind it are not.
    (0..3).for_each(|_| assert_eq!(Client::session(&sink).message(), "250"));
    let (report, _) = sink.stop();
    for (what, count) in [
        ("received", 5),
        ("duplicated", 4),
        ("unanswered", 2),
        ("duplicates_after_unanswered", 2),
        ("duplicates_other", 2),
    ] {
        assert_eq!(report[what], count, "{what}: {report}");
    }
    let record = fs::read_to_string(&record).unwrap();
    let (mut kinds, mut times) = (Vec::new(), Vec::new());
    for line in record.lines() {
        let (kind, origin) = match line.strip_prefix("run-0000000001 altered ") {
            Some(origin) => ("altered", origin),
            None => ("taken", line.strip_prefix("run-0000000001 taken, unanswered ").expect("one of the two")),
        };
        let (time, origin) = origin.split_once(' ').expect("a time");
        times.push(time.parse::<f64>().expect("seconds"));
        kinds.push(format!("{kind} {origin}"));
    }
    assert!(times.is_sorted(), "{record}");
    let expected = [
        "altered 1 client.example 1",
        "taken 1 client.example",
        "altered 2 client.example 1",
        "taken 2 client.example",
        "altered 3 client.example 1",
        "altered 4 client.example 1",
        "altered 5 client.example 1",
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn faults_change_while_it_runs() {
    let scratch = Scratch::new("change");
    let file = scratch.file("faults");
    fs::write(&file, "# the next hop is full\nmail=452\n").unwrap();
    let mut sink = Sink::start(&["--faults-file", path(&file), "--fault", "rcpt[x]=550"]);
    let mut client = Client::session(&sink);
    assert_eq!(client.say(TRANSACTION[0]), "452");
    fs::write(&file, "mail=452 4.3.1 full,first:1\nend=421\n").unwrap();
    assert_eq!(sink.reload(), "faults: 3\n");
    assert_eq!(client.say(TRANSACTION[0]), "452");
    assert_eq!(client.message(), "421");
    assert_eq!(client.reply(), "end");
    fs::write(&file, "mail=frob\n").unwrap();
    let said = sink.reload();
    assert!(said.contains("faults:1: 'frob' is not") && said.ends_with("the faults stay as they are\n"), "{said}");
    let mut client = Client::session(&sink);
    assert_eq!(client.message(), "421");
    fs::write(&file, "").unwrap();
    assert_eq!(sink.reload(), "faults: 1\n");
    let mut client = Client::session(&sink);
    assert_eq!(
        (client.message(), client.say(TRANSACTION[0]), client.say("RCPT TO:<x@y>\r\n")),
        ("250".to_owned(), "250".to_owned(), "550".to_owned())
    );
    assert_eq!(sink.stop().0["received"], 1);
}

#[test]
fn nothing_is_lost_when_refusals_come_by_chance() {
    let scratch = Scratch::new("chance");
    let acked = scratch.file("acked");
    let rules = ["mail=451,p=0.05", "rcpt=421 4.3.2 later,p=0.05", "data=close,p=0.05", "end=452,p=0.05"];
    let rules: Vec<_> = rules.iter().flat_map(|rule| ["--fault", rule]).collect();
    let sink = Sink::start(&[&rules[..], &["--seed", "3", "--expect", path(&acked)]].concat());
    let options =
        ["--persistent", "--messages", "400", "--sessions", "4", "--retries", "50", "--acked-file", path(&acked)];
    let output = send(&sink.address, &options);
    assert_eq!(summary(&output)["accepted"], 400, "{}", summary(&output));
    let (report, code) = sink.stop();
    assert_eq!(
        (code, &report["received"], &report["duplicated"], &report["lost"]),
        (0, &400.into(), &0.into(), &0.into()),
        "{report}"
    );
    for verb in ["mail", "rcpt", "data", "end"] {
        assert!(report["faults"][verb].as_u64() > Some(0), "{report}");
    }
}

#[test]
fn rules_that_make_no_sense_are_usage_errors() {
    let scratch = Scratch::new("usage");
    let file = scratch.file("faults");
    fs::write(&file, "mail=451\n\nmail=250\n").unwrap();
    for options in [
        &["--fault", "mail"][..],
        &["--fault", "frob=451"],
        &["--fault", "mail=451,p=7"],
        &["--disable-extension", "STARTTLS"],
        &["--faults-file", path(&file)],
    ] {
        let output = Command::new(PROGRAM).args(["sink", "--listen", "127.0.0.1:0"]).args(options).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{options:?}");
        assert!(!output.stderr.is_empty(), "{options:?}");
    }
    let missing = scratch.file("none");
    let output = Command::new(PROGRAM).args(["sink", "--faults-file", path(&missing)]).output().unwrap();
    assert_eq!(output.status.code(), Some(74));
}
