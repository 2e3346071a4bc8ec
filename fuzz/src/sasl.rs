//! Lines of an authentication exchange: base64, PLAIN and LOGIN, against a naive reading.
//!
//! Input: any octets, each time as a line, as a message, and as two answers with a line feed between.

use gatepost::smtp::sasl::{self, Mechanism, login, plain};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub fn run(input: &[u8]) {
    let shown = input.escape_ascii();
    let decoded = sasl::decode(input);
    assert_eq!(decoded.as_deref(), naive_decode(input).as_ref(), "{shown}");
    if let Some(octets) = decoded {
        assert_eq!(encoded(&octets), input, "{shown}");
        messages(&octets);
    }
    assert_eq!(sasl::decode(&encoded(input)).as_deref().map(Vec::as_slice), Some(input), "{shown}");
    messages(input);
    let name = Mechanism::parse(input).map(Mechanism::name);
    assert_eq!(
        name.is_some(),
        ["NTLM", "LOGIN", "PLAIN"].iter().any(|name| is_same(name.as_bytes(), input)),
        "{shown}"
    );
}

fn is_same(name: &[u8], input: &[u8]) -> bool {
    input.to_ascii_uppercase() == name
}

fn encoded(octets: &[u8]) -> Vec<u8> {
    let mut line = Vec::new();
    sasl::encode(octets, &mut line);
    line
}

fn messages(input: &[u8]) {
    let shown = input.escape_ascii();
    // PLAIN.
    let expected = naive_plain(input);
    let found = plain::parse(input).map(|given| (given.name, given.password.to_string()));
    assert_eq!(found, expected, "{shown}");
    if let Some((name, password)) = found {
        let mut written = Vec::new();
        plain::write(&name, &password, &mut written);
        assert!(input.ends_with(&written), "{shown}");
    }
    // LOGIN.
    let (name, password) = match input.iter().position(|&octet| octet == b'\n') {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, input),
    };
    let found = login::ServerExchange::new(name).password(password);
    let found = found.map(|given| (given.name, given.password.to_string()));
    assert_eq!(found, naive_text(name).zip(naive_text(password)), "{shown}");
}

fn naive_plain(input: &[u8]) -> Option<(String, String)> {
    let nuls: Vec<usize> = (0..input.len()).filter(|&at| input[at] == 0).collect();
    let &[first, second] = nuls.as_slice() else { return None };
    let name = naive_text(&input[first + 1..second])?;
    let acts_for_itself = first == 0 || &input[..first] == name.as_bytes();
    let password = naive_text(&input[second + 1..])?;
    acts_for_itself.then_some((name, password))
}

fn naive_text(octets: &[u8]) -> Option<String> {
    let text = String::from_utf8(octets.to_vec()).ok()?;
    (!text.is_empty() && text.chars().all(|character| character != '\0')).then_some(text)
}

/// RFC 4648 section 4, bit by bit.
fn naive_decode(line: &[u8]) -> Option<Vec<u8>> {
    let digits: Vec<u8> = line.iter().copied().take_while(|&octet| octet != b'=').collect();
    let padding = match digits.len() % 4 {
        0 => &b""[..],
        2 => b"==",
        3 => b"=",
        _ => return None,
    };
    if line[digits.len()..] != *padding {
        return None;
    }
    let mut bits = Vec::new();
    for digit in &digits {
        let value = ALPHABET.iter().position(|octet| octet == digit)?;
        bits.extend((0..6).rev().map(|bit| value >> bit & 1));
    }
    let (octets, left) = bits.as_chunks::<8>();
    let octets = octets.iter().map(|bits| bits.iter().fold(0, |octet, &bit| octet << 1 | bit as u8)).collect();
    left.iter().all(|&bit| bit == 0).then_some(octets)
}
