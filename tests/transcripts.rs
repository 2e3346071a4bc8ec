//! The protocol as dialogues: runs `tests/transcripts/**/*.smtp` against `smtp::server`.
//!
//! `tests/transcripts/README.md` describes the language. Every transcript is run as it is written,
//! pipelined, cut in two at every octet, and octet by octet, and in each role and revision of
//! [MS-OXSMTP] that it does not fix; replies, stored messages and the end of the session must be the
//! same each time.
//!
//! `harness/rows.rs` is the table of the rows of CONFORMANCE, and of where each is shown.

#[path = "transcripts/harness/driver.rs"]
mod driver;
#[path = "transcripts/harness/format.rs"]
mod format;
#[path = "transcripts/harness/policy.rs"]
mod policy;
#[path = "transcripts/harness/rows.rs"]
mod rows;

use driver::{Driver, NextCommit, NextLogon, Stored};
use format::{Act, Directive, Envelope, Recipient, Transcript};
use gatepost::queue::stored::StoredEnvelope;
use gatepost::smtp::dsn::Notify;
use gatepost::smtp::envelope::BodyType;
use gatepost::smtp::reply::Reply;
use policy::Gateway;
use rows::{ROWS, Shown};
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Sections without numbered rows.
const SECTIONS: &[&str] = &["addresses", "lines", "numbers", "order", "proxy", "sequence", "shutdown"];

/// The role and revision that a transcript is run with in every way, and those in which it must give
/// the same unless it fixes them.
const FIRST: (&str, &str) = ("gateway", "13.0");
const OTHERS: &[(&str, &str)] = &[("gateway", "4.0"), ("relay", "13.0"), ("relay", "4.0")];

/// A run costs its octets and lines, and cutting at every octet needs as many runs as octets.
/// Beyond this product the cuts are at the first and last [`EDGE_OCTETS`], around the first
/// [`LINE_ENDS`] line ends of every `C:` and `@raw`, and at [`BETWEEN`] places in between.
const EVERY_CUT_MAX_COST: usize = 400_000;
const EDGE_OCTETS: usize = 64;
const LINE_ENDS: usize = 8;
const BETWEEN: usize = 61;

/// How the client's octets arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    /// A line at a time, and the next group only when the replies have been compared.
    Lines,
    /// All between two directives in one piece.
    Pipelined,
    /// The same, but cut in two after this octet of the whole.
    Cut(usize),
    /// An octet at a time.
    Octets,
}

/// One run of a transcript.
struct Run<'t> {
    transcript: &'t Transcript,
    arrival: Arrival,
    driver: Driver,
    /// Client octets not yet sent.
    pending: Vec<u8>,
    /// Client octets sent.
    sent: usize,
    /// Expected reply lines not yet compared, with their line numbers.
    expected: Vec<(usize, &'t str)>,
    /// `{id}`s met in expected replies.
    ids_met: usize,
    /// Stored messages looked at.
    messages_met: usize,
    close_met: bool,
}

impl<'t> Run<'t> {
    fn new(transcript: &'t Transcript, arrival: Arrival) -> Self {
        let settings = &transcript.settings;
        let now = Instant::now();
        let policy = Box::new(Gateway::new(settings, now));
        let (profile, client) = (settings.profile.clone(), settings.client);
        Run {
            transcript,
            arrival,
            driver: match settings.door.admit(client, &profile) {
                Ok(is_marked) if settings.implicit_tls => Driver::connect_tls(profile, client, is_marked, now, policy),
                Ok(is_marked) => Driver::connect(profile, client, is_marked, now, policy),
                Err(reply) => Driver::refused(profile, client, reply, now, policy),
            },
            pending: Vec::new(),
            sent: 0,
            expected: Vec::new(),
            ids_met: 0,
            messages_met: 0,
            close_met: false,
        }
    }

