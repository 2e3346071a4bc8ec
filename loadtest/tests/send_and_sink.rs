//! The sender against the sink, as processes, on loopback and a free port. Counts and exit codes, never times.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use socket2::{Domain, Socket, Type};

use common::{PROGRAM, Scratch, Sink, path, send, summary};

#[test]
fn every_way_of_sending_arrives_whole() {
    let ways: [(&str, &[&str], u64); 7] = [
        ("persistent", &["--persistent"], 4),
        ("each", &[], 60),
        ("some", &["--messages-per-connection", "5", "--sessions", "1"], 12),
        ("pipelined", &["--persistent", "--pipelining", "--recipients", "3"], 4),
        ("recipients", &["--persistent", "--recipients", "3", "--dots", "--size", "9001B"], 4),
        ("sources", &["--source", "127.1.0.0/28", "--source", "127.2.0.1", "--pipelining"], 60),
        ("large", &["--persistent", "--size", "300KB", "--dots"], 4),
    ];
    for (name, options, connections) in ways {
        let scratch = Scratch::new(name);
        let acked = scratch.file("acked");
        let sink = Sink::start(&["--expect", path(&acked)]);
        let mut all = vec!["--messages", "60", "--sessions", "4", "--acked-file", path(&acked)];
        if options.contains(&"--sessions") {
            all.drain(2..4);
        }
        all.extend(options);
        let output = send(&sink.address, &all);
        let summary = summary(&output);
        assert_eq!(output.status.code(), Some(0), "{name}: {summary}");
        assert_eq!((&summary["sent"], &summary["accepted"]), (&60.into(), &60.into()), "{name}: {summary}");
        // A free session may take the last messages before a slow one has opened its connection.
        let opened = summary["connections"].as_u64().unwrap();
        assert!(opened <= connections && (opened == connections || connections == 4), "{name}: {summary}");
        assert_eq!(summary["transaction"]["count"], 60, "{name}");
        let (report, code) = sink.stop();
        assert_eq!(code, 0, "{name}: {report}");
        for (what, count) in [
            ("received", 60),
            ("expected", 60),
            ("lost", 0),
            ("duplicated", 0),
            ("unexpected", 0),
            ("altered", 0),
            ("foreign", 0),
        ] {
            assert_eq!(report[what], count, "{name}: {what}: {report}");
        }
        assert_eq!(fs::read_to_string(&acked).unwrap().lines().count(), 60);
    }
}

#[test]
fn sources_take_turns() {
    let scratch = Scratch::new("turns");
    let dump = scratch.file("dump");
    let sink = Sink::start(&["--messages", "9", "--dump", path(&dump)]);
    let output = send(&sink.address, &["--messages", "9", "--source", "127.9.0.1", "--source", "127.9.1.0/30"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(sink.end().1, 0);
    let mut clients: Vec<_> = fs::read_dir(&dump)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().unwrap() == "envelope")
        .map(|path| fs::read_to_string(path).unwrap().lines().next().unwrap().to_owned())
        .collect();
    clients.sort();
    let expected = ["127.9.0.1", "127.9.1.1", "127.9.1.2"]
        .map(|client| [format!("client {client}"), format!("client {client}"), format!("client {client}")]);
    assert_eq!(clients, expected.concat());
}

#[test]
fn what_is_missing_or_altered_is_told() {
    let scratch = Scratch::new("audit");
    let (acked, dump, record) = (scratch.file("acked"), scratch.file("dump"), scratch.file("record"));
    let sink = Sink::start(&["--expect", path(&acked), "--dump", path(&dump), "--record", path(&record)]);
    let options = ["--messages", "5", "--run-id", "audit", "--dots", "--recipients", "2", "--acked-file", path(&acked)];
    let output = send(&sink.address, &options);
    assert_eq!(output.status.code(), Some(0));
    // An acknowledgement of a message that never came.
    fs::OpenOptions::new().append(true).open(&acked).unwrap().write_all(b"audit-0000000099 -\n").unwrap();
    let (report, code) = sink.stop();
    assert_eq!((code, &report["lost"], &report["lost_ids"][0]), (1, &1.into(), &"audit-0000000099".into()), "{report}");
    let recorded = fs::read_to_string(&record).unwrap();
    let is_recorded = |line: &&str| {
        line.starts_with("audit-") && line.contains(" intact ") && line.ends_with(" client.load.example 2")
    };
    assert_eq!(recorded.lines().filter(is_recorded).count(), 5, "{recorded}");

    let audit = |options: &[&str], input: &[u8]| {
        let mut child = Command::new(PROGRAM)
            .args(["audit", "--json", "--acked", path(&acked)])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        (summary(&output), output.status.code().unwrap())
    };
    let (report, code) = audit(&["--dir", path(&dump)], b"");
    assert_eq!(
        (code, &report["received"], &report["lost"], &report["altered"]),
        (1, &5.into(), &1.into(), &0.into()),
        "{report}"
    );

    let mut messages: Vec<_> = fs::read_dir(&dump)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().unwrap() == "eml")
        .map(|path| fs::read(path).unwrap())
        .collect();
    let last = messages[0].len() - 3;
    messages[0][last] ^= 1;
    let again = messages[1].clone();
    messages.push(again);
    let (report, code) = audit(&["--stdin0"], &messages.join(&0));
    assert_eq!(code, 1);
    for (what, count) in [("received", 6), ("lost", 1), ("duplicated", 1), ("altered", 1), ("unexpected", 0)] {
        assert_eq!(report[what], count, "{what}: {report}");
    }
}

#[test]
fn a_dead_server_ends_the_sender() {
    // Bound but not listening: refuses connections, and nobody else can take the port meanwhile.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let output = send(&address.to_string(), &["--messages", "1000000", "--sessions", "3", "--give-up-after", "100ms"]);
    let summary = summary(&output);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((&summary["accepted"], &summary["stopped"]), (&0.into(), &"server gone".into()), "{summary}");
    assert!(summary["errors"]["connect: refused"].as_u64().unwrap() > 0, "{summary}");
}

#[test]
fn refusals_are_counted_and_end_the_run_when_told_to() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 test\r\n").unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while lines.read_line(&mut line).unwrap() > 0 {
            let reply = match &line[..4] {
                "EHLO" => "250-test\r\n250 SIZE\r\n",
                "RCPT" => "550 5.1.1 unknown\r\n",
                "QUIT" => "221 bye\r\n",
                _ => "250 ok\r\n",
            };
            stream.write_all(reply.as_bytes()).unwrap();
            line.clear();
        }
    });
    let options = ["--persistent", "--messages", "1000", "--max-errors", "3", "--recipients", "2"];
    let output = send(&address.to_string(), &options);
    server.join().unwrap();
    let summary = summary(&output);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        (&summary["sent"], &summary["refused"], &summary["unsent"]),
        (&3.into(), &3.into(), &997.into()),
        "{summary}"
    );
    assert_eq!(
        (&summary["refusals"]["RCPT 550"], &summary["stopped"]),
        (&6.into(), &"too many errors".into()),
        "{summary}"
    );
}

#[test]
fn usage_errors_exit_with_64() {
    for options in
        [&["send", "192.0.2.1:25"][..], &["send", "--size", "x"], &["send", "--frob"], &["audit"], &["frob"], &[]]
    {
        let output = Command::new(PROGRAM).args(options).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{options:?}");
    }
    assert_eq!(Command::new(PROGRAM).arg("--help").output().unwrap().status.code(), Some(0));
}
