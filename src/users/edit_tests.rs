//! Changes touch the line they are about, and no other.

use super::*;
use proptest::prelude::*;
use std::sync::LazyLock;
use zeroize::Zeroizing;

static HASH: LazyLock<String> = LazyLock::new(|| hash_password(b"secret", &[1; 16]));

fn entry(name: &str) -> NewEntry {
    NewEntry {
        name: name.parse().expect("a name"),
        password: Zeroizing::new(HASH.clone()),
        nt_hash: None,
        senders: Vec::new(),
        bindings: Vec::new(),
    }
}

fn line(name: &str) -> String {
    format!("{name} password={}", *HASH)
}

#[track_caller]
fn added(text: &str, name: &str) -> (String, Change) {
    let (text, change) = add(text, &entry(name)).expect("valid");
    (text.as_str().to_owned(), change)
}

#[track_caller]
fn removed(text: &str, name: &str) -> Option<String> {
    remove(text, &name.parse().expect("a name")).expect("valid").map(|text| text.as_str().to_owned())
}

#[test]
fn entries_are_added_behind_the_others() {
    assert_eq!(added("", "alice"), (line("alice") + "\n", Change::Added));
    assert_eq!(added("# none", "alice"), (format!("# none\n{}\n", line("alice")), Change::Added));
    let text = format!("# all\n\n{}\r\n# end\n", line("bob"));
    assert_eq!(added(&text, "alice"), (format!("{text}{}\n", line("alice")), Change::Added));
    // `ALICE` in a comment is nobody.
    assert_eq!(added("#alice\n# alice\n", "alice").1, Change::Added);
}

#[test]
fn an_entry_is_changed_where_it_stands() {
    let text = format!("\u{feff}# all\r\n\tALICE nt-hash={:032} senders=<>\r\n\r\n{}", 0, line("bob"));
    let expected = format!("\u{feff}# all\r\n{}\r\n\r\n{}", line("alice"), line("bob"));
    assert_eq!(added(&text, "alice"), (expected.clone(), Change::Changed));
    let expected = expected.replace(&line("bob"), &line("Bob"));
    assert_eq!(added(&expected, "Bob"), (expected, Change::Changed));
    assert_eq!(added(&format!("\u{feff}{}", line("a")), "A"), (format!("\u{feff}{}", line("A")), Change::Changed));
}

#[test]
fn entries_are_removed() {
    let text = format!("# all\n{}\n# about bob\n{}", line("alice"), line("bob"));
    assert_eq!(removed(&text, "Alice"), Some(format!("# all\n# about bob\n{}", line("bob"))));
    assert_eq!(removed(&text, "bob"), Some(format!("# all\n{}\n# about bob\n", line("alice"))));
    assert_eq!(removed(&text, "carol"), None);
    assert_eq!(removed("# alice\n", "alice"), None);
}

#[test]
fn everything_of_an_entry_is_written() {
    let entry = NewEntry {
        nt_hash: Some(Zeroizing::new([0x0a; 16])),
        senders: ["a@b.c", ".d.e", "<>"].map(|item| item.parse().expect(item)).into(),
        bindings: ["587", "[::1]:25"].map(|item| item.parse().expect(item)).into(),
        ..entry("alice")
    };
    let (text, _) = add("", &entry).expect("valid");
    let expected =
        format!("{} nt-hash={} senders=a@b.c,.d.e,<> bindings=587,[::1]:25\n", line("alice"), "0a".repeat(16));
    assert_eq!(text.as_str(), expected);
    assert!(!format!("{entry:?}").contains("argon2"));
}

#[test]
fn a_broken_file_is_left_alone() {
    let text = format!("{}\nbob\n", line("alice"));
    assert_eq!(add(&text, &entry("carol")).expect_err("broken").line, 2);
    assert_eq!(remove(&text, &"alice".parse().expect("a name")).expect_err("broken").line, 2);
    // Nor is a file made broken.
    let entry = NewEntry { password: Zeroizing::new("x y".to_owned()), ..entry("carol") };
    assert_eq!(add("", &entry).expect_err("no PHC string").line, 1);
}

/// A file of comments, blank lines and entries with different names, and its line ends.
fn file() -> impl Strategy<Value = String> {
    let lines = prop::collection::vec((0..4_u8, "[ \t]{0,2}", prop::bool::ANY), 0..12);
    (lines, prop::bool::ANY).prop_map(|(lines, is_ended)| {
        let mut text = String::new();
        for (index, (kind, space, is_crlf)) in lines.into_iter().enumerate() {
            match kind {
                0 => text += &format!("{space}# user{index} comment"),
                1 => text += &space,
                _ => text += &format!("{space}user{index} nt-hash={index:032x}{space}"),
            }
            text += if is_crlf { "\r\n" } else { "\n" };
        }
        if !is_ended {
            text.truncate(text.trim_end_matches(['\r', '\n']).len());
        }
        text
    })
}

proptest! {
    #[test]
    fn adding_and_removing_changes_one_line(text in file(), number in 0..12_usize) {
        let name = format!("USER{number}");
        let was_there = Users::parse(&text).expect("valid").find(&name).is_some();
        let (with, change) = added(&text, &name);
        prop_assert_eq!(change == Change::Changed, was_there);
        let others = |text: &str| {
            let is_other = |line: &&str| line.split_whitespace().next().is_none_or(|word| word.to_uppercase() != name);
            text.lines().filter(is_other).map(str::to_owned).collect::<Vec<_>>()
        };
        prop_assert_eq!(others(&with), others(&text));
        let users = Users::parse(&with).expect("valid");
        prop_assert!(users.find(&name).is_some_and(|user| user.has_password()));
        // In place, or behind all others.
        let names = |text: &str| {
            Users::parse(text).expect("valid").iter().map(|user| user.name().to_lowercase()).collect::<Vec<_>>()
        };
        let mut expected = names(&text);
        if !was_there {
            expected.push(name.to_lowercase());
        }
        prop_assert_eq!(names(&with), expected);
        // Twice is once.
        prop_assert_eq!(added(&with, &name), (with.clone(), Change::Changed));
        let without = removed(&with, &name).expect("it is there");
        prop_assert_eq!(others(&without), others(&text));
        prop_assert_eq!(removed(&without, &name), None);
    }
}
