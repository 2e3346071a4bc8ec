//! What happens to a session: lists of operations, mostly sensible.

use super::HOSTNAME;
use gatepost::limits::{COMMAND_LINE_MAX_OCTETS, SASL_LINE_MAX_OCTETS};
use gatepost::smtp::sasl;
use gatepost::smtp::sasl::ntlm::{ClientExchange, ServerExchange, client::Randomness};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;
/// One thing that happens.
#[derive(Clone)]
pub enum Op {
    /// A line, complete with its CRLF.
    Line(Vec<u8>),
    /// A chunk: BDAT and its octets.
    Chunk {
        last: bool,
        octets: Vec<u8>,
    },
    /// Content for the case that DATA was accepted before; otherwise nothing.
    Content(Vec<u8>),
    /// Octets of any kind.
    Octets(Vec<u8>),
    Pass(Duration),
    NextCommit {
        fails: bool,
        takes: Duration,
    },
    NextBodyFails,
    NextLogonTakes(Duration),
    /// The end of a handshake, if there is one.
    Handshake {
        is_done: bool,
    },
    ResourcesShort(bool),
    Shutdown {
        at_once: bool,
    },
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Line(octets) => write!(f, "Line({})", octets.escape_ascii()),
            Op::Chunk { last, octets } => write!(f, "Chunk({last}, {})", octets.escape_ascii()),
            Op::Content(octets) => write!(f, "Content({})", octets.escape_ascii()),
            Op::Octets(octets) => write!(f, "Octets({})", octets.escape_ascii()),
            Op::Pass(time) => write!(f, "Pass({time:?})"),
            Op::NextCommit { fails, takes } => write!(f, "NextCommit({fails}, {takes:?})"),
            Op::NextBodyFails => f.write_str("NextBodyFails"),
            Op::NextLogonTakes(takes) => write!(f, "NextLogonTakes({takes:?})"),
            Op::Handshake { is_done } => write!(f, "Handshake({is_done})"),
            Op::ResourcesShort(short) => write!(f, "ResourcesShort({short})"),
            Op::Shutdown { at_once } => write!(f, "Shutdown({at_once})"),
        }
    }
}

/// A list of them.
pub fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        40 => line().prop_map(|line| vec![Op::Line(line)]),
        // What leads to a message, so that most lists store some.
        25 => transaction(),
        8 => content().prop_map(|content| vec![Op::Content(content)]),
        6 => chunk().prop_map(|chunk| vec![chunk]),
        12 => chunks(),
        10 => logon().prop_map(|lines| lines.into_iter().map(Op::Line).collect()),
        5 => starttls(),
        4 => weighted_handshake().prop_map(|op| vec![op]),
        2 => select(vec![0_u64, 30, 500]).prop_map(|seconds| vec![Op::NextLogonTakes(Duration::from_secs(seconds))]),
        2 => vec(select(b"\r\n.\0 MAILQUIT:<>@".to_vec()), 0..60).prop_map(|octets| vec![Op::Octets(octets)]),
        6 => (0..90_000_u64).prop_map(|ms| vec![Op::Pass(Duration::from_millis(ms))]),
        3 => (any::<bool>(), select(vec![0_u64, 0, 30, 500])).prop_map(|(fails, seconds)| {
            vec![Op::NextCommit { fails, takes: Duration::from_secs(seconds) }]
        }),
        1 => Just(vec![Op::NextBodyFails]),
        2 => any::<bool>().prop_map(|short| vec![Op::ResourcesShort(short)]),
        1 => any::<bool>().prop_map(|at_once| vec![Op::Shutdown { at_once }]),
    ];
    vec(op, 0..20).prop_map(|lists| lists.concat())
}

fn weighted_handshake() -> impl Strategy<Value = Op> {
    prop::bool::weighted(0.9).prop_map(|is_done| Op::Handshake { is_done })
}

