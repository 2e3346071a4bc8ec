//! Rules of the house that the compiler does not know (STYLE.md, DESIGN.md "Rooms"), kept by
//! reading the sources. A rule that clippy can keep is in `clippy.toml` instead.

use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file: what can be read in one sitting.
const FILE_MAX_LINES: usize = 700;

/// The rooms without sockets, files or clock.
const PURE: &[&str] = &["src/smtp/", "src/policy/", "src/users/", "src/queue/", "src/delivery/", "src/limits.rs"];

/// What a pure room may not name.
const IMPURE: &[&str] = &[
    "glommio",
    "tokio",
    "std::net::Tcp",
    "std::net::Udp",
    "TcpStream",
    "TcpListener",
    "Instant::now",
    "SystemTime::now",
    "std::fs",
    "std::os",
    "std::env",
    "std::thread",
    "rustix",
    "libc::",
    "getrandom",
    ".await",
    "crate::shard",
    "crate::control",
    "crate::config",
    "crate::metrics",
    "crate::cmd",
];

/// Who may use whom among the pure rooms: room, and the rooms it may name.
const MAY_USE: &[(&str, &[&str])] = &[
    ("src/smtp/", &["smtp", "limits"]),
    ("src/policy/", &["policy", "smtp", "limits"]),
    ("src/users/", &["users", "policy", "smtp", "limits"]),
    ("src/queue/", &["queue", "smtp", "limits"]),
    ("src/delivery/", &["delivery", "queue", "policy", "smtp", "limits"]),
    ("src/limits.rs", &[]),
];

const ROOMS: &[&str] = &[
    "cmd", "config", "control", "delivery", "limits", "log", "metrics", "policy", "queue", "shard", "smtp", "stderr",
    "stdout", "users",
];

/// Where unsafe code is allowed, each with its SAFETY comments.
const UNSAFE: &[&str] = &["src/shard/net/park.rs", "src/control/preflight.rs", "src/main.rs"];

/// Where the text of a reply may stand: the table, and the writer of EHLO's list.
const REPLIES: &[&str] = &["src/smtp/reply.rs", "src/smtp/server/verbs.rs"];

struct Source {
    /// Relative to the repository, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// The text without tests and comments.
    fn product(&self) -> String {
        if is_test_file(&self.path) {
            return String::new();
        }
        // Tests stand at the end of a file.
        let product = match self.text.find("\n#[cfg(test)]\nmod tests {") {
            Some(tests) => &self.text[..tests],
            None => &self.text,
        };
        let lines = product.lines().map(|line| {
            let comment = line.match_indices("//").find(|(at, _)| !in_string(line, *at));
            comment.map_or(line, |(at, _)| &line[..at])
        });
        lines.flat_map(|line| [line, "\n"]).collect()
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path.starts_with(place))
    }
}

/// Whether the octet at `at` is inside a string literal of its line (`"https://..."`).
fn in_string(line: &str, at: usize) -> bool {
    line[..at].replace("\\\"", "").replace("'\"'", "").matches('"').count() % 2 == 1
}

/// Files that are modules of tests as a whole.
fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.ends_with("_tests.rs")
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files);
    collect(&root.join("loadtest/src"), &mut files);
    files.sort();
    let sources = files.into_iter().map(|file| Source {
        path: file.strip_prefix(root).expect("under the root").to_string_lossy().replace('\\', "/"),
        text: fs::read_to_string(&file).expect("UTF-8"),
    });
    sources.collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Lines of the product's code that `offends` picks, as `path: line`.
fn offenders(of: impl Fn(&Source) -> bool, offends: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| of(source)) {
        let product = source.product();
        found.extend(
            product.lines().filter(|line| offends(line)).map(|line| format!("{}: {}", source.path, line.trim())),
        );
    }
    found
}

fn contains_word(line: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part))
}

