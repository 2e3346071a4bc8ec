//! The rules of lines, commands and addresses written down once more, for comparison: one octet at
//! a time, straight from the grammar (RFC 5321 section 4.1.2, CONFORMANCE "Addresses", "Lines",
//! "Numbers" and G4). Slow and plain on purpose; it shares nothing with `gatepost::smtp` but limits.

use gatepost::limits::{
    COMMAND_LINE_MAX_OCTETS, DOMAIN_MAX_OCTETS, LABEL_MAX_OCTETS, LOCAL_PART_MAX_OCTETS, PATH_MAX_OCTETS,
};

/// What stands at the beginning of the input, where a command is expected.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A line; octets with its CRLF.
    Whole(usize),
    /// The same with a CR, LF or NUL inside.
    Spoiled(usize),
    Partial,
    TooLong,
}

pub fn line(input: &[u8]) -> Line {
    let mut spoiled = false;
    for at in 0..input.len().min(COMMAND_LINE_MAX_OCTETS) {
        if input[at] == b'\n' && at > 0 && input[at - 1] == b'\r' {
            // The CR of the line's own end spoils nothing.
            let inside = &input[..at - 1];
            spoiled |= inside.contains(&b'\r');
            return if spoiled { Line::Spoiled(at + 1) } else { Line::Whole(at + 1) };
        }
        spoiled |= matches!(input[at], b'\n' | 0);
    }
    if input.len() < COMMAND_LINE_MAX_OCTETS { Line::Partial } else { Line::TooLong }
}

/// Octets through the first CRLF.
pub fn through_crlf(input: &[u8]) -> Option<usize> {
    (0..input.len()).find(|&at| input[at..].starts_with(b"\r\n")).map(|at| at + 2)
}

/// The verb in upper case, and the arguments without spaces and tabs at both ends.
pub fn command(line: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut verb = Vec::new();
    let mut rest = line;
    while let [octet, tail @ ..] = rest {
        if *octet == b' ' {
            break;
        }
        verb.push(octet.to_ascii_uppercase());
        rest = tail;
    }
    while let [b' ' | b'\t', tail @ ..] = rest {
        rest = tail;
    }
    while let [head @ .., b' ' | b'\t'] = rest {
        rest = head;
    }
    (verb, rest)
}

/// A path of MAIL or RCPT.
#[derive(Debug, PartialEq, Eq)]
pub enum Path {
    Null,
    /// Local part and domain, as sent.
    Mailbox(Vec<u8>, Option<Vec<u8>>),
}

/// Why there is none.
#[derive(Debug, PartialEq, Eq)]
pub enum PathError {
    Keyword,
    Address,
}

/// The path behind `FROM:` or `TO:`, and the octets left for parameters.
pub fn path_argument(arguments: &[u8], keyword: &str) -> Result<(Path, usize), PathError> {
    let mut input = Input { octets: arguments, at: 0 };
    for expected in keyword.bytes() {
        match input.next() {
            Some(octet) if octet.eq_ignore_ascii_case(&expected) => {}
            _ => return Err(PathError::Keyword),
        }
    }
    while matches!(input.peek(), Some(b' ' | b'\t')) {
        input.at += 1;
    }
    path(&mut input).ok_or(PathError::Address)
}

/// Octets, read from the left.
struct Input<'b> {
    octets: &'b [u8],
    at: usize,
}

impl Input<'_> {
    fn peek(&self) -> Option<u8> {
        self.octets.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let octet = self.peek()?;
        self.at += 1;
        Some(octet)
    }

    fn eat(&mut self, wanted: u8) -> bool {
        let there = self.peek() == Some(wanted);
        self.at += usize::from(there);
        there
    }

    fn from(&self, start: usize) -> Vec<u8> {
        self.octets[start..self.at].to_vec()
    }
}

fn path(input: &mut Input<'_>) -> Option<(Path, usize)> {
    // Clients forget the brackets; a path is as long as with them.
    let bracketed = input.eat(b'<');
    let start = input.at;
    let path = if bracketed && input.peek() == Some(b'>') {
        Path::Null
    } else {
        source_route(input)?;
        let local_part = local_part(input)?;
        let domain = if input.eat(b'@') { Some(domain(input)?) } else { None };
        Path::Mailbox(local_part, domain)
    };
    let octets = input.at - start + 2;
    if bracketed && !input.eat(b'>') {
        return None;
    }
    let ends = matches!(input.peek(), None | Some(b' '));
    (ends && octets <= PATH_MAX_OCTETS).then(|| (path, input.octets.len() - input.at))
}

/// `@one.example,@two.example:`, if it is there.
fn source_route(input: &mut Input<'_>) -> Option<()> {
    if input.peek() != Some(b'@') {
        return Some(());
    }
    loop {
        if !input.eat(b'@') {
            return None;
        }
        domain(input)?;
        match input.next()? {
            b',' => {}
            b':' => return Some(()),
            _ => return None,
        }
    }
}

fn local_part(input: &mut Input<'_>) -> Option<Vec<u8>> {
    let start = input.at;
    if input.eat(b'"') {
        loop {
            match input.next()? {
                b'"' => break,
                b'\\' => {
                    if !matches!(input.next()?, b' '..=b'~') {
                        return None;
                    }
                }
                b' '..=b'~' => {}
                _ => return None,
            }
        }
    } else {
        loop {
            let atom = input.at;
            while input.peek().is_some_and(is_atext) {
                input.at += 1;
            }
            if input.at == atom {
                return None;
            }
            if !input.eat(b'.') {
                break;
            }
        }
    }
    let local_part = input.from(start);
    (local_part.len() <= LOCAL_PART_MAX_OCTETS).then_some(local_part)
}

