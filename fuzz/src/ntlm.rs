//! NTLM: the server before messages that nobody made, and before those of a client that were changed;
//! the client before such challenges.
//!
//! Input: an octet of settings. Bit 0: what follows are changes, each the place (two octets, least
//! significant first) and what is xored there; bit 1: the client is told no time, and so sends no MIC;
//! bit 2: the challenge is changed, not the answer; bit 3: the last change is where the answer is cut
//! off. Without bit 0: an octet that tells how many follow as NEGOTIATE, and the rest as any message.

use gatepost::smtp::sasl::ntlm::{ClientExchange, Randomness, ServerExchange, nt_hash};

const NONCE: [u8; 8] = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];
const RANDOM: Randomness = Randomness { nonce: [0xaa; 8], session_key: [0x55; 16] };
const TIME: u64 = 134_081_472_000_000_000;
const HOSTNAME: &str = "mx.example.org";
const PASSWORD: &str = "Password";
/// The one that nobody has used.
const OTHER: &str = "another password";
/// Where the MIC of own messages is.
const MIC: std::ops::Range<usize> = 72..88;

pub fn run(input: &[u8]) {
    let Some((&settings, input)) = input.split_first() else { return };
    match settings & 1 {
        0 => made_up(input),
        _ => changed(settings, input),
    }
}

fn client() -> ClientExchange {
    ClientExchange::new("User", Some("Domain"), PASSWORD)
}

fn made_up(input: &[u8]) {
    let Some((&length, input)) = input.split_first() else { return };
    let (negotiate, message) = input.split_at(input.len().min(length.into()));
    let own = ServerExchange::new(&client().negotiate(), HOSTNAME, NONCE, TIME).expect("NEGOTIATE");
    let server = ServerExchange::new(negotiate, HOSTNAME, NONCE, TIME).unwrap_or_else(|| own.clone());
    for server in [&server, &own] {
        if let Some(logon) = server.authenticate(message) {
            assert!(!logon.name().is_empty());
            logon.verify(&nt_hash(PASSWORD));
            assert!(!logon.verify(&nt_hash(OTHER)), "{}", message.escape_ascii());
        }
    }
    answers(&own, message);
    answers(&server, server.challenge());
}

/// What a client answers to any challenge at all, a server can read; the answer, if there is one.
fn answers(server: &ServerExchange, challenge: &[u8]) -> Option<Vec<u8>> {
    let answer = client().authenticate(challenge, &RANDOM, TIME)?;
    let shown = challenge.escape_ascii();
    let logon = server.authenticate(&answer).unwrap_or_else(|| panic!("unreadable answer to {shown}"));
    assert_eq!((logon.name(), logon.domain()), ("User", "Domain"), "{shown}");
    assert!(!logon.verify(&nt_hash(OTHER)), "{shown}");
    Some(answer)
}

fn changed(settings: u8, input: &[u8]) {
    let server = ServerExchange::new(&client().negotiate(), HOSTNAME, NONCE, TIME).expect("NEGOTIATE");
    let mut challenge = server.challenge().to_vec();
    if settings & 2 != 0 {
        // The AV_PAIR with the time stands before the last, of four octets.
        let at = challenge.len() - 16;
        assert_eq!(challenge[at..at + 4], [7, 0, 8, 0]);
        challenge[at] = 0x77;
    }
    let (changes, _) = input.as_chunks::<3>();
    if settings & 4 != 0 {
        apply(changes, &mut challenge);
        let Some(answer) = answers(&server, &challenge) else { return };
        let is_verified = server.authenticate(&answer).is_some_and(|logon| logon.verify(&nt_hash(PASSWORD)));
        let is_same = challenge == server.challenge();
        assert!(is_verified || !is_same, "an honest answer");
        assert!(!is_verified || is_same || answer[MIC] == [0; 16], "{}", challenge.escape_ascii());
        return;
    }
    let answer = answers(&server, &challenge).expect("CHALLENGE");
    let mut message = answer.clone();
    apply(changes, &mut message);
    if let Some([low, high, _]) = changes.last()
        && settings & 8 != 0
    {
        message.truncate(u16::from_le_bytes([*low, *high]).into());
    }
    let logon = server.authenticate(&message);
    if message == answer {
        assert!(logon.is_some_and(|logon| logon.verify(&nt_hash(PASSWORD))), "an honest answer");
        return;
    }
    let Some(logon) = logon else { return };
    let shown = message.escape_ascii();
    assert!(!logon.verify(&nt_hash(OTHER)), "{shown}");
    if logon.verify(&nt_hash(PASSWORD)) {
        assert_eq!(answer[MIC], [0; 16], "the MIC covers all: {shown}");
        assert!(logon.name().eq_ignore_ascii_case("User") && logon.domain() == "Domain", "{shown}");
    }
}

fn apply(changes: &[[u8; 3]], message: &mut [u8]) {
    for [low, high, value] in changes {
        let at = usize::from(u16::from_le_bytes([*low, *high])) % message.len();
        message[at] ^= value;
    }
}
