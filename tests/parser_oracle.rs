//! The parsers of lines, commands and addresses against `fuzz/src/oracle.rs`, and of PROXY headers
//! against `fuzz/src/proxy_oracle.rs`: independent and deliberately simple readings of the same rules,
//! over input that is valid, valid but for one octet, and composed of the grammar's edges. The fuzz
//! targets `command` and `proxy` compare the same over octets of any kind.

#[path = "../fuzz/src/command.rs"]
mod command;
#[path = "../fuzz/src/oracle.rs"]
mod oracle;
#[path = "../fuzz/src/proxy_oracle.rs"]
mod proxy_oracle;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Lengths around the limits of the grammar.
const LENGTHS: &[usize] = &[0, 1, 2, 62, 63, 64, 65, 127, 250, 254, 255, 256, 257];

fn words(of: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(of).prop_map(str::to_owned)
}

fn repeated(octet: char) -> impl Strategy<Value = String> {
    select(LENGTHS).prop_map(move |count| octet.to_string().repeat(count))
}

fn local_part() -> impl Strategy<Value = String> {
    let atoms = vec("[a-z0-9!#$%&'*+/=?^_`{|}~-]{1,4}", 1..4).prop_map(|atoms| atoms.join("."));
    let quoted = vec(
        words(&["a", " ", ">", "<", "@", ":", ",", "[", "]", "\\\"", "\\\\", "\\a", ".", "..", "\\", "\"", "\t", "é"]),
        0..5,
    )
    .prop_map(|content| format!("\"{}\"", content.concat()));
    let long = repeated('l');
    let long_quoted = repeated('q').prop_map(|content| format!("\"{content}\""));
    prop_oneof![
        5 => atoms,
        3 => quoted,
        1 => long,
        1 => long_quoted,
        1 => words(&["", ".", ".a", "a.", "a..b", "postmaster", "\"", "\"\"", "a\"b\"", "\"a\"b", "a(c)", "\u{7f}"]),
    ]
}

fn domain() -> impl Strategy<Value = String> {
    let labels = vec("[a-z0-9_][a-z0-9_-]{0,2}[a-z0-9_]", 1..4).prop_map(|labels| labels.join("."));
    let long = (repeated('d'), repeated('e')).prop_map(|(one, other)| format!("{one}.{other}"));
    // 63-octet labels, the last of any length: 192 octets and it.
    let longest = repeated('f').prop_map(|last| format!("{0}.{0}.{0}.{last}", "m".repeat(63)));
    prop_oneof![
        5 => labels,
        3 => literal(),
        1 => long,
        1 => longest,
        2 => words(&["", ".", "a.", ".a", "a..b", "-a", "a-", "a-b", "_", "a b", "a!", "é", "[", "]", "[]", "[a", "a]"]),
    ]
}

fn literal() -> impl Strategy<Value = String> {
    let number = || words(&["0", "1", "9", "10", "99", "100", "255", "256", "999", "01", "001", "0000", "", "a", "+1"]);
    let v4 = vec(number(), 3..6).prop_map(|numbers| numbers.join("."));
    let plain_v4 = || words(&["192.0.2.1", "0.0.0.0", "255.255.255.255", "192.0.2.01"]);
    let group = words(&["0", "1", "db8", "ffff", "FFFF", "00000", "g", ""]);
    let v6 = vec((group, words(&[":", ":", ":", "::"])), 0..9)
        .prop_map(|groups| groups.into_iter().map(|(group, colon)| format!("{group}{colon}")).collect::<String>());
    // Just about eight groups.
    let full = (5..10_usize, option::of(0..10_usize), any::<bool>()).prop_map(|(count, gap, v4)| {
        let mut groups = vec!["1".to_owned(); count];
        if let Some(gap) = gap {
            groups.insert(gap.min(count), String::new());
        }
        if v4 {
            groups.push("192.0.2.1".to_owned());
        }
        groups.join(":").trim_start_matches(':').to_owned()
    });
    let compressed = (0..8_usize, 0..8_usize, option::of(plain_v4())).prop_map(|(head, tail, v4)| {
        let mut tail = vec!["2".to_owned(); tail];
        tail.extend(v4);
        format!("{}::{}", vec!["1"; head].join(":"), tail.join(":"))
    });
    let address = prop_oneof![2 => v6, 4 => full, 4 => compressed, 1 => plain_v4()];
    let v6 = (words(&["IPv6:", "ipv6:", "IPV6:", "IPv6", "IPv4:", "tag:"]), address)
        .prop_map(|(tag, address)| format!("{tag}{address}"));
    let brackets = words(&["[]", "[]", "[]", "[]", "[]", "[]", "[", "]"]);
    (prop_oneof![3 => v4, 3 => plain_v4(), 6 => v6], brackets).prop_map(|(content, brackets)| {
        let open = if brackets.starts_with('[') { "[" } else { "" };
        let close = if brackets.ends_with(']') { "]" } else { "" };
        format!("{open}{content}{close}")
    })
}

