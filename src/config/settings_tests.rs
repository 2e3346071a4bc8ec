//! Flags, environment and file: which counts, and what is said of mistakes.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::LazyLock;

const FILE: &str = "/etc/gatepost.toml";

/// Files that the tests name. A function pointer reads them: nothing can be captured.
static FILES: LazyLock<HashMap<&str, &str>> = LazyLock::new(|| {
    HashMap::from([
        ("domains", ".b.example # one\n"),
        ("bad-domains", "a.example\n\n-b.example\n"),
        ("ranges", "198.51.100.1\n"),
        ("/etc/one.toml", "tarpit = 1\n"),
        ("/etc/two.toml", "tarpit = 2\n"),
    ])
});

/// Reads what comes behind `text:`, or one of [`FILES`].
fn read_file(path: &Path) -> io::Result<String> {
    let name = path.to_str().expect("UTF-8");
    if let Some(text) = name.strip_prefix("text:") {
        return Ok(text.to_owned());
    }
    FILES.get(name).map(|&text| text.to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn sources(arguments: &[&str], environment: &[(&str, &str)]) -> Sources {
    Sources {
        arguments: arguments.iter().map(Into::into).collect(),
        environment: environment.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        machine_name: "host.example".to_owned(),
        read_file,
    }
}

/// Loads with a file of this text.
fn with_file(text: &str, environment: &[(&str, &str)], arguments: &[&str]) -> Result<Loaded, LoadError> {
    let file = format!("--config=text:{text}");
    let arguments: Vec<&str> = arguments.iter().copied().chain([file.as_str()]).collect();
    load(&sources(&arguments, environment))
}

/// What is wrong with a file; its name in messages is [`FILE`].
fn faults(text: &str, environment: &[(&str, &str)], arguments: &[&str]) -> Vec<String> {
    let error = with_file(text, environment, arguments).expect_err(text);
    error.iter().map(|line| line.replace(&format!("text:{text}"), FILE)).collect()
}

#[track_caller]
fn setting<'l>(loaded: &'l Loaded, name: &str) -> &'l Setting {
    loaded.settings.iter().find(|setting| setting.name == name).unwrap_or_else(|| panic!("no {name}"))
}

fn from_file(text: &str, line: usize) -> Origin {
    Origin::File { path: format!("text:{text}").into(), line }
}

#[test]
fn flags_then_environment_then_file_then_default() {
    const TEXT: &str = "# one\ntarpit = 1\nblock = ['192.0.2.1', '192.0.2.2']\n";
    const ENVIRONMENT: &[(&str, &str)] = &[("GATEPOST_TARPIT", "2s"), ("GATEPOST_BLOCK", " 192.0.2.3\t192.0.2.4 ")];
    const FLAGS: &[&str] = &["--tarpit=3s", "--block=192.0.2.5"];
    const EMPTY: &[(&str, &str)] = &[("GATEPOST_TARPIT", ""), ("GATEPOST_BLOCK", " ")];
    let variable = |name: &str| Origin::Environment(name.to_owned());
    for (text, environment, flags, tarpit, block, origins) in [
        ("", &[][..], &[][..], "5s", &[][..], [Origin::Default, Origin::Default]),
        (TEXT, &[], &[], "1s", &["192.0.2.1", "192.0.2.2"], [from_file(TEXT, 2), from_file(TEXT, 3)]),
        (TEXT, EMPTY, &[], "1s", &["192.0.2.1", "192.0.2.2"], [from_file(TEXT, 2), from_file(TEXT, 3)]),
        (
            TEXT,
            ENVIRONMENT,
            &[],
            "2s",
            &["192.0.2.3", "192.0.2.4"],
            [variable("GATEPOST_TARPIT"), variable("GATEPOST_BLOCK")],
        ),
        (TEXT, ENVIRONMENT, FLAGS, "3s", &["192.0.2.5"], [Origin::Flag, Origin::Flag]),
        (TEXT, &[], FLAGS, "3s", &["192.0.2.5"], [Origin::Flag, Origin::Flag]),
        ("", ENVIRONMENT, &FLAGS[1..], "2s", &["192.0.2.5"], [variable("GATEPOST_TARPIT"), Origin::Flag]),
    ] {
        let loaded = with_file(text, environment, flags).expect("valid");
        let (shown_tarpit, shown_block) = (setting(&loaded, "tarpit"), setting(&loaded, "block"));
        assert_eq!(shown_tarpit.values, [tarpit]);
        assert_eq!(shown_block.values, block);
        assert_eq!([shown_tarpit.origin.clone(), shown_block.origin.clone()], origins);
        assert_eq!(loaded.config.tarpit(), units::duration(tarpit).ok());
        for address in 1..=5 {
            let address = format!("192.0.2.{address}");
            let is_blocked = loaded.config.blocked.contains(address.parse().expect("an address"));
            assert_eq!(is_blocked, block.contains(&address.as_str()), "{address}");
        }
    }
}

