//! Tables in the documentation are written from the tables of the program, and are the same.
//!
//! `GATEPOST_BLESS=1 cargo test --test docs` writes them.

use gatepost::log::table;
use std::fs;
use std::path::Path;

/// Which page has which table, and what writes it.
const TABLES: &[(&str, &str, fn() -> String)] =
    &[("docs/log.md", "events", table::event_table_markdown), ("docs/log.md", "fields", table::field_table_markdown)];

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
