//! The grammar, the lookups, and that every login costs the same.

use super::password::computed;
use super::*;
use crate::smtp::address::mailbox;
use proptest::prelude::*;
use std::sync::LazyLock;

/// Made by the reference implementation: `argon2 somesalt -id -t 2 -k 65536 -p 1` of "password" (its
/// published test vectors).
const REFERENCE_ID: &str = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";

/// One that is quick to verify, of "secret".
static QUICK: LazyLock<String> = LazyLock::new(|| quick("secret"));

const NT: &str = "8846f7eaee8fb117ad06bdd830b7586c";

fn quick(password: &str) -> String {
    use argon2::PasswordHasher;
    let params = argon2::Params::new(8, 1, 1, None).expect("the least there may be");
    let hash = argon2::Argon2::from(params).hash_password_with_salt(password.as_bytes(), b"0123456789abcdef");
    hash.expect("valid").to_string()
}

fn users(text: &str) -> Users {
    Users::parse(&text.replace("HASH", &QUICK)).expect(text)
}

fn names(users: &Users) -> Vec<&str> {
    users.iter().map(User::name).collect()
}

fn right(user: Option<Arc<User>>) -> Option<String> {
    user.map(|user| user.name().to_owned())
}

#[test]
fn a_file() {
    let text = "\u{feff}# name key=value\r\n\r\nalice  password=HASH\tsenders=<>\r\n  # indented\n\n bob@Example.org nt-hash=8846F7EAEE8FB117AD06BDD830B7586C\nJürgen password=HASH";
    let users = users(text);
    assert_eq!(names(&users), ["alice", "bob@Example.org", "Jürgen"]);
    assert!(users.has_password() && users.has_nt_hash() && !users.is_empty());
    assert_eq!(users.len(), 3);
    let empty = Users::parse("# nobody\n").expect("a comment");
    assert!(empty.is_empty() && !empty.has_password() && !empty.has_nt_hash());
}