    fn run(mut self) -> Result<Driver, String> {
        let transcript = self.transcript;
        for item in &transcript.items {
            let result = match &item.act {
                Act::Client(octets) => self.client(octets),
                Act::Server(text) => {
                    self.expected.push((item.line, text));
                    Ok(())
                }
                Act::Directive(directive) => self.settle().and_then(|()| self.direct(directive)),
            };
            result.map_err(|error| format!("line {}: {error}", item.line))?;
        }
        self.settle().map_err(|error| format!("at the end: {error}"))?;
        if self.driver.is_closed() != self.close_met {
            return Err(format!("at the end: the session has ended: {}", self.driver.is_closed()));
        }
        if self.messages_met != self.driver.stored().len() {
            return Err(format!("{} messages were stored, {} expected", self.driver.stored().len(), self.messages_met));
        }
        self.driver.finish();
        Ok(self.driver)
    }

    fn client(&mut self, octets: &[u8]) -> Result<(), String> {
        if self.arrival != Arrival::Lines {
            self.pending.extend_from_slice(octets);
            return Ok(());
        }
        if !self.expected.is_empty() {
            self.compare()?;
        }
        self.driver.feed(octets);
        Ok(())
    }

    /// Sends what is pending, and compares the replies with those expected.
    fn settle(&mut self) -> Result<(), String> {
        let pending = std::mem::take(&mut self.pending);
        let start = self.sent;
        self.sent += pending.len();
        match self.arrival {
            Arrival::Cut(cut) if (start + 1..self.sent).contains(&cut) => {
                let (head, tail) = pending.split_at(cut - start);
                self.driver.feed(head);
                self.driver.feed(tail);
            }
            Arrival::Octets => pending.chunks(1).for_each(|octet| self.driver.feed(octet)),
            _ if pending.is_empty() => {}
            _ => self.driver.feed(&pending),
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<(), String> {
        let mut wanted = String::new();
        let mut line = None;
        for (number, text) in std::mem::take(&mut self.expected) {
            line.get_or_insert(number);
            wanted.push_str(&self.with_id(text)?);
            wanted.push_str("\r\n");
        }
        let replies = String::from_utf8_lossy(&self.driver.take_replies()).into_owned();
        if replies == wanted {
            return Ok(());
        }
        let line = line.map_or(String::new(), |line| format!(" (from line {line})"));
        Err(format!("expected{line}:\n{}and got:\n{}", indented(&wanted), indented(&replies)))
    }

    /// The text with its `{id}` replaced by the id of the next stored message.
    fn with_id(&mut self, text: &str) -> Result<String, String> {
        if !text.contains("{id}") {
            return Ok(text.to_owned());
        }
        let stored = self.driver.stored().get(self.ids_met).ok_or("{id}, but no message was stored")?;
        self.ids_met += 1;
        Ok(text.replace("{id}", stored.id.text().as_str()))
    }

    fn direct(&mut self, directive: &Directive) -> Result<(), String> {
        // Writes are counted between two directives, of whatever kind.
        let writes = self.driver.take_writes();
        match directive {
            Directive::Wait => {}
            Directive::After(time) => self.driver.pass(*time),
            Directive::CommitFails => self.driver.set_next_commit(NextCommit { fails: true, takes: Duration::ZERO }),
            Directive::CommitTakes(takes) => self.driver.set_next_commit(NextCommit { fails: false, takes: *takes }),
            Directive::LogonTakes(takes) => {
                self.driver.set_next_logon(NextLogon { is_unavailable: false, takes: *takes });
            }
            Directive::LogonUnavailable => {
                self.driver.set_next_logon(NextLogon { is_unavailable: true, takes: Duration::ZERO });
            }
            Directive::Tls { is_done } => {
                if !self.driver.in_handshake() {
                    return Err("there is no handshake".to_owned());
                }
                self.driver.handshake(*is_done);
            }
            Directive::BodyFails => self.driver.fail_next_body(),
            Directive::ResourcesShort(short) => self.driver.set_resources_short(*short),
            Directive::Shutdown { at_once } => self.driver.shut_down(*at_once),
            Directive::Close => {
                self.close_met = true;
                if !self.driver.is_closed() {
                    return Err("the session has not ended".to_owned());
                }
            }
            Directive::Marked(marked) => {
                if self.driver.take_tarpitted() != *marked {
                    return Err(format!("the client was to be marked: {}", !marked));
                }
            }
            Directive::Writes(count) => {
                if self.arrival == Arrival::Pipelined && writes != *count {
                    return Err(format!("{writes} writes"));
                }
            }
            Directive::Message(content) => {
                self.messages_met += 1;
                let stored = self.message()?;
                if let Some(content) = content.as_ref().filter(|content| **content != stored.content) {
                    return Err(differ(content, &stored.content));
                }
            }
            Directive::Envelope(wanted) => {
                let stored = self.message()?.envelope();
                let found = written(&stored);
                if found != *wanted {
                    return Err(format!("the envelope is {found:?}"));
                }
                let client = text(stored.client());
                if client != self.transcript.settings.client.to_canonical().to_string() {
                    return Err(format!("the envelope's client is {client}"));
                }
            }
            Directive::Received(wanted) => {
                let stored = self.message()?;
                let wanted = wanted.replace("{id}", stored.id.text().as_str());
                if wanted.as_bytes() != stored.received {
                    return Err(differ(wanted.as_bytes(), &stored.received));
                }
            }
        }
        Ok(())
    }

    /// The stored message that is being looked at.
    fn message(&self) -> Result<&Stored, String> {
        let index = self.messages_met.checked_sub(1).ok_or("no @message yet")?;
        self.driver.stored().get(index).ok_or_else(|| format!("only {index} messages were stored"))
    }
}

/// The envelope as a transcript writes it.
fn written(stored: &StoredEnvelope<'_>) -> Envelope {
    let notify = |notify: Notify| {
        let mut octets = Vec::new();
        notify.write(&mut octets);
        text(&octets)
    };
    let recipients = stored.recipients().map(|recipient| Recipient {
        path: text(recipient.path),
        notify: recipient.notify.map(notify),
        orcpt: recipient.orcpt.map(text),
    });
    Envelope {
        from: text(stored.reverse_path()),
        to: recipients.collect(),
        body: match stored.body_type() {
            BodyType::SevenBit => None,
            BodyType::EightBitMime => Some("8BITMIME".to_owned()),
            BodyType::BinaryMime => Some("BINARYMIME".to_owned()),
        },
        ret: stored.ret().map(|ret| ret.as_str().to_owned()),
        envid: stored.envid().map(text),
        auth: stored.auth().map(text),
    }
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

fn indented(text: &str) -> String {
    text.split_inclusive("\r\n").map(|line| format!("    {}\n", line.escape_debug())).collect()
}

fn differ(wanted: &[u8], got: &[u8]) -> String {
    let show = |octets: &[u8]| octets[..octets.len().min(2000)].escape_ascii().to_string();
    format!("expected {} octets:\n    {}\nand got {}:\n    {}", wanted.len(), show(wanted), got.len(), show(got))
}

/// Where to cut a transcript's client octets in two.
fn cuts(transcript: &Transcript) -> Vec<usize> {
    let octets = transcript.client_octets;
    if octets * (transcript.items.len() + octets / 1024) <= EVERY_CUT_MAX_COST {
        return (1..octets).collect();
    }
    let mut at = 0;
    let mut cuts: BTreeSet<usize> = (1..octets).step_by(octets / BETWEEN).collect();
    cuts.extend((1..EDGE_OCTETS).chain(octets - EDGE_OCTETS..octets));
    for item in &transcript.items {
        if let Act::Client(client) = &item.act {
            let ends = client.iter().enumerate().filter(|(_, octet)| **octet == b'\n').map(|(index, _)| at + index);
            for end in ends.take(LINE_ENDS) {
                cuts.extend(end.saturating_sub(3).max(1)..(end + 4).min(octets));
            }
            at += client.len();
        }
    }
    cuts.into_iter().collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts")
}

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in folder.read_dir().expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(files_under(&path));
        } else if path.extension().is_some_and(|extension| extension == "smtp") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).expect("UTF-8")
}