#[test]
fn the_scan_sees_the_sources() {
    let sources = sources();
    for path in ["src/smtp/server/mod.rs", "src/queue/spool.rs", "loadtest/src/main.rs"] {
        let source = sources.iter().find(|source| source.path == path).unwrap_or_else(|| panic!("no {path}"));
        assert!(!source.product().is_empty());
    }
    let example = Source {
        path: "src/x.rs".to_owned(),
        text: "//! Doc\nlet url = \"http://x\"; // words\n/// doc\nfn f() {}\n#[cfg(test)]\nmod tests {\nsecret\n}\n"
            .to_owned(),
    };
    assert_eq!(example.product(), "\nlet url = \"http://x\"; \n\nfn f() {}\n");
    assert!(contains_word("a unsafe {", "unsafe") && !contains_word("unsafe_code", "unsafe"));
}

/// DESIGN, "The machines": the proof is the only way to the 250 after DATA, and only the queue
/// gives it, after a sync.
#[test]
fn only_the_queue_attests() {
    let definition = "pub(crate) fn attest(";
    let outside = offenders(
        |source| !source.is_in(&["src/queue/"]),
        |line| contains_word(line, "attest") && !line.contains(definition),
    );
    assert!(outside.is_empty(), "{outside:#?}");
    let definitions = offenders(|_| true, |line| line.contains("fn attest"));
    assert_eq!(definitions, [format!("src/smtp/durable.rs: {definition}id: QueueId) -> Self {{")]);
    let attested = offenders(|source| source.is_in(&["src/queue/"]), |line| contains_word(line, "attest"));
    assert_eq!(attested.len(), 1, "one place, behind a sync: {attested:#?}");
}

#[test]
fn pure_rooms_are_pure() {
    let impure = offenders(|source| source.is_in(PURE), |line| IMPURE.iter().any(|word| line.contains(word)));
    assert!(impure.is_empty(), "{impure:#?}");
}

#[test]
fn rooms_use_only_whom_they_may() {
    for (room, allowed) in MAY_USE {
        let foreign = offenders(
            |source| source.path.starts_with(room),
            |line| {
                ROOMS.iter().any(|other| !allowed.contains(other) && contains_word(line, &format!("crate::{other}")))
            },
        );
        assert!(foreign.is_empty(), "{room}: {foreign:#?}");
    }
}

/// Only `main` and `control` know `shard`.
#[test]
fn nobody_else_knows_the_shards() {
    let knowing = offenders(
        |source| !source.is_in(&["src/shard/", "src/control/", "src/main.rs", "src/lib.rs", "src/cmd/", "loadtest/"]),
        |line| contains_word(line, "crate::shard") || contains_word(line, "gatepost::shard"),
    );
    assert!(knowing.is_empty(), "{knowing:#?}");
}

/// Where the reader of standard output or error has ended, these macros panic: in a gateway that ends
/// a delivery, or a task of the control thread.
#[test]
fn nobody_panics_for_want_of_a_reader() {
    let macros = offenders(
        |source| source.path.starts_with("src/") && !source.is_in(&["src/cmd/"]),
        |line| ["print!(", "println!(", "dbg!("].iter().any(|name| line.contains(name)),
    );
    assert!(macros.is_empty(), "use crate::stderr: {macros:#?}");
}

#[test]
fn unsafe_code_stays_where_it_is() {
    let unsafe_code = offenders(|source| !source.is_in(UNSAFE), |line| contains_word(line, "unsafe"));
    assert!(unsafe_code.is_empty(), "{unsafe_code:#?}");
    for source in sources().iter().filter(|source| source.is_in(UNSAFE)) {
        let blocks = source.product().lines().filter(|line| line.contains("unsafe {")).count();
        let reasons = source.text.matches("// SAFETY:").count();
        assert!(reasons >= blocks, "{}: {blocks} unsafe blocks, {reasons} SAFETY comments", source.path);
    }
}