fn mailbox() -> impl Strategy<Value = String> {
    (local_part(), option::weighted(0.9, domain())).prop_map(|(local_part, domain)| match domain {
        Some(domain) => format!("{local_part}@{domain}"),
        None => local_part,
    })
}

fn path() -> impl Strategy<Value = String> {
    let route = vec(domain(), 1..3).prop_map(|hops| {
        let hops: Vec<String> = hops.into_iter().map(|hop| format!("@{hop}")).collect();
        hops.join(",") + ":"
    });
    let odd_route = words(&["@", ":", "@a", "@a:", "@a,", "@a,@b:", "@a;@b:", "a,@b:", "@a:@b:", "@a:b:"]);
    let route = prop_oneof![4 => route, 1 => odd_route];
    let brackets = words(&["<>", "<>", "<>", "<>", "", "<", ">", "<<>>", "<> "]);
    (option::weighted(0.2, route), mailbox(), brackets).prop_map(|(route, mailbox, brackets)| {
        let (open, close) = brackets.split_at(brackets.len() / 2);
        format!("{open}{}{mailbox}{close}", route.unwrap_or_default())
    })
}

fn parameter() -> impl Strategy<Value = String> {
    let keyword = words(&["SIZE", "body", "X-Y", "-A", "A-", "", "A_B", "9", "é"]);
    let value = words(&[
        "",
        "1",
        "20",
        "18446744073709551615",
        "18446744073709551616",
        "000000000000000000000",
        "8BITMIME",
        "a=b",
        "a+3D",
        "\t",
        "\u{7f}",
        "é",
    ]);
    (keyword, option::of(value)).prop_map(|(keyword, value)| match value {
        Some(value) => format!("{keyword}={value}"),
        None => keyword,
    })
}

fn spaces() -> impl Strategy<Value = String> {
    words(&["", "", "", " ", " ", "  ", "\t", " \t ", "\u{c}", "\u{b}"])
}

fn path_command() -> impl Strategy<Value = String> {
    let verb = words(&["MAIL FROM:", "RCPT TO:", "rcpt to:", "MAIL from :", "MAIL FROM", "MAIL", "MAIL\tFROM:"]);
    let path = prop_oneof![8 => path(), 1 => words(&["<>", "", "<", ">", " ", "< >"])];
    let parameters = vec((words(&[" ", " ", " ", "  ", "", "\t"]), parameter()), 0..3)
        .prop_map(|list| list.into_iter().map(|(space, parameter)| space + &parameter).collect::<String>());
    (spaces(), verb, spaces(), path, parameters, spaces()).prop_map(
        |(indent, verb, before, path, parameters, after)| format!("{indent}{verb}{before}{path}{parameters}{after}"),
    )
}

