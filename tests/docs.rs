//! Tables in the documentation are written from the tables of the program, and are the same.
//!
//! `GATEPOST_BLESS=1 cargo test --test docs` writes them.

use gatepost::log::{Event, Field, Format, Level, Log, Settings, table};
use gatepost::metrics;
use gatepost::smtp::reply::Reply;
use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// Writes a table, as Markdown.
type Write = fn() -> String;

/// Which page has which table, and what writes it.
const TABLES: &[(&str, &str, Write)] = &[
    ("docs/log.md", "events", table::event_table_markdown),
    ("docs/log.md", "fields", table::field_table_markdown),
    ("docs/metrics.md", "metrics", metrics::metrics_markdown),
    ("docs/metrics.md", "reasons", metrics::reasons_markdown),
];

/// The page with this table between its markers; `None` where there are none.
fn with_table(page: &str, name: &str, table: &str) -> Option<String> {
    let marker = format!("<!-- generated: {name} -->\n");
    let (before, rest) = page.split_once(&marker)?;
    let end = rest.find("<!-- end -->\n")?;
    Some([before, &marker, table, rest.get(end..)?].concat())
}

#[test]
fn tables_are_those_of_the_program() {
    let bless = std::env::var_os("GATEPOST_BLESS").is_some_and(|value| value == "1");
    for (path, name, write) in TABLES {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let page = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{path}: {error}"));
        let blessed = with_table(&page, name, &write()).unwrap_or_else(|| panic!("{path} has no table {name:?}"));
        if bless && blessed != page {
            fs::write(&file, &blessed).unwrap_or_else(|error| panic!("{path}: {error}"));
        } else {
            assert!(
                blessed == page,
                "{path}: {name} is out of date; GATEPOST_BLESS=1 cargo test --test docs writes it"
            );
        }
    }
}

#[test]
fn tables_are_put_between_their_markers() {
    let page = "a\n<!-- generated: x -->\nold\n<!-- end -->\nb\n<!-- generated: y -->\n<!-- end -->\n";
    assert_eq!(with_table(page, "x", "new\n").as_deref(), Some(&*page.replace("old", "new")));
    assert_eq!(with_table(page, "y", "").as_deref(), Some(page));
    assert_eq!(with_table(page, "z", "new\n"), None);
}

/// The log's page shows a record in both formats.
#[test]
fn examples_are_what_is_written() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/log.md")).expect("a page");
    let path = std::env::temp_dir().join(format!("gatepost-docs-{}", std::process::id()));
    for (format, fence) in [(Format::Text, "```text\n"), (Format::Json, "```json\n")] {
        let settings = Settings { format, level: Level::Warn, file: Some(path.clone()) };
        let log = Log::start(&settings, ::metrics::Counter::noop()).expect("a log");
        let sender = log.sender();
        let time = UNIX_EPOCH + Duration::from_micros(1_795_300_827_123_456);
        let mut record = sender.record(Event::Refused, time).expect("written");
        record.str(Field::Session, "0-42").str(Field::Client, "192.0.2.1").str(Field::Helo, "mail.example.net");
        record.str(Field::Reason, Reply::UnrecognizedCommand.row().reason.expect("a refusal"));
        record.str(Field::Reply, Reply::UnrecognizedCommand.text());
        record.end();
        let is_flushed = log.flush(Duration::from_secs(60));
        let written = fs::read_to_string(&path).expect("a log");
        fs::remove_file(&path).expect("a log");
        assert!(is_flushed);
        assert!(page.contains(&[fence, &written, "```\n"].concat()), "docs/log.md does not show {written}");
    }
}