#[test]
fn errors_name_the_line_and_no_secret() {
    let secret = "hunter2";
    for (line, words) in [
        ("password=HASH", &["name"][..]),
        ("#no\u{0}", &[]),
        ("a=b password=HASH", &["name", "'='"]),
        ("a\u{200b}b password=HASH", &["name"]),
        ("a\u{7f}b password=HASH", &["name"]),
        ("alice", &["neither password= nor nt-hash=", "gatepost user add"]),
        ("alice senders=example.org", &["neither"]),
        ("alice hunter2", &["word 2", "password=", "bindings="]),
        ("alice password=HASH hunter2=x", &["word 3"]),
        ("alice password=HASH # hunter2", &["word 3", "comment"]),
        ("alice Password=HASH", &["word 2"]),
        ("alice password=HASH password=HASH", &["word 3", "take one"]),
        ("alice nt-hash=NT password=HASH nt-hash=NT", &["word 4"]),
        ("alice password=hunter2", &["password= is not a PHC string"]),
        ("alice password=", &["PHC"]),
        ("alice password=$argon2id$v=19$m=8,t=1,p=1$hunter2hunter2", &["PHC"]),
        ("alice password=$scrypt$v=19$m=8,t=1,p=1$c29tZXNhbHQ$aHVudGVyMmh1bnRlcjI", &["argon2id, argon2i or argon2d"]),
        ("alice password=$argon2id$v=20$m=8,t=1,p=1$c29tZXNhbHQ$aHVudGVyMmh1bnRlcjI", &["version"]),
        ("alice password=$argon2id$v=19$m=7,t=1,p=1$c29tZXNhbHQ$aHVudGVyMmh1bnRlcjI", &["parameters"]),
        ("alice password=$argon2id$v=19$m=4000000000,t=1,p=1$c29tZXNhbHQ$aHVudGVyMmh1bnRlcjI", &["costs too much"]),
        ("alice password=$argon2id$v=19$m=8,t=65,p=1$c29tZXNhbHQ$aHVudGVyMmh1bnRlcjI", &["costs too much", "t=64"]),
        ("alice nt-hash=hunter2", &["nt-hash= is not 32"]),
        ("alice nt-hash=+846f7eaee8fb117ad06bdd830b7586c", &["nt-hash="]),
        ("alice nt-hash=NT0", &["nt-hash="]),
        ("alice password=HASH senders=", &["senders= has \"\"", "<>"]),
        ("alice password=HASH senders=a@b.c,", &["senders= has \"\""]),
        ("alice password=HASH senders=a@b@c", &["\"a@b@c\""]),
        ("alice password=HASH senders=*", &["\"*\""]),
        ("alice password=HASH senders=a@", &["\"a@\""]),
        ("alice password=HASH senders=a@.b.c", &["\"a@.b.c\""]),
        ("alice password=HASH bindings=smtp", &["bindings= has \"smtp\"", "587"]),
        ("alice password=HASH bindings=65536", &["\"65536\""]),
        ("alice password=HASH bindings=0", &["\"0\""]),
        ("alice password=HASH bindings=", &["\"\""]),
        ("alice password=HASH bindings=192.0.2.1", &["\"192.0.2.1\""]),
        ("alice password=HASH bindings=192.0.2.1:0", &["\"192.0.2.1:0\""]),
        ("BOB password=HASH", &["\"BOB\"", "line 2", "without case"]),
    ] {
        let text = format!("# one\nbob password=HASH\n\n{line}\nmore password=HASH\n");
        let result = Users::parse(&text.replace("HASH", &QUICK).replace("NT", NT));
        if words.is_empty() {
            assert!(result.is_ok(), "{line}");
            continue;
        }
        let error = result.expect_err(line).to_string();
        assert!(error.starts_with("line 4: "), "{line}: {error}");
        for word in words {
            assert!(error.contains(word), "{line}: {word:?} is missing: {error}");
        }
        assert!(!error.contains(secret) && !error.contains(QUICK.as_str()), "{line}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn names_have_a_length() {
    let longest = "é".repeat(127);
    assert!(longest.parse::<UserName>().is_ok() && format!("{longest}x").parse::<UserName>().is_err());
    assert!("".parse::<UserName>().is_err() && "#a".parse::<UserName>().is_err() && "a#".parse::<UserName>().is_ok());
}

#[test]
fn what_others_write_verifies() {
    let text = format!("alice password={REFERENCE_ID}\nbob password={}\n", hash_password(b"password", &[7; 16]));
    let users = Users::parse(&text).expect("valid");
    assert!(text.contains("password=$argon2id$v=19$m=19456,t=2,p=1$"));
    for name in ["alice", "bob"] {
        assert_eq!(right(users.verify_password(name, b"password")).as_deref(), Some(name));
        assert_eq!(right(users.verify_password(name, b"Password")), None);
    }
    assert_ne!(hash_password(b"password", &[7; 16]), hash_password(b"password", &[8; 16]));
}

/// [RFC 9106] calls the versions 0x10 and 0x13; the first wrote none.
#[test]
fn other_variants_verify() {
    for (algorithm, version, written) in [
        (argon2::Algorithm::Argon2i, argon2::Version::V0x10, ""),
        (argon2::Algorithm::Argon2d, argon2::Version::V0x10, "$v=16"),
        (argon2::Algorithm::Argon2i, argon2::Version::V0x13, "$v=19"),
    ] {
        use argon2::PasswordHasher;
        let params = argon2::Params::new(32, 2, 2, Some(24)).expect("valid");
        let hash = argon2::Argon2::new(algorithm, version, params).hash_password_with_salt(b"secret", b"somesalt");
        let hash = hash.expect("valid").to_string();
        let number = u32::from(version);
        let hash = hash.replace(&format!("$v={number}"), written);
        let users = Users::parse(&format!("a password={hash}")).expect("valid");
        assert!(users.verify_password("a", b"secret").is_some(), "{hash}");
        assert!(users.verify_password("a", b"Secret").is_none(), "{hash}");
    }
}

#[test]
fn names_are_found_without_case_and_behind_a_domain() {
    let users =
        users("alice password=HASH\nJÜRGEN password=HASH\nODD\\bob password=HASH\nbob@example.org password=HASH");
    for (name, found) in [
        ("alice", Some("alice")),
        ("ALICE", Some("alice")),
        ("EXAMPLE\\Alice", Some("alice")),
        ("\\alice", Some("alice")),
        ("jürgen", Some("JÜRGEN")),
        ("odd\\Bob", Some("ODD\\bob")),
        ("odd\\odd\\bob", Some("ODD\\bob")),
        ("Bob@Example.ORG", Some("bob@example.org")),
        ("bob", None),
        ("alice@example.org", None),
        ("EXAMPLE\\", None),
        ("EXAMPLE\\EXAMPLE\\alice", None),
        (" alice", None),
        ("", None),
    ] {
        assert_eq!(right(users.verify_password(name, b"secret")).as_deref(), found, "{name:?}");
    }
}

/// One computation with the file's parameters, whoever asks.
#[test]
fn every_login_costs_one_hash() {
    let users = users(&format!("alice password=HASH nt-hash={NT}\nbob nt-hash={NT}\ncarol password=HASH"));
    for (name, is_right, is_right_nt) in [
        ("alice", true, true),
        ("bob", false, true),
        ("carol", true, false),
        ("nobody", false, false),
        ("", false, false),
    ] {
        for password in ["secret", "wrong", ""] {
            let (user, hashes) = computed::during(|| users.verify_password(name, password.as_bytes()));
            assert_eq!((user.is_some(), hashes), (is_right && password == "secret", 1), "{name} {password}");
        }
        for says in [true, false] {
            let mut asked = Vec::new();
            let verify = |hash: &[u8; 16]| {
                asked.push(*hash);
                says
            };
            assert_eq!(users.verify_nt_hash(name, verify).is_some(), says && is_right_nt, "{name}");
            assert_eq!(asked.len(), 1);
            let own = u128::from_be_bytes(asked[0]) == u128::from_str_radix(NT, 16).expect("hexadecimal");
            assert_eq!(own, is_right_nt, "{name}");
        }
    }
}

#[test]
fn the_dummy_costs_what_the_most_expensive_entry_does() {
    let costs = |text: &str| {
        let hash = users(text).dummy;
        let params = hash.params();
        (params.m_cost(), params.t_cost(), params.output_len())
    };
    assert_eq!(costs(""), (19456, 2, None));
    assert_eq!(costs(&format!("a nt-hash={NT}")), (19456, 2, None));
    assert_eq!(costs("a password=HASH"), (8, 1, Some(32)));
    assert_eq!(costs(&format!("a password=HASH\nb password={REFERENCE_ID}\nc password=HASH")), (65536, 2, Some(32)));
}

#[test]
fn senders() {
    let users = users(
        "any password=HASH\nlist password=HASH senders=Alice@Example.org,example.net,.example.com,x@[IPv6:2001:db8::1],\"q\"@q.example\nnull password=HASH senders=<>",
    );
    let user = |name: &str| users.find(name).expect(name).clone();
    for (sender, allowed) in [
        (Some("alice@example.org"), true),
        (Some("ALICE@EXAMPLE.ORG"), true),
        (Some("bob@example.org"), false),
        (Some("alice@sub.example.org"), false),
        (Some("\"alice\"@example.org"), false),
        (Some("anybody@example.NET"), true),
        (Some("anybody@sub.example.net"), false),
        (Some("anybody@a.b.Example.com"), true),
        (Some("anybody@example.com"), false),
        (Some("anybody@xexample.com"), false),
        (Some("x@[IPv6:2001:DB8:0::1]"), true),
        (Some("x@[IPv6:2001:db8::2]"), false),
        (Some("\"Q\"@q.example"), true),
        (Some("q@q.example"), false),
        (Some("alice"), false),
        (None, false),
    ] {
        let parsed = sender.map(|sender| mailbox(sender.as_bytes()).expect("a mailbox"));
        assert_eq!(user("list").may_send_as(parsed.as_ref(), None), allowed, "{sender:?}");
        assert!(user("any").may_send_as(parsed.as_ref(), None));
        assert_eq!(user("null").may_send_as(parsed.as_ref(), None), sender.is_none());
    }
    let unqualified = mailbox(b"alice").expect("a mailbox");
    assert!(user("list").may_send_as(Some(&unqualified), Some("example.org")));
    assert!(!user("list").may_send_as(Some(&unqualified), Some("example.edu")));
}

#[test]
fn bindings() {
    let users = users("any password=HASH\nsome password=HASH bindings=587,192.0.2.1:465,[::ffff:192.0.2.2]:25,[::]:26");
    let user = |name: &str| users.find(name).expect(name).clone();
    for (binding, allowed) in [
        ("127.0.0.1:587", true),
        ("[::1]:587", true),
        ("192.0.2.1:465", true),
        ("[::ffff:192.0.2.1]:465", true),
        ("192.0.2.2:465", false),
        ("192.0.2.2:25", true),
        ("192.0.2.1:25", false),
        ("[::]:26", true),
        ("[::1]:26", false),
    ] {
        let address = binding.parse().expect("an address");
        assert_eq!(user("some").may_use(address), allowed, "{binding}");
        assert!(user("any").may_use(address));
    }
}

#[test]
fn patterns_are_shown_as_they_are_parsed() {
    for item in ["<>", "a@example.org", "example.org", ".example.org", "[192.0.2.1]", "\"a\"@b.c"] {
        assert_eq!(item.parse::<SenderPattern>().expect(item).to_string(), item);
    }
    for item in ["587", "192.0.2.1:465", "[2001:db8::1]:25"] {
        assert_eq!(item.parse::<BindingPattern>().expect(item).to_string(), item);
    }
}

#[test]
fn nothing_shows_a_hash() {
    let users = users(&format!("alice password=HASH nt-hash={NT}"));
    let shown = format!("{users:?} {:?}", users.find("alice"));
    assert!(shown.contains("alice") && !shown.contains("argon2") && !shown.contains("0x88") && !shown.contains("136"));
}

proptest! {
    #[test]
    fn any_text_parses_or_names_a_line(text in "(?s).{0,400}") {
        if let Err(error) = Users::parse(&text) {
            prop_assert!((1..=text.lines().count()).contains(&error.line));
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn nearly_an_entry_parses_or_names_its_line(
        words in prop::collection::vec("(password|nt-hash|senders|bindings|[a-z#]{0,3})=?[$=,.<>@:\\[\\]a-z0-9]{0,40}", 0..6)
    ) {
        if let Err(error) = Users::parse(&words.join(" ")) {
            prop_assert_eq!(error.line, 1);
        }
    }
}