fn is_atext(octet: u8) -> bool {
    matches!(octet, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9') || "!#$%&'*+-/=?^_`{|}~".contains(char::from(octet))
}

fn domain(input: &mut Input<'_>) -> Option<Vec<u8>> {
    let start = input.at;
    if input.eat(b'[') {
        while !input.eat(b']') {
            input.next()?;
        }
        let literal = input.from(start);
        return (literal.len() <= DOMAIN_MAX_OCTETS && is_literal(&literal[1..literal.len() - 1])).then_some(literal);
    }
    loop {
        let label = input.at;
        while matches!(input.peek(), Some(b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_')) {
            input.at += 1;
        }
        let label = input.from(label);
        if label.is_empty() || label.len() > LABEL_MAX_OCTETS || label[0] == b'-' || label[label.len() - 1] == b'-' {
            return None;
        }
        if !input.eat(b'.') {
            break;
        }
    }
    let domain = input.from(start);
    (domain.len() <= DOMAIN_MAX_OCTETS).then_some(domain)
}

fn is_literal(content: &[u8]) -> bool {
    let Ok(content) = std::str::from_utf8(content) else { return false };
    if content.to_ascii_lowercase().starts_with("ipv6:") { is_ipv6(&content[5..]) } else { is_ipv4(content) }
}

/// `Snum 3("." Snum)`; leading zeros are none of the grammar's business.
fn is_ipv4(text: &str) -> bool {
    let numbers: Vec<&str> = text.split('.').collect();
    numbers.len() == 4
        && numbers.iter().all(|number| {
            (1..=3).contains(&number.len())
                && number.chars().all(|digit| digit.is_ascii_digit())
                && number.parse::<u32>().is_ok_and(|number| number < 256)
        })
}

/// IPv6-full, IPv6-comp, IPv6v4-full or IPv6v4-comp: eight groups, of which `::` stands for at
/// least two, and an IPv4 address at the end for two.
fn is_ipv6(text: &str) -> bool {
    let halves: Vec<&str> = text.split("::").collect();
    let groups = |half: &str, is_last: bool| -> Option<usize> {
        if half.is_empty() {
            return Some(0);
        }
        let words: Vec<&str> = half.split(':').collect();
        let mut count = 0;
        for (index, word) in words.iter().enumerate() {
            if is_last && index + 1 == words.len() && word.contains('.') {
                if !is_ipv4(word) {
                    return None;
                }
                count += 2;
            } else {
                if !(1..=4).contains(&word.len()) || !word.chars().all(|digit| digit.is_ascii_hexdigit()) {
                    return None;
                }
                count += 1;
            }
        }
        Some(count)
    };
    match halves[..] {
        [whole] => groups(whole, true) == Some(8),
        [head, tail] => groups(head, false).zip(groups(tail, true)).is_some_and(|(head, tail)| head + tail <= 6),
        _ => false,
    }
}

/// Keyword and value.
pub type Parameter = (Vec<u8>, Option<Vec<u8>>);

/// `None` stands in place of a word that is no parameter.
pub fn parameters(input: &[u8]) -> Vec<Option<Parameter>> {
    let mut words: Vec<Vec<u8>> = vec![Vec::new()];
    for &octet in input {
        if octet == b' ' {
            words.push(Vec::new());
        } else if let Some(word) = words.last_mut() {
            word.push(octet);
        }
    }
    words.iter().filter(|word| !word.is_empty()).map(|word| parameter(word)).collect()
}

fn parameter(word: &[u8]) -> Option<Parameter> {
    let mut input = Input { octets: word, at: 0 };
    while input.peek().is_some_and(|octet| octet.is_ascii_alphanumeric() || (octet == b'-' && input.at > 0)) {
        input.at += 1;
    }
    let keyword = input.from(0);
    if keyword.is_empty() {
        return None;
    }
    if input.peek().is_none() {
        return Some((keyword, None));
    }
    if !input.eat(b'=') {
        return None;
    }
    let start = input.at;
    while let Some(octet) = input.next() {
        // Printable, no space, no `=`.
        if !octet.is_ascii_graphic() || octet == b'=' {
            return None;
        }
    }
    (input.at > start).then(|| (keyword, Some(input.from(start))))
}

/// A number of 1 to 20 digits; the inner `None`: more than a u64 holds.
pub fn number(digits: &[u8]) -> Option<Option<u64>> {
    if !(1..=20).contains(&digits.len()) {
        return None;
    }
    let mut value: u128 = 0;
    for digit in digits {
        match digit {
            b'0'..=b'9' => value = value * 10 + u128::from(digit - b'0'),
            _ => return None,
        }
    }
    Some(u64::try_from(value).ok())
}

/// Octets of a chunk, and whether it is the last.
pub fn chunk(arguments: &[u8]) -> Option<(u64, bool)> {
    let text = std::str::from_utf8(arguments).ok()?;
    let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
    match words[..] {
        [octets] => Some((number(octets.as_bytes())??, false)),
        [octets, last] if last.eq_ignore_ascii_case("LAST") => Some((number(octets.as_bytes())??, true)),
        _ => None,
    }
}