fn chunk_command() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        "[0-9]{0,22}",
        words(&[
            "18446744073709551615",
            "18446744073709551616",
            "99999999999999999999",
            "-1",
            "+1",
            "0x1",
            "1.0",
            "1,0"
        ]),
    ];
    let last = words(&["", "", "LAST", "last", "LaSt", "LAS", "LASTS", "LAST LAST", "1"]);
    (words(&["BDAT", "bdat", "BDAT\t"]), spaces(), number, spaces(), last, spaces()).prop_map(
        |(verb, before, number, between, last, after)| format!("{verb} {before}{number}{between}{last}{after}"),
    )
}

fn any_command() -> impl Strategy<Value = String> {
    let verb = words(&[
        "NOOP", "noop", "QUIT", "RSET", "DATA", "EHLO", "HELO", "VRFY", "EXPN", "HELP", "AUTH", "STARTTLS", "XEXCH50",
        "MAILS", "MAI", "", "é",
    ]);
    (verb, spaces(), words(&["", "x", "x y", "\u{0}"]), spaces())
        .prop_map(|(verb, before, argument, after)| format!("{verb}{before}{argument}{after}"))
}

fn command_line() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![6 => path_command(), 2 => chunk_command(), 1 => any_command()].prop_map(String::into_bytes)
}

/// With some octets changed, put in or taken out.
fn mutated(of: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let octet = prop_oneof![any::<u8>(), select(b"<>@\"\\.:,[]() =-_\r\n\t\0".to_vec())];
    (of, vec((any::<Index>(), option::of(octet), any::<bool>()), 0..3)).prop_map(|(mut line, changes)| {
        for (place, octet, replace) in changes {
            let at = place.index(line.len() + 1);
            if replace && at < line.len() {
                line.remove(at);
            }
            line.splice(at.min(line.len())..at.min(line.len()), octet);
        }
        line
    })
}

