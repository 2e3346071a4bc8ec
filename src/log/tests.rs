//! The room as a whole: what senders write arrives, once, as it was, or is counted.

use super::clock::Clock;
use super::line::Line;
use super::output::Output;
use super::*;
use proptest::prelude::*;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, PipeReader, pipe};
use std::time::{Instant, UNIX_EPOCH};

/// The longest that anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);
const JSON: Settings = Settings { format: Format::Json, level: Level::Info, file: None };

fn time() -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(1_795_300_827_123_456)
}

/// A log with one sender, and the counter of what is lost.
fn start(output: Output, settings: &Settings) -> (Log, Sender, Arc<AtomicU64>) {
    let lost = Arc::new(AtomicU64::new(0));
    let (log, mut senders) = Log::with_output(settings, output, 1, Counter::from_arc(lost.clone())).expect("a thread");
    (log, senders.remove(0), lost)
}

fn piped(settings: &Settings) -> (Log, Sender, Arc<AtomicU64>, BufReader<PipeReader>) {
    let (reader, writer) = pipe().expect("a pipe");
    let (log, sender, lost) = start(Output::of(std::os::fd::OwnedFd::from(writer).into()), settings);
    (log, sender, lost, BufReader::new(reader))
}

/// A directory that vanishes with its test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gatepost-log-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write_one(sender: &Sender, number: u64) {
    sender.record(Event::Accepted, time()).expect("written").number(Field::Size, number);
}

/// The sizes in these lines, and the records that they say are lost.
fn sizes(lines: &str) -> (Vec<u64>, u64) {
    let mut found = (Vec::new(), 0);
    for line in lines.lines() {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        match record["event"].as_str() {
            Some("lost") => found.1 += record["lost"].as_u64().expect("a number"),
            _ => found.0.push(record["size"].as_u64().expect("a number")),
        }
    }
    found
}