/// The transcript as it is run in every way.
fn first(text: &str) -> Result<Transcript, String> {
    format::parse(text, FIRST.0, FIRST.1)
}

/// Runs a transcript in every way, and in the other roles and revisions; the first failure, in words.
fn run_every_way(text: &str) -> Result<(), String> {
    let transcript = first(text)?;
    let mut arrivals = vec![Arrival::Lines, Arrival::Pipelined];
    if !transcript.is_whole {
        arrivals.push(Arrival::Octets);
        arrivals.extend(cuts(&transcript).into_iter().map(Arrival::Cut));
    }
    for arrival in arrivals {
        Run::new(&transcript, arrival).run().map_err(|error| format!("{arrival:?}: {error}"))?;
    }
    for (role, revision) in OTHERS {
        let is_fixed = transcript.fixes_role && *role != FIRST.0 || transcript.fixes_revision && *revision != FIRST.1;
        if is_fixed {
            continue;
        }
        let transcript = format::parse(text, role, revision)?;
        for arrival in [Arrival::Lines, Arrival::Pipelined] {
            let run = Run::new(&transcript, arrival).run();
            run.map_err(|error| format!("{arrival:?}, {role} {revision}: {error}"))?;
        }
    }
    Ok(())
}

fn run_folder(folder: &str) {
    let files = files_under(&root().join(folder));
    assert!(!files.is_empty());
    let failures: Vec<String> = files
        .iter()
        .filter_map(|file| run_every_way(&read(file)).err().map(|error| format!("{}: {error}", file.display())))
        .collect();
    assert!(failures.is_empty(), "{} of {} transcripts failed\n{}", failures.len(), files.len(), failures.join("\n"));
}

