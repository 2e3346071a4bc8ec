//! The room as a whole: what senders write arrives, once, as it was, or is counted.

use super::output::Output;
use super::*;
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
    let log = Log::with_output(settings, output, Counter::from_arc(lost.clone())).expect("a thread");
    let sender = log.sender();
    (log, sender, lost)
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
                reply=\"550 5.7.1 \\\"No\\\"\" reason=blocked\n";
    let json = "{\"time\":\"2026-11-21T22:40:27.123456Z\",\"level\":\"warn\",\"event\":\"refused\",\"session\":\"2A\",\
                \"client\":\"2001:db8::1\",\"helo\":\"\",\"from\":\"a@b.example\",\"size\":7,\
                \"reply\":\"550 5.7.1 \\\"No\\\"\",\"reason\":\"blocked\"}\n";
    for (format, expected) in [(Format::Text, text), (Format::Json, json)] {
        let (_, sender, _, mut reader) = piped(&Settings { format, ..JSON });
        let mut record = sender.record(Event::Refused, time()).expect("written");
        record.str(Field::Session, "2A").display(Field::Client, &std::net::Ipv6Addr::from(0x2001_0db8 << 96 | 1));
        record.text(Field::Helo, b"").str(Field::From, "a@b.example").number(Field::Size, 7);
        record.str(Field::Reply, "550 5.7.1 \"No\"");
        record.str(Field::Reason, "blocked");
        record.end();
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        assert_eq!(line, expected);
    }
}

#[test]
fn time_spans_have_three_decimals() {
    let (_, sender, _, mut reader) = piped(&Settings { format: Format::Text, ..JSON });
    let mut record = sender.record(Event::Session, time()).expect("written");
    record.seconds(Field::Duration, Duration::from_millis(61_050)).number(Field::Messages, 3);
    record.end();
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    assert!(line.ends_with(" duration=61.050 messages=3\n"), "{line}");
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
        // From now on nothing but what matters most.
        log.set_level(Level::Off);
        assert!(Event::ALL.iter().all(|&event| sender.record(event, time()).is_none()));
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
    let log = Log::with_output(&JSON, output, Counter::noop()).expect("a thread");
    let write_all = |sender: Sender| thread::spawn(move || (0..500).for_each(|number| write_one(&sender, number)));
    // Those that come later find the log at work.
    let running: Vec<_> = (0..threads).map(|_| write_all(log.sender())).collect();
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