#[test]
fn the_file_is_named_by_flag_or_variable() {
    let one: &[&str] = &["--config=/etc/one.toml"];
    let two: &[(&str, &str)] = &[("GATEPOST_CONFIG", "/etc/two.toml")];
    for (flags, environment, tarpit) in [
        (&[][..], &[][..], "5s"),
        (one, &[], "1s"),
        (&[], two, "2s"),
        (one, two, "1s"),
        (&[], &[("GATEPOST_CONFIG", "")], "5s"),
    ] {
        let loaded = load(&sources(flags, environment)).expect("valid");
        assert_eq!(setting(&loaded, "tarpit").values, [tarpit], "{flags:?} {environment:?}");
    }
    let error = load(&sources(&["--config=/etc/none.toml"], &[])).expect_err("there is none").to_string();
    assert_eq!(
        error,
        "/etc/none.toml: cannot read the configuration: entity not found; name a TOML file that this user may read"
    );
}

/// A value for each option, other than its default: the table of `serve` and this one are one list.
const SAMPLES: &[(&str, &str)] = &[
    ("listen", "127.0.0.1:2526"),
    ("hostname", "mx.example.org"),
    ("local-name", "old.example.org"),
    ("shards", "3"),
    ("accept-domain", "example.org"),
    ("accept-domains-file", "domains"),
    ("relay-from", "10.0.0.0/8"),
    ("default-domain", "example.org"),
    ("users", "/etc/users"),
    ("block", "192.0.2.0/24"),
    ("block-file", "ranges"),
    ("dnsbl", "bl.example.org"),
    ("resolver", "192.0.2.53:53"),
    ("max-connections", "7"),
    ("max-connections-per-source", "7"),
    ("message-rate", "7"),
    ("relay-message-rate", "7"),
    ("ipv6-prefix", "48"),
    ("table-slots", "2048"),
    ("max-message-size", "7MB"),
    ("max-header-size", "7KB"),
    ("max-hops", "7"),
    ("max-local-hops", "7"),
    ("max-recipients", "7"),
    ("max-protocol-errors", "7"),
    ("max-logon-failures", "7"),
    ("logon-failure-rate", "7"),
    ("connection-timeout", "7s"),
    ("inactivity-timeout", "7s"),
    ("relay-connection-timeout", "7s"),
    ("relay-inactivity-timeout", "7s"),
    ("tarpit", "7s"),
    ("disable-extension", "CHUNKING"),
    ("tls-cert", "cert.pem"),
    ("tls-key", "key.pem"),
    ("oxsmtp-revision", "4.0"),
    ("min-free-disk", "7MB"),
    ("min-free-memory", "7MB"),
    ("ack-delay", "7s"),
    ("next-hop", "192.0.2.1:25"),
    ("route", "example.org=192.0.2.1:25"),
    ("next-hop-timeout", "7s"),
    ("retry-min", "7s"),
    ("retry-max", "7h"),
    ("queue-lifetime", "7h"),
    ("spool", "/var/spool/gatepost"),
    ("drain-timeout", "7s"),
    ("metrics-listen", "127.0.0.1:9126"),
    ("admin-socket", "/run/gatepost.sock"),
    ("log-format", "json"),
    ("log-level", "debug"),
    ("log-file", "/var/log/gatepost.log"),
];

/// What must be given with an option.
fn companion(name: &str) -> Option<&'static str> {
    match name {
        "tls-cert" => Some("--tls-key=key.pem"),
        "tls-key" => Some("--tls-cert=cert.pem"),
        "ack-delay" => Some("--next-hop=192.0.2.1:25"),
        _ => None,
    }
}