/// STYLE 4: a reply's text stands in one table.
#[test]
fn reply_texts_stand_in_the_table() {
    let is_reply = |line: &str| {
        line.match_indices('"').any(|(at, _)| {
            matches!(line.as_bytes().get(at + 1..at + 5), Some([b'2'..=b'5', b'0'..=b'9', b'0'..=b'9', b' ' | b'-']))
        })
    };
    assert!(is_reply(r#"let x = "250 2.0.0 OK";"#) && !is_reply("let x = 250 - 1; // \"600 x\""));
    let elsewhere = offenders(|source| source.path.starts_with("src/") && !source.is_in(REPLIES), is_reply);
    assert!(elsewhere.is_empty(), "{elsewhere:#?}");
    // The one exception: EHLO and its list, HELO.
    let hello = offenders(
        |source| source.path == "src/smtp/server/verbs.rs",
        |line| {
            let list =
                ["250{dash}", "250-SIZE", "250-{name}", "250-{STARTTLS}", "250-{AUTH}", "250 ENHANCEDSTATUSCODES"];
            is_reply(line) && !list.iter().any(|text| line.contains(text))
        },
    );
    assert!(hello.is_empty(), "{hello:#?}");
}

/// A requirement is quoted as `//= [MS-OXSMTP] 3.2.7 Name`, with the revision where only 4.0 has it,
/// or by its RFC or other document of Microsoft's and section; lines behind it go on with it.
#[test]
fn requirements_are_named_in_one_form() {
    let newest = ["2.2.1", "3.1.5.1", "3.2.2", "3.2.5.1", "3.2.6", "3.2.7"];
    let revision_4 = ["1.5", "3.2.2", "3.2.3", "3.2.5", "3.2.6", "3.2.7"];
    let is_named = |text: &str| {
        let words: Vec<&str> = text.split([' ', ',', ':', ';']).collect();
        match words[..] {
            ["[MS-OXSMTP]", "4.0", section, name, ..] => revision_4.contains(&section) && !name.is_empty(),
            ["[MS-OXSMTP]", section, name, ..] => newest.contains(&section) && !name.is_empty(),
            ["[MS-NLMP]" | "[MS-XLOGIN]", section, ..] => section.starts_with(|digit: char| digit.is_ascii_digit()),
            ["RFC", number, "section", section, ..] => {
                number.parse::<u16>().is_ok() && section.starts_with(|digit: char| digit.is_ascii_digit())
            }
            _ => false,
        }
    };
    let mut seen = 0;
    for source in sources() {
        let mut goes_on = false;
        for line in source.text.lines() {
            let quoted = line.trim_start().strip_prefix("//= ");
            if let Some(text) = quoted.filter(|_| !goes_on) {
                assert!(is_named(text), "{}: {text}", source.path);
                seen += 1;
            }
            goes_on = quoted.is_some();
        }
    }
    assert!(seen > 20, "only {seen} requirements are named");
}

#[test]
fn files_stay_readable_in_one_sitting() {
    let long: Vec<String> = sources()
        .iter()
        .map(|source| (source.text.lines().count(), &source.path))
        .filter(|(lines, _)| *lines > FILE_MAX_LINES)
        .map(|(lines, path)| format!("{path}: {lines} lines: it has two subjects"))
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn rooms_say_what_lives_there() {
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|source| source.path.ends_with("/mod.rs") || source.path.ends_with("/lib.rs"))
        .filter(|source| !source.text.starts_with("//!"))
        .map(|source| source.path)
        .collect();
    assert!(silent.is_empty(), "{silent:#?}");
}

/// STYLE 8: no locks on a shard's path, no sleep, no queue without a bound. `control` and `main`
/// are not on that path: their threads may wait.
#[test]
fn shards_take_no_locks() {
    let words =
        ["Mutex", "RwLock", "Condvar", "thread::sleep", "block_on", "unbounded", "mpsc::channel", "spawn_blocking"];
    let locks = offenders(
        |source| source.path.starts_with("src/") && !source.is_in(&["src/control/", "src/main.rs", "src/cmd/"]),
        |line| words.iter().any(|word| contains_word(line, word)),
    );
    assert!(locks.is_empty(), "{locks:#?}");
}