macro_rules! folders {
    ($($folder:ident)*) => {
        const FOLDERS: &[&str] = &[$(stringify!($folder)),*];
        $(#[test] fn $folder() { run_folder(stringify!($folder)); })*
    };
}

folders! { a addresses b c d e f g h i lines numbers order proxy sequence shutdown }

#[test]
fn every_folder_is_run() {
    let files = files_under(&root());
    let folders: BTreeSet<String> = files.iter().map(|file| folder_of(file)).collect();
    assert_eq!(folders.iter().map(String::as_str).collect::<Vec<_>>(), FOLDERS);
}

fn folder_of(file: &Path) -> String {
    let relative = file.strip_prefix(root()).expect("under the root");
    relative.components().next().expect("a folder").as_os_str().to_string_lossy().into_owned()
}

/// Every row is shown where the table says, and no transcript belongs to none.
#[test]
fn every_row_is_shown() {
    let mut seen = HashSet::new();
    for file in files_under(&root()) {
        let stem = file.file_stem().expect("a name").to_string_lossy().into_owned();
        let folder = folder_of(&file);
        if SECTIONS.contains(&&*folder) {
            continue;
        }
        let row = stem.split('-').next().unwrap_or_default().to_owned();
        let shown = ROWS.iter().find(|(id, _)| *id == row).unwrap_or_else(|| panic!("{}: no such row", file.display()));
        assert!(shown.1.contains(&Shown::Transcript), "{}: the table says otherwise", file.display());
        assert!(
            row.to_lowercase().trim_end_matches(char::is_numeric) == folder,
            "{}: not in its folder",
            file.display()
        );
        seen.insert(row);
    }
    for (row, shown) in ROWS {
        assert!(!shown.is_empty(), "{row} is shown nowhere");
        for shown in *shown {
            match shown {
                Shown::Transcript => assert!(seen.contains(*row), "no transcript for {row}"),
                Shown::BlackBox(file) => {
                    let text = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(file));
                    let names_it = text.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == *row);
                    assert!(names_it, "{file} does not name {row}");
                }
            }
        }
    }
}

/// The page's numbering, without gaps.
#[test]
fn the_table_has_every_row() {
    let sections = [('A', 3), ('B', 7), ('C', 19), ('D', 2), ('E', 17), ('F', 8), ('G', 8), ('H', 2)];
    let numbered =
        sections.iter().flat_map(|(letter, last)| (1..=*last).map(move |number| format!("{letter}{number}")));
    let ids: Vec<String> = numbered.chain(["I".to_owned()]).collect();
    assert_eq!(ROWS.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids);
}