/// Lines of the PROXY protocol.
fn header_line() -> impl Strategy<Value = Vec<u8>> {
    let address = || {
        prop_oneof![
            4 => any::<[u8; 4]>().prop_map(|octets| Ipv4Addr::from(octets).to_string()),
            4 => any::<[u8; 16]>().prop_map(|octets| Ipv6Addr::from(octets).to_string()),
            2 => select(&["::", "::1", "1::", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1::2:3:4:5:6:7:8", "::ffff:192.0.2.1"][..])
                .prop_map(str::to_owned),
            1 => literal().prop_map(|literal| literal.trim_matches(['[', ']']).replace("IPv6:", "")),
        ]
    };
    let port = || prop_oneof![4 => any::<u16>().prop_map(|port| port.to_string()), 1 => words(&["0", "00", "65536", "+1", "", "1a"])];
    let family = words(&["TCP4", "TCP4", "TCP6", "TCP6", "UNKNOWN", "TCP", "tcp4", "UNKNOWNS", ""]);
    let space = || words(&[" ", " ", " ", " ", " ", " ", " ", " ", "  ", "", "\t"]);
    let end = words(&["\r\n", "\r\n", "\r\n", "\r\n\r\n", "\r\nEHLO x\r\n", "\n", "\r", "\r\r\n", ""]);
    let fields = (address(), address(), port(), port());
    (family, fields, (space(), space(), space(), space()), end).prop_map(|(family, (a, b, c, d), (s, t, u, v), end)| {
        format!("PROXY {family}{s}{a}{t}{b}{u}{c}{v}{d}{end}").into_bytes()
    })
}

/// Headers of its version 2; the last TLV is perhaps the checksum, which is mostly right.
fn binary_header() -> impl Strategy<Value = Vec<u8>> {
    let command = prop_oneof![6 => Just(0x21), 2 => Just(0x20), 1 => any::<u8>()];
    let family = prop_oneof![3 => Just(0x11), 3 => Just(0x21), 3 => select(&[0_u8, 1, 0x10, 0x12, 0x22, 0x31, 0x32][..]), 1 => any::<u8>()];
    let addresses = prop_oneof![4 => Just(12_usize), 4 => Just(36), 2 => Just(216), 1 => 0..300_usize]
        .prop_flat_map(|octets| vec(any::<u8>(), octets));
    let tlv = (prop_oneof![4 => any::<u8>(), 1 => Just(3)], vec(any::<u8>(), 0..600)).prop_map(|(kind, value)| {
        let octets = (value.len() as u16).to_be_bytes();
        [&[kind][..], &octets, &value].concat()
    });
    let checksum = option::weighted(0.5, any::<bool>());
    let length = prop_oneof![20 => Just(0_i32), 1 => -3..=3, 1 => Just(5000)];
    (command, family, addresses, vec(tlv, 0..4), checksum, length, vec(any::<u8>(), 0..20)).prop_map(
        |(command, family, addresses, tlvs, checksum, length, behind)| {
            let mut block = [addresses, tlvs.concat()].concat();
            if checksum.is_some() {
                block.extend([3, 0, 4, 0, 0, 0, 0]);
            }
            let octets = u16::try_from(block.len() as i32 + length).unwrap_or_default().to_be_bytes();
            let mut header = [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &octets, &block].concat();
            if checksum == Some(true) {
                let right = proxy_oracle::checksum(&header).to_be_bytes();
                let at = header.len() - right.len();
                header.splice(at.., right);
            }
            header.extend(behind);
            header
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_500) })]

    #[test]
    fn proxy_lines(header in header_line(), others in mutated(header_line())) {
        proxy_oracle::compare(&header);
        proxy_oracle::compare(&others);
    }

    #[test]
    fn proxy_headers(header in binary_header(), others in mutated(binary_header())) {
        proxy_oracle::compare(&header);
        proxy_oracle::compare(&others);
    }

    #[test]
    fn commands(line in mutated(command_line())) {
        command::line_of_a_command(&line);
    }

    #[test]
    fn paths(path in mutated(path().prop_map(String::into_bytes))) {
        command::arguments(&path);
    }

    #[test]
    fn literals(literal in literal()) {
        command::arguments(format!("<a@{literal}>").as_bytes());
        command::arguments(format!("<@{literal}:a@b>").as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Lines of all lengths, cut and joined in all the ways line ends can be broken.
    #[test]
    fn lines(
        pieces in vec(prop_oneof![
            4 => command_line(),
            6 => select(vec![b"\r\n".to_vec(), b"\r".to_vec(), b"\n".to_vec(), b"\0".to_vec(), b"x".to_vec()]),
            1 => (4080..4100_usize).prop_map(|octets| vec![b'x'; octets]),
            1 => Just(vec![b'y'; 9000]),
        ], 0..12),
    ) {
        command::run(&pieces.concat());
    }
}

/// The oracle itself: what no comparison can tell.
#[test]
fn the_oracle_knows_the_grammar() {
    let valid = |path: &str| oracle::path_argument(path.as_bytes(), "").is_ok();
    for path in
        ["<>", "<a@b.c>", "a@b.c", "<a>", "<\"a b\"@[IPv6:::1]>", "<@x,@y:a@b>", "<a@[1.2.3.4]>", "<a@[001.2.3.4]>"]
    {
        assert!(valid(path), "{path}");
    }
    for path in
        ["", "<", "<a b@c>", "<a@b.c", "<a@[1.2.3]>", "<a@[IPv6:1:2:3:4:5:6:7::]>", "<a@b->", "<a.@b>", "<a@b>x"]
    {
        assert!(!valid(path), "{path}");
    }
    assert_eq!(proxy_oracle::checksum(b"123456789"), 0xe306_9283);
    assert_eq!(oracle::chunk(b"10 LAST"), Some((10, true)));
    assert_eq!(oracle::chunk(b"-10"), None);
    assert_eq!(oracle::line(b"NOOP\r\n"), oracle::Line::Whole(6));
    assert_eq!(oracle::line(b"NO\nOP\r\n"), oracle::Line::Spoiled(7));
}