#[test]
fn every_option_can_be_given_by_flag_variable_and_file() {
    let samples: Vec<&str> = SAMPLES.iter().map(|(name, _)| *name).collect();
    let options: Vec<&str> = table::options().iter().map(|spec| spec.name).collect();
    assert_eq!(samples, options, "the samples, in the order of the table");
    for (spec, (name, value)) in table::options().iter().zip(SAMPLES) {
        assert!(!spec.defaults.iter().any(|default| default == value), "{name}: no test of its default");
        let companion = companion(name);
        let with = companion.as_slice();
        // A certificate alone is no configuration.
        let without = load(&sources(with, &[])).map(|loaded| format!("{:?}", loaded.config)).unwrap_or_default();
        let variable = spec.variable.clone();
        let quoted = if spec.kind == Kind::Number { (*value).to_owned() } else { format!("{value:?}") };
        let text = if spec.is_list { format!("{name} = [{quoted}]\n") } else { format!("\n{name} = {quoted}\n") };
        let flag = format!("--{name}={value}");
        let flags: Vec<&str> = with.iter().copied().chain([flag.as_str()]).collect();
        let line = if spec.is_list { 1 } else { 2 };
        let by_flag = load(&sources(&flags, &[])).expect(name);
        let config = format!("{:?}", by_flag.config);
        assert_ne!(config, without, "{name} does something");
        for (loaded, origin) in [
            (by_flag, Origin::Flag),
            (load(&sources(with, &[(variable.as_str(), value)])).expect(name), Origin::Environment(variable.clone())),
            (with_file(&text, &[], with).expect(name), from_file(&text, line)),
        ] {
            assert_eq!(
                (&setting(&loaded, name).values[..], &setting(&loaded, name).origin),
                (&[(*value).to_owned()][..], &origin)
            );
            assert_eq!(format!("{:?}", loaded.config), config, "{name} by {origin}");
        }
    }
}

#[test]
fn mistakes_in_a_file() {
    const ALL: &str = "gatepost serve --help names all";
    for (text, expected) in [
        ("\nmax-conections = 5", "2: max-conections: there is no such option; did you mean max-connections?"),
        ("max_connections = 5", "1: max_connections: there is no such option; did you mean max-connections?"),
        ("\n\n\nfrobnicate = 5", &format!("4: frobnicate: there is no such option; {ALL}")),
        ("[tls]\ncert = 'x'", "1: tls: there is no such option; did you mean tls-key?"),
        ("config = 'x'", "1: config: a configuration file names no other; give --config FILE"),
        ("tarpit = 1\ntarpit = 2", "2: tarpit: duplicate key"),
        ("tarpit = 1\nlisten = [", "2: unclosed array, expected `]`"),
        ("tarpit = 5s", "1: 5s: "),
        ("max-connections = '5'", "1: max-connections: expected a number, as in max-connections = 5000, not a string"),
        ("shards = 1.5", "1: shards: expected a number, as in shards = 1, not a number with a fraction"),
        (
            "tarpit = true",
            "1: tarpit: expected a string or a number of seconds, as in tarpit = \"5s\", not true or false",
        ),
        (
            "max-message-size = [1]",
            "1: max-message-size: expected a string or a number of octets, as in max-message-size = \"10MB\", not an array",
        ),
        ("hostname = 5", "1: hostname: expected a string, as in hostname = \"...\", not a number"),
        ("hostname.x = 5", "1: hostname: expected a string, as in hostname = \"...\", not a table"),
        (
            "drain-timeout = 07:32:00",
            "1: drain-timeout: expected a string or a number of seconds, as in drain-timeout = \"30s\", not a date or a time",
        ),
        ("listen = '[::]:25'", "1: listen: expected an array, as in listen = [\"127.0.0.1:2525\"]"),
        ("listen = []", "1: listen: an empty array; write an item, or leave the option out"),
        ("block = [\n'192.0.2.1',\n5]", "3: block: expected a string, as in block = [\"...\"], not a number"),
        ("max-connections = -1", "1: max-connections: \"-1\": -1 is not in 0..=4294967295"),
        ("max-connections = 99999999999999999999", "1: max-connections: 99999999999999999999: the number is too large"),
        ("\nipv6-prefix = 129", "2: ipv6-prefix: \"129\": 129 is not in 0..=128"),
        ("max-message-size = '10XB'", "1: max-message-size: \"10XB\": unknown unit \"XB\": use B, KB, MB, GB or TB"),
        ("tarpit = 'soon'", "1: tarpit: \"soon\": it must begin with a whole number"),
        ("spool = ''", "1: spool: it has no value; leave it out, or write one"),
        ("metrics-listen = '9125'", "1: metrics-listen: \"9125\": expected ADDR:PORT, as in 127.0.0.1:9125, or none"),
        // What is found when all is there.
        ("\ntarpit = '6m'", "2: tarpit: longer than 5m; clients wait no longer for a reply (RFC 5321 section 4.5.3.2)"),
        (
            "retry-max = '1h'\n\nretry-min = '2h'",
            "3: retry-min: 2h is longer than --retry-max, 1h; lower --retry-min or raise --retry-max",
        ),
        (
            "listen = [\n'127.0.0.1:1',\n'25']",
            "1: listen: \"25\": expected ADDR:PORT, as in 0.0.0.0:25 or [::]:25, before the first comma",
        ),
        ("accept-domains-file = 'bad-domains'", "1: accept-domains-file: bad-domains: line 3: "),
        ("block-file = 'none'", "1: block-file: none: entity not found"),
    ] {
        let faults = faults(text, &[], &[]);
        let [fault] = &faults[..] else { panic!("one fault of {text:?}: {faults:#?}") };
        let fault = fault.strip_prefix(&format!("{FILE}:")).unwrap_or_else(|| panic!("{fault}"));
        let is_whole = !expected.ends_with(": ");
        assert!(if is_whole { fault == expected } else { fault.starts_with(expected) }, "{fault}\nnot\n{expected}");
    }
}