/// STARTTLS, perhaps something that is pipelined behind it, and the end of the handshake.
fn starttls() -> impl Strategy<Value = Vec<Op>> {
    let behind = prop_oneof![2 => Just(None), 1 => line().prop_map(Some)];
    (any::<bool>(), behind, weighted_handshake()).prop_map(|(says_hello, behind, handshake)| {
        let hello = says_hello.then(|| Op::Line(b"EHLO client.example\r\n".to_vec()));
        let lines = [Op::Line(b"STARTTLS\r\n".to_vec())].into_iter().chain(behind.map(Op::Line));
        hello.into_iter().chain(lines).chain([handshake]).collect()
    })
}

/// Who logs in.
pub const USER: &str = "alice";
/// What an NTLM client says, first and last. Of the proof only the shape matters: verdicts are scripted.
static NTLM: LazyLock<[String; 2]> = LazyLock::new(|| {
    let client = ClientExchange::new(USER, None, "secret");
    let server = ServerExchange::new(&client.negotiate(), HOSTNAME, [1; 8], 0).expect("a challenge");
    let random = Randomness { nonce: [2; 8], session_key: [3; 16] };
    let authenticate = client.authenticate(server.challenge(), &random, 0).expect("an answer");
    [client.negotiate(), authenticate].map(|message| {
        let mut line = Vec::new();
        sasl::encode(&message, &mut line);
        String::from_utf8(line).expect("ASCII")
    })
});

/// AUTH and the lines of its exchange, complete or not.
fn logon() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let [negotiate, authenticate] = &*NTLM;
    let exchanges = vec![
        vec!["AUTH PLAIN AGFsaWNlAHNlY3JldA==".to_owned()],
        vec!["AUTH PLAIN".to_owned(), "AGFsaWNlAHNlY3JldA==".to_owned()],
        vec!["AUTH LOGIN".to_owned(), "YWxpY2U=".to_owned(), "c2VjcmV0".to_owned()],
        vec!["AUTH LOGIN YWxpY2U=".to_owned(), "c2VjcmV0".to_owned()],
        vec!["AUTH NTLM".to_owned(), negotiate.clone(), authenticate.clone()],
        vec![format!("AUTH NTLM {negotiate}"), authenticate.clone()],
    ];
    let broken = prop_oneof![
        6 => Just(None),
        1 => response().prop_map(Some),
    ];
    (select(exchanges), broken, any::<Index>(), prop::bool::weighted(0.8)).prop_map(|(mut lines, broken, at, hello)| {
        if let Some(broken) = broken {
            let at = at.index(lines.len());
            lines[at] = broken;
        }
        let hello = hello.then(|| "EHLO client.example".to_owned());
        hello.into_iter().chain(lines).map(|line| format!("{line}\r\n").into_bytes()).collect()
    })
}

/// A line of an exchange that is wrong, or not where it stands.
fn response() -> impl Strategy<Value = String> {
    let long = (SASL_LINE_MAX_OCTETS - 4..SASL_LINE_MAX_OCTETS + 4).prop_map(|octets| "A".repeat(octets));
    let odd = select(vec!["", "*", "=", "!", "AA==", "TlRMTVNTUAA=", "A\nA=", "QUIT", "* "]).prop_map(str::to_owned);
    prop_oneof![6 => odd, 2 => Just(NTLM[0].clone()), 1 => long]
}

fn transaction() -> impl Strategy<Value = Vec<Op>> {
    (vec(path(), 1..4), content()).prop_map(|(paths, content)| {
        let mut lines = vec!["EHLO client.example".to_owned(), "MAIL FROM:<a@example.com>".to_owned()];
        lines.extend(paths.iter().map(|path| format!("RCPT TO:{path}")));
        lines.push("DATA".to_owned());
        let lines = lines.into_iter().map(|line| Op::Line(format!("{line}\r\n").into_bytes()));
        lines.chain([Op::Content(content)]).collect()
    })
}

fn chunk() -> impl Strategy<Value = Op> {
    (any::<bool>(), vec(any::<u8>(), 0..40)).prop_map(|(last, octets)| Op::Chunk { last, octets })
}