fn until(what: &str, mut is_done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_done() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn records_in_both_formats() {
    let text = "2026-11-21T22:40:27.123456Z warn refused session=2A client=2001:db8::1 helo=\"\" from=a@b.example size=7 \
                duration=61.050 reply=\"550 5.7.1 \\\"No\\\"\" reason=blocked\n";
    let json = "{\"time\":\"2026-11-21T22:40:27.123456Z\",\"level\":\"warn\",\"event\":\"refused\",\"session\":\"2A\",\
                \"client\":\"2001:db8::1\",\"helo\":\"\",\"from\":\"a@b.example\",\"size\":7,\"duration\":61.050,\
                \"reply\":\"550 5.7.1 \\\"No\\\"\",\"reason\":\"blocked\"}\n";
    for (format, expected) in [(Format::Text, text), (Format::Json, json)] {
        let (_, sender, _, mut reader) = piped(&Settings { format, ..JSON });
        let mut record = sender.record(Event::Refused, time()).expect("written");
        record.str(Field::Session, "2A").display(Field::Client, &std::net::Ipv6Addr::from(0x2001_0db8 << 96 | 1));
        record.text(Field::Helo, b"").str(Field::From, "a@b.example").number(Field::Size, 7);
        record.seconds(Field::Duration, Duration::from_millis(61_050)).str(Field::Reply, "550 5.7.1 \"No\"");
        record.str(Field::Reason, "blocked");
        record.end();
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        assert_eq!(line, expected);
    }
}

#[test]
fn addresses() {
    let mut line = Line::default();
    for (address, shown) in [
        ("192.0.2.1", "192.0.2.1"),
        ("0.10.200.255", "0.10.200.255"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::", "::"),
    ] {
        for (format, before, behind) in [(Format::Text, " client=", "\n"), (Format::Json, ",\"client\":\"", "\"}\n")] {
            line.begin(format, Event::Refused, Level::Warn, time(), &mut Clock::new());
            line.address(Field::Client, address.parse().expect("an address"));
            let line = String::from_utf8_lossy(line.end());
            assert!(line.ends_with(&[before, shown, behind].concat()), "{line}");
        }
    }
}

#[test]
fn levels() {
    for (level, written) in [
        (Level::Off, 0),
        (Level::Error, 1),
        (Level::Warn, 5),
        (Level::Info, Event::ALL.len()),
        (Level::Debug, Event::ALL.len()),
    ] {
        let (log, sender, _, mut reader) = piped(&Settings { level, ..JSON });
        let count = Event::ALL.iter().filter_map(|&event| sender.record(event, time())).count();
        assert_eq!(count, written, "{level:?}");
        log.notice(Level::Warn, format_args!("a notice"));
        assert!(log.flush(PATIENCE));
        // They end once the log's thread and its pipe are held by nobody but the thread: so read what must be there.
        for _ in 0..written + usize::from(level >= Level::Warn) {
            assert!(reader.read_line(&mut String::new()).expect("a line") > 0);
        }
    }
}

#[test]
fn two_records_at_once_are_two_lines() {
    let (_, sender, _, mut reader) = piped(&JSON);
    let mut first = sender.record(Event::Accepted, time()).expect("written");
    first.number(Field::Size, 1);
    write_one(&sender, 2);
    first.str(Field::Id, "x");
    first.end();
    write_one(&sender, 3);
    let mut lines = String::new();
    for _ in 0..3 {
        reader.read_line(&mut lines).expect("a line");
    }
    assert_eq!(sizes(&lines), (vec![2, 1, 3], 0));
}

#[test]
fn a_reader_that_stands_still_keeps_only_the_log_waiting() {
    let (log, sender, lost, mut reader) = piped(&JSON);
    let mut sent = 0;
    // The pipe is full, then the ring: what comes behind is lost.
    until("a full ring", || {
        for _ in 0..1000 {
            write_one(&sender, sent);
            sent += 1;
        }
        lost.load(Ordering::Relaxed) > 0
    });
    assert!(!log.flush(Duration::from_millis(1)), "it cannot have been written");
    let (mut lines, mut told) = (String::new(), 0);
    while told == 0 {
        let begin = lines.len();
        assert!(reader.read_line(&mut lines).expect("a line") > 0);
        told = sizes(&lines[begin..]).1;
    }
    // The ring was emptied behind that record, before both were written: it has room again.
    write_one(&sender, u64::MAX);
    let mut begin = lines.len();
    while !lines[begin..].contains(&u64::MAX.to_string()) {
        begin = lines.len();
        assert!(reader.read_line(&mut lines).expect("a line") > 0);
    }
    let (written, told) = sizes(&lines);
    assert_eq!(told, lost.load(Ordering::Relaxed));
    assert_eq!(written.len() as u64 - 1 + told, sent, "each is written, or counted");
    assert!(written.is_sorted(), "in their order");
}

#[test]
fn what_cannot_be_written_is_counted() {
    let full = Settings { file: Some("/dev/full".into()), ..JSON };
    let (full_log, full_sender, full_lost) = start(Output::file("/dev/full".as_ref()).expect("a device"), &full);
    let (broken_log, broken_sender, broken_lost, reader) = piped(&JSON);
    drop(reader);
    for (log, sender, lost) in [(full_log, full_sender, full_lost), (broken_log, broken_sender, broken_lost)] {
        for round in 1..=3 {
            for number in 0..5 {
                write_one(&sender, number);
            }
            assert!(log.flush(PATIENCE), "lost is dealt with");
            // What says that records were lost is none.
            assert_eq!(lost.load(Ordering::Relaxed), 5 * round);
        }
    }
}

#[test]
fn losses_are_told_when_it_works_again_and_files_are_opened_again() {
    let scratch = Scratch::new("again");
    let path = scratch.0.join("log");
    std::os::unix::fs::symlink("/dev/full", &path).expect("a link");
    let (log, sender, lost) = start(Output::file(&path).expect("a device"), &JSON);
    (0..7).for_each(|number| write_one(&sender, number));
    assert!(log.flush(PATIENCE));
    assert_eq!(lost.load(Ordering::Relaxed), 7);
    fs::remove_file(&path).expect("a link");
    log.reopen();
    // Nothing is written, and still it is told.
    until("a record of the loss", || fs::read_to_string(&path).is_ok_and(|lines| lines.ends_with('\n')));
    assert_eq!(sizes(&fs::read_to_string(&path).expect("a file")), (vec![], 7));
    write_one(&sender, 8);
    assert!(log.flush(PATIENCE));
    assert_eq!(sizes(&fs::read_to_string(&path).expect("a file")), (vec![8], 7));
}

#[test]
fn a_renamed_file_is_left_and_a_new_one_is_made() {
    for is_asked in [true, false] {
        let scratch = Scratch::new(if is_asked { "asked" } else { "by-itself" });
        let (path, renamed) = (scratch.0.join("log"), scratch.0.join("log.1"));
        let (log, sender, lost) = start(Output::file(&path).expect("a file"), &JSON);
        write_one(&sender, 0);
        assert!(log.flush(PATIENCE));
        fs::rename(&path, &renamed).expect("a file");
        let mut sent = 1;
        if is_asked {
            log.reopen();
        }
        until("a new file", || {
            write_one(&sender, sent);
            sent += 1;
            assert!(log.flush(PATIENCE));
            path.exists()
        });
        let old = sizes(&fs::read_to_string(&renamed).expect("a file"));
        let new = sizes(&fs::read_to_string(&path).expect("a file"));
        assert_eq!([old.0, new.0].concat(), (0..sent).collect::<Vec<_>>());
        assert_eq!(lost.load(Ordering::Relaxed), 0);
        if is_asked {
            assert_eq!(sent, 2, "the first record after it is in the new file");
        }
    }
}

#[test]
fn a_file_that_cannot_be_made_again_is_still_written() {
    let scratch = Scratch::new("stuck");
    let (directory, path) = (scratch.0.join("one"), scratch.0.join("one/log"));
    fs::create_dir(&directory).expect("a directory");
    let (log, sender, lost) = start(Output::file(&path).expect("a file"), &JSON);
    fs::rename(&directory, scratch.0.join("two")).expect("a directory");
    log.reopen();
    write_one(&sender, 1);
    assert!(log.flush(PATIENCE));
    assert_eq!(sizes(&fs::read_to_string(scratch.0.join("two/log")).expect("a file")), (vec![1], 0));
    assert_eq!(lost.load(Ordering::Relaxed), 0);
}

#[test]
fn lines_as_they_are_stand_between_records() {
    let (log, sender, _, mut reader) = piped(&Settings { format: Format::Text, ..JSON });
    log.push(Said::Plain("listening on 127.0.0.1:25".to_owned()));
    assert!(log.flush(PATIENCE));
    write_one(&sender, 1);
    let mut lines = String::new();
    for _ in 0..2 {
        reader.read_line(&mut lines).expect("a line");
    }
    assert_eq!(lines, "listening on 127.0.0.1:25\n2026-11-21T22:40:27.123456Z info accepted size=1\n");
}

#[test]
fn senders_may_move_to_their_threads() {
    fn may_move<T: Send>() {}
    may_move::<Sender>();
    let threads = 4;
    let (reader, writer) = pipe().expect("a pipe");
    let output = Output::of(std::os::fd::OwnedFd::from(writer).into());
    let (log, senders) = Log::with_output(&JSON, output, threads, Counter::noop()).expect("a thread");
    let running: Vec<_> = senders
        .into_iter()
        .map(|sender| thread::spawn(move || (0..500).for_each(|number| write_one(&sender, number))))
        .collect();
    let read = thread::spawn(move || {
        let mut lines = String::new();
        let mut reader = BufReader::new(reader);
        for _ in 0..500 * threads {
            reader.read_line(&mut lines).expect("a line");
        }
        lines
    });
    running.into_iter().for_each(|thread| thread.join().expect("a thread that ends"));
    assert!(log.flush(PATIENCE));
    let (mut written, lost) = sizes(&read.join().expect("a thread that ends"));
    written.sort_unstable();
    assert_eq!(written, (0..500).flat_map(|number| vec![number; threads]).collect::<Vec<_>>());
    assert_eq!(lost, 0);
}

#[test]
fn what_shows_itself_at_length_is_cut() {
    let mut line = Line::default();
    for (text, ends_with) in [("x".repeat(512), "x\n"), ("x".repeat(513), "x...\n"), ("é".repeat(300_000), "é...\"\n")]
    {
        line.begin(Format::Text, Event::Refused, Level::Warn, time(), &mut Clock::new());
        // In pieces, too.
        line.display(
            Field::Helo,
            &format_args!("{}{}", &text[..text.len() / 2 / 2 * 2], &text[text.len() / 2 / 2 * 2..]),
        );
        let shown = String::from_utf8(line.end().to_vec()).expect("text");
        assert!(shown.ends_with(ends_with) && shown.len() < 600, "{shown}");
    }
}

/// What a reader of logfmt makes of a line: written for this, from the description alone.
fn read_logfmt(line: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut fields = Vec::new();
    let mut rest = line.strip_suffix(b"\n").expect("a whole line").iter().copied().peekable();
    while rest.peek().is_some() {
        let name: Vec<u8> = rest.by_ref().take_while(|octet| *octet != b'=').collect();
        let mut value = Vec::new();
        if rest.next_if_eq(&b'"').is_some() {
            loop {
                match rest.next().expect("a quote at the end") {
                    b'"' => break,
                    b'\\' => value.push(match rest.next().expect("what is escaped") {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'x' => {
                            let digits: Vec<u8> = rest.by_ref().take(2).collect();
                            u8::from_str_radix(std::str::from_utf8(&digits).expect("digits"), 16).expect("digits")
                        }
                        octet => octet,
                    }),
                    octet => value.push(octet),
                }
            }
            assert!(matches!(rest.next(), None | Some(b' ')), "a value ends with its quote");
        } else {
            value.extend(rest.by_ref().take_while(|octet| *octet != b' '));
            assert!(
                !value.is_empty() && value.iter().all(|octet| octet.is_ascii_graphic() && !b"\"\\=".contains(octet))
            );
        }
        fields.push((String::from_utf8(name).expect("a name"), value));
    }
    fields
}

/// Octets that are likely to do harm, and any others.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        any::<char>().prop_map(|character| character.to_string().into_bytes()),
        any::<u8>().prop_map(|octet| vec![octet]),
        prop::sample::select(vec![
            "\n",
            "\r\n",
            "\"",
            "\\",
            "=",
            " ",
            "\\x",
            "\u{85}",
            "\u{2028}",
            "\u{202e}",
            " client=192.0.2.1 ",
            "}",
            "...",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn whatever_comes_is_one_line_and_comes_back(helo in hostile(), from in hostile(), reply in hostile()) {
        let values = [(Field::Helo, &helo), (Field::From, &from), (Field::Reply, &reply)];
        let mut line = Line::default();
        for format in [Format::Text, Format::Json] {
            line.begin(format, Event::Refused, Level::Warn, time(), &mut Clock::new());
            for (field, value) in values {
                line.text(field, value);
            }
            line.number(Field::Size, 1);
            let octets = line.end();
            let shown = std::str::from_utf8(octets).expect("UTF-8");
            prop_assert_eq!(shown.trim_end_matches('\n').len() + 1, octets.len());
            let is_harmful = |character: char| character.is_control() || "\u{2028}\u{2029}\u{202e}".contains(character);
            prop_assert!(!shown.trim_end_matches('\n').contains(is_harmful), "{:?}", shown);
            if format == Format::Text {
                let fields = shown.split_once(" refused ").expect("a head").1.as_bytes();
                let expected: Vec<_> = values.iter().map(|(field, value)| (field.name().to_owned(), value.to_vec())).collect();
                let mut read = read_logfmt(fields);
                prop_assert_eq!(read.pop(), Some(("size".to_owned(), b"1".to_vec())));
                prop_assert_eq!(read, expected);
            } else {
                let record: Value = serde_json::from_str(shown).expect("JSON");
                for (field, value) in values {
                    let text = String::from_utf8_lossy(value);
                    prop_assert_eq!(record[field.name()].as_str(), Some(text.as_ref()));
                }
                prop_assert_eq!(record.as_object().map(|object| object.len()), Some(7));
            }
        }
    }

    #[test]
    fn long_values_are_bounded(value in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut line = Line::default();
        for format in [Format::Text, Format::Json] {
            line.begin(format, Event::Refused, Level::Warn, time(), &mut Clock::new());
            line.text(Field::Helo, &value);
            let octets = line.end();
            prop_assert!(octets.len() <= 100 + 6 * crate::limits::LOG_VALUE_MAX_OCTETS);
            if value.len() > crate::limits::LOG_VALUE_MAX_OCTETS {
                let end = if format == Format::Text { "...\"\n" } else { "...\"}\n" };
                prop_assert!(octets.ends_with(end.as_bytes()));
            }
        }
    }
}