#[test]
fn mistakes_in_the_environment() {
    for (name, value, expected) in [
        ("GATEPOST_MAX_CONECTIONS", "5", "there is no such option; did you mean GATEPOST_MAX_CONNECTIONS?"),
        ("GATEPOST_FROBNICATE", "", "there is no such option; gatepost serve --help names all"),
        ("GATEPOST_", "", "there is no such option; gatepost serve --help names all"),
        ("GATEPOST_TARPIT", "soon", "\"soon\": it must begin with a whole number"),
        ("GATEPOST_SHARDS", " 2", "\" 2\": invalid digit found in string"),
        ("GATEPOST_TARPIT", "6m", "longer than 5m; clients wait no longer for a reply (RFC 5321 section 4.5.3.2)"),
        ("GATEPOST_HOSTNAME", "-x", "\"-x\" is not a domain name; write one like mail.example.org"),
    ] {
        let error = load(&sources(&[], &[(name, value), ("HOME", "/"), ("GATEPOSTS", "x")])).expect_err(name);
        assert_eq!(error.to_string(), format!("{name}: {expected}"));
    }
}

#[test]
fn what_is_no_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let bad = OsStr::from_bytes(b"/spool\xff").to_owned();
    let mut by_variable = sources(&[], &[]);
    by_variable.environment.push(("GATEPOST_SPOOL".into(), bad.clone()));
    by_variable.environment.push(("OTHER".into(), bad.clone()));
    let mut by_flag = sources(&["--spool"], &[]);
    by_flag.arguments.push(bad);
    for (sources, place) in [(by_variable, "GATEPOST_SPOOL"), (by_flag, "--spool")] {
        let error = load(&sources).expect_err(place).to_string();
        assert_eq!(error, format!("{place}: its value is not UTF-8; write it in UTF-8"));
    }
}