#[test]
fn every_reply_is_said() {
    // Said for a shard that cannot speak (E9), and to a proxy, before there is a session: tests of the
    // whole process show it (tests/watchdog, tests/gateway/proxy.rs).
    let mut said = HashSet::from([Reply::ConnectionDropped, Reply::ProxyHeaderMissing]);
    for file in files_under(&root()) {
        let transcript = first(&read(&file)).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        // Two refusals may have one text; successes do not.
        for item in &transcript.items {
            if let Act::Server(text) = &item.act {
                said.extend(Reply::ALL.iter().filter(|reply| reply.row().reason.is_none() && reply.text() == text));
            }
        }
        if let Ok(driver) = Run::new(&transcript, Arrival::Pipelined).run() {
            said.extend(driver.refusals());
        }
    }
    let silent: Vec<_> = Reply::ALL.iter().filter(|reply| !said.contains(reply)).collect();
    assert!(silent.is_empty(), "no transcript makes the server say {silent:?}");
}

/// A transcript that is wrong must not pass.
#[test]
fn wrong_transcripts_fail() {
    let wrong = [
        "@banner\nC: NOOP\nS: 250 2.0.0 ok\n",
        "@banner\nC: NOOP\n",
        "C: NOOP\nS: 250 2.0.0 OK\n",
        "@banner\nS: 250 2.0.0 OK\n",
        "@banner\nC: QUIT\nS: 221 2.0.0 Service closing transmission channel\n",
        "@banner\n@close\n",
        "@banner\n@message any\n",
        "@banner\n@after 1m\n",
        "@banner\n@marked yes\n",
        "@config tarpit=5s\n@banner\nC: WHAT\n@marked no\n@after 5s\nS: 500 5.3.3 Unrecognized command\n",
        "@config block=192.0.2.1\n@banner\n@close\n",
        // There is no handshake, it is not over, or it has not failed.
        "@config tls=offered\n@ehlo\n@tls\n",
        "@config tls=offered\n@ehlo\nC: STARTTLS\nS: 220 2.0.0 SMTP server ready\n@ehlo again\n",
        "@config tls=offered\n@ehlo\nC: STARTTLS\nS: 220 2.0.0 SMTP server ready\n@tls\n@close\n",
        "@config tls=implicit\n@banner\n",
        // Not this user, not here.
        "@config user=alice:secret plaintext-auth=yes\n@ehlo\nC: AUTH PLAIN AGFsaWNlAFNlY3JldA==\n\
         S: 235 2.7.0 Authentication successful\n",
        "@config user=alice:secret:bindings=587 plaintext-auth=yes\n@ehlo\nC: AUTH PLAIN AGFsaWNlAHNlY3JldA==\n\
         S: 235 2.7.0 Authentication successful\n",
        // What holds for one role or revision only.
        "@config inactivity-timeout=0\n@banner\n@after 5m\nS: 421 4.4.1 Connection timed out\n@close\n",
        "@config recipients=1\n@banner\nC: HELO x\nC: MAIL FROM:<>\nC: RCPT TO:<a@example.org>\nC: RCPT TO:<a@example.org>\n\
         S: 250 mx.example.org Hello [192.0.2.1]\nS: 250 2.1.0 Sender OK\nS: 250 2.1.5 Recipient OK\n\
         S: 452 4.5.3 Too many recipients\n",
    ];
    for text in wrong {
        assert!(first(text).is_ok() && run_every_way(text).is_err(), "{text}");
    }
    let message = "@ehlo\nC: MAIL FROM:<>\nS: 250 2.1.0 Sender OK\nC: RCPT TO:<a@example.org>\nS: 250 2.1.5 Recipient OK\n\
                   C: DATA\nS: 354 Start mail input; end with <CRLF>.<CRLF>\nC: x\nC: .\n\
                   S: 250 2.6.0 {id} Queued mail for delivery\n";
    let run = |rest: &str| {
        assert!(first(rest).is_ok(), "{rest}");
        run_every_way(&format!("{message}{rest}"))
    };
    assert_eq!(run("@message\n| x\n@envelope from=<> to=<a@example.org>\n"), Ok(()));
    for rest in [
        "",
        "@message\n| y\n",
        "@message \"x\\n\"\n",
        "@message any\n@message any\n",
        "@message any\n@envelope from=<b@c> to=<a@example.org>\n",
        "@message any\n@envelope from=<> to=<b@example.org>\n",
        "@message any\n@envelope from=<> to=<a@example.org> body=8BITMIME\n",
        "@message any\n@received\n| Received: from x\n",
    ] {
        assert!(run(rest).is_err(), "{rest}");
    }
}