/// A message in chunks, perhaps with something between them.
fn chunks() -> impl Strategy<Value = Vec<Op>> {
    let between = prop_oneof![4 => Just(None), 1 => line().prop_map(Some)];
    let binary = select(vec!["", " BODY=BINARYMIME", " BODY=8BITMIME"]);
    (binary, path(), vec((chunk(), between), 1..4)).prop_map(|(body, path, pieces)| {
        let lines =
            [format!("EHLO client.example\r\nMAIL FROM:<a@example.com>{body}\r\n"), format!("RCPT TO:{path}\r\n")];
        let mut ops: Vec<Op> =
            lines.concat().split_inclusive("\r\n").map(|line| Op::Line(line.as_bytes().to_vec())).collect();
        for (chunk, line) in pieces {
            ops.push(chunk);
            ops.extend(line.map(Op::Line));
        }
        ops
    })
}

fn path() -> impl Strategy<Value = String> {
    select(vec![
        "<a@example.org>",
        "<b@example.org>",
        " c@example.org",
        "<>",
        "<@x.y:d@example.org>",
        "<\"e f\"@example.org>",
        "<Postmaster>",
        "<root>",
        "<g@[192.0.2.1]>",
        "<@>",
        "<h@example.org",
        "",
    ])
    .prop_map(str::to_owned)
}

/// A command line, mostly sensible, with CRLF.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let parameters = select(vec![
        "",
        "",
        "",
        "",
        " SIZE=10",
        " SIZE=99999999999999999999",
        " BODY=8BITMIME",
        " BODY=BINARYMIME",
        " X=",
        " FOO",
        " RET=HDRS ENVID=x",
        " RET=FULL",
        " NOTIFY=NEVER",
        " NOTIFY=DELAY,SUCCESS ORCPT=rfc822;x",
        " ORCPT=x",
        " ENVID=+",
    ]);
    let text = prop_oneof![
        4 => select(vec!["EHLO x", "HELO x", "EHLO", "ehlo [192.0.2.1]"]).prop_map(str::to_owned),
        6 => (path(), parameters.clone()).prop_map(|(path, parameters)| format!("MAIL FROM:{path}{parameters}")),
        8 => (path(), parameters).prop_map(|(path, parameters)| format!("RCPT TO:{path}{parameters}")),
        6 => Just("DATA".to_owned()),
        8 => select(vec![
            "NOOP", "NOOP x", "RSET", "RSET x", "VRFY", "VRFY x", "EXPN x", "HELP", "AUTH NTLM", "AUTH", "AUTH X", "STARTTLS x", "DATA x",
            "MAIL", "RCPT", "WHAT", "", " NOOP", ".", "BDAT x", "XEXCH50 2 2",
        ])
        .prop_map(str::to_owned),
        1 => Just("QUIT".to_owned()),
        2 => response(),
    ];
    let clean = text.prop_map(String::into_bytes);
    let spoiled =
        (vec(any::<u8>(), 0..40), select(b"\r\n\0".to_vec()), any::<u8>()).prop_map(|(mut line, octet, at)| {
            let at = usize::from(at) % (line.len() + 1);
            line.insert(at, octet);
            line
        });
    let long = (COMMAND_LINE_MAX_OCTETS - 4..COMMAND_LINE_MAX_OCTETS + 4).prop_map(|octets| vec![b'x'; octets]);
    prop_oneof![30 => clean, 3 => spoiled, 1 => long].prop_map(|mut line| {
        // A line end inside would make two lines of it.
        while let Some(at) = line.windows(2).position(|pair| pair == b"\r\n") {
            line.remove(at);
        }
        line.extend_from_slice(b"\r\n");
        line
    })
}

/// Lines of a message, without its end.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let piece =
        select(vec![&b"\r\n"[..], b"\n", b"\r", b".", b"..", b"\r\n.", b"a", b"text", b"\0", b"\xff", b"\r\n\r\n"]);
    vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}