#[test]
fn faults_of_flags_name_the_flag() {
    for (flag, expected) in [
        ("--tarpit=6m", "--tarpit: longer than 5m"),
        ("--listen=25", "--listen: \"25\": expected ADDR:PORT"),
        ("--frobnicate", "error: unexpected argument '--frobnicate' found"),
    ] {
        let error = load(&sources(&[flag], &[])).expect_err(flag).to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn all_faults_of_single_options_are_told() {
    let faults = faults("x = 1\ntarpit = 'x'\nblock = [1, 2]", &[("GATEPOST_SHARDS", "x")], &[]);
    let places: Vec<_> = faults.iter().map(|fault| fault.rsplit_once(": ").map_or("", |(place, _)| place)).collect();
    assert_eq!(faults.len(), 5, "{faults:#?}");
    for (place, begin) in places.iter().zip([
        "GATEPOST_SHARDS",
        "/etc/gatepost.toml:1: x",
        "/etc/gatepost.toml:2: tarpit",
        "/etc/gatepost.toml:3: block",
        "/etc/gatepost.toml:3: block",
    ]) {
        assert!(place.starts_with(begin), "{place}");
    }
}

#[test]
fn numbers_are_seconds_and_octets() {
    let text = "tarpit = 90\nmax-message-size = 0x10_0000\nmax-connections = 1_000\nretry-max = '3600s'\n";
    let loaded = with_file(text, &[], &[]).expect("valid");
    for (name, value) in
        [("tarpit", "90s"), ("max-message-size", "1MB"), ("max-connections", "1000"), ("retry-max", "1h")]
    {
        assert_eq!(setting(&loaded, name).values, [value]);
    }
}

#[test]
fn changes_are_of_values() {
    let before = with_file("tarpit = 60\nblock = ['192.0.2.1']", &[], &[]).expect("valid").settings;
    let same = with_file("\nblock = ['192.0.2.1']", &[("GATEPOST_TARPIT", "1m")], &[]).expect("valid").settings;
    assert_eq!(before.changes(&same), []);
    let after = with_file("tarpit = 61", &[], &["--hostname=a.example"]).expect("valid").settings;
    let owned = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect::<Vec<_>>();
    let change = |name, from: &[&str], to: &[&str]| Change { name, from: owned(from), to: owned(to) };
    assert_eq!(
        before.changes(&after),
        [
            change("hostname", &[], &["a.example"]),
            change("block", &["192.0.2.1"], &[]),
            change("tarpit", &["1m"], &["61s"])
        ]
    );
}

#[test]
fn what_is_printed_is_read_back() {
    let text =
        "block = [\n'192.0.2.1', '192.0.2.2',\n]\nmax-connections = 5 # few\nusers = 'a \"b\" \\ c'\nnext-hop=[]\n";
    let loaded = with_file(text, &[("GATEPOST_TARPIT", "0")], &["--shards=2"]).expect("valid");
    let printed = loaded.settings.to_string().replace(&format!("text:{text}"), FILE);
    for line in [
        "block = [\"192.0.2.1\", \"192.0.2.2\"]  # /etc/gatepost.toml:1",
        "max-connections = 5  # /etc/gatepost.toml:4",
        "users = 'a \"b\" \\ c'  # /etc/gatepost.toml:5",
        "next-hop = []  # /etc/gatepost.toml:6",
        "tarpit = \"0ms\"  # GATEPOST_TARPIT",
        "shards = 2  # flag",
        "listen = [\"127.0.0.1:2525\"]  # default",
        "# hostname is not set  # default",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line}\nis not in\n{printed}");
    }
    let again = with_file(&printed, &[], &[]).expect("valid");
    assert_eq!(loaded.settings.changes(&again.settings), []);
    assert_eq!(format!("{:?}", loaded.config), format!("{:?}", again.config));
}

proptest! {
    // Each reads all options twice.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_is_printed_so_that_it_is_read_back(value in "\\PC{1,20}|[\"'\\\\\n\t #\r\u{7f}a]{1,12}") {
        let flag = format!("--users={value}");
        let loaded = load(&sources(&[&flag], &[])).expect("any path");
        let again = with_file(&loaded.settings.to_string(), &[], &[]).expect("valid");
        prop_assert_eq!(&setting(&again, "users").values, &[value]);
        prop_assert_eq!(loaded.settings.changes(&again.settings), []);
    }

    #[test]
    fn any_file_is_read_or_refused_with_a_line(text in "((max-connections|tarpit|listen|x|\\[a\\]|'|\"|\\[|\\]|=|,|\\.|#|5|s|-|\n| ){0,20}|\\PC{0,20})") {
        let mut problems = Problems::default();
        let given = file::read(Path::new("f"), &text, &mut problems);
        let lines = text.lines().count().max(1) + 1;
        for problem in &problems.0 {
            let line = problem.strip_prefix("f:").and_then(|rest| rest.split_once(": ")).and_then(|(line, _)| line.parse().ok());
            prop_assert!(line.is_some_and(|line: usize| (1..=lines).contains(&line)), "{}", problem);
        }
        let has_line = |given: &Given| matches!(given.origin, Origin::File { line, .. } if line <= lines);
        prop_assert!(given.iter().all(has_line));
    }
}
