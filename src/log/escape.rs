//! How text from anywhere becomes a value that cannot be taken for anything else.
//!
//! A record is one line, and nobody who sends us something may end it, begin a field, or turn the
//! terminal of who reads it. So no control character of Unicode is written as it is, nor a line or
//! paragraph separator, nor what turns the direction of writing: in text they are `\n`, `\r`, `\t`
//! or the `\xNN` of their octets, in JSON what RFC 8259 section 7 has for them. Octets that are not
//! UTF-8 are `\xNN` in text, so that nothing is lost; JSON has no octets, there each piece that is
//! none is one U+FFFD. Letters of all scripts stay as they are.

/// The octet cannot stand in a value without quotes.
const QUOTE: u8 = 1;
/// The octet must be looked at with its neighbours, or escaped.
const LOOK: u8 = 2;

/// What is to be done for each octet, so that a usual value is looked at once and copied.
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut octet = 0;
    while octet < 256 {
        classes[octet] = match octet as u8 {
            b' ' | b'=' => QUOTE,
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => QUOTE | LOOK,
            _ => 0,
        };
        octet += 1;
    }
    classes
};

fn class(value: &[u8]) -> u8 {
    value.iter().fold(0, |class, &octet| class | CLASSES[usize::from(octet)])
}

/// What stands behind a value that was cut.
const CUT: &[u8] = b"...";

/// The first octets of a value, at most `max`, with no character cut in two; and what stands behind.
fn bound(value: &[u8], max: usize) -> (&[u8], &'static [u8]) {
    let Some((mut kept, _)) = value.split_at_checked(max).filter(|(_, rest)| !rest.is_empty()) else {
        return (value, b"");
    };
    // A character of UTF-8 has up to three octets behind its first.
    for _ in 0..3 {
        let next = value.get(kept.len()).is_some_and(|octet| octet & 0xc0 == 0x80);
        match kept.split_last() {
            Some((_, shorter)) if next => kept = shorter,
            _ => break,
        }
    }
    (kept, CUT)
}

/// Appends a value of a text record.
pub(super) fn text(out: &mut Vec<u8>, value: &[u8], max_octets: usize) {
    let (value, cut) = bound(value, max_octets);
    let class = class(value);
    if class == 0 && !value.is_empty() {
        out.extend_from_slice(value);
        out.extend_from_slice(cut);
        return;
    }
    out.push(b'"');
    if class & LOOK == 0 {
        out.extend_from_slice(value);
    } else {
        for chunk in value.utf8_chunks() {
            chunk.valid().chars().for_each(|character| text_character(out, character));
            hex(out, chunk.invalid());
        }
    }
    out.extend_from_slice(cut);
    out.push(b'"');
}

/// What both formats write for it.
fn short(character: char) -> Option<&'static [u8]> {
    Some(match character {
        '"' => b"\\\"",
        '\\' => b"\\\\",
        '\n' => b"\\n",
        '\r' => b"\\r",
        '\t' => b"\\t",
        _ => return None,
    })
}

fn text_character(out: &mut Vec<u8>, character: char) {
    let octets = &mut [0; 4];
    match short(character) {
        Some(escape) => out.extend_from_slice(escape),
        _ if is_unsafe(character) => hex(out, character.encode_utf8(octets).as_bytes()),
        _ => out.extend_from_slice(character.encode_utf8(octets).as_bytes()),
    }
}

fn hex(out: &mut Vec<u8>, octets: &[u8]) {
    for octet in octets {
        out.extend_from_slice(&[b'\\', b'x', digit(octet >> 4), digit(octet & 15)]);
    }
}

/// Appends a string of JSON.
pub(super) fn json(out: &mut Vec<u8>, value: &[u8], max_octets: usize) {
    let (value, cut) = bound(value, max_octets);
    out.push(b'"');
    if class(value) & LOOK == 0 {
        out.extend_from_slice(value);
    } else {
        for chunk in value.utf8_chunks() {
            chunk.valid().chars().for_each(|character| json_character(out, character));
            if !chunk.invalid().is_empty() {
                out.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
    }
    out.extend_from_slice(cut);
    out.push(b'"');
}

//= RFC 8259 section 7
fn json_character(out: &mut Vec<u8>, character: char) {
    match short(character) {
        Some(escape) => out.extend_from_slice(escape),
        _ if is_unsafe(character) => {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let [high, low] = unit.to_be_bytes();
                out.extend_from_slice(b"\\u");
                out.extend_from_slice(&[digit(high >> 4), digit(high & 15), digit(low >> 4), digit(low & 15)]);
            }
        }
        _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

/// A digit of a number below 16.
const fn digit(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'A' + (value - 10) }
}

/// Whether a character may do more to who reads it than be seen.
const fn is_unsafe(character: char) -> bool {
    match character {
        // Controls: C0, DEL, C1.
        '\0'..='\x1f' | '\x7f'..='\u{9f}' => true,
        // Line and paragraph separator, the byte order mark, marks for annotations.
        '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' => true,
        // Direction of writing: marks, embeddings, overrides, isolates.
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        // Tags: letters that are not seen.
        '\u{e0000}'..='\u{e007f}' => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for (value, as_text, as_json) in [
            (b"plain@example.org".as_slice(), "plain@example.org", r#""plain@example.org""#),
            (b"", r#""""#, r#""""#),
            (b"two words", r#""two words""#, r#""two words""#),
            (b"a=b", r#""a=b""#, r#""a=b""#),
            (b"say \"x\"", r#""say \"x\"""#, r#""say \"x\"""#),
            (b"back\\slash", r#""back\\slash""#, r#""back\\slash""#),
            (b"a\r\nb\tc", r#""a\r\nb\tc""#, r#""a\r\nb\tc""#),
            (b"\0\x1b[31m\x7f", r#""\x00\x1B[31m\x7F""#, r#""\u0000\u001B[31m\u007F""#),
            ("grüße 日本".as_bytes(), "\"grüße 日本\"", "\"grüße 日本\""),
            ("ñ".as_bytes(), "\"ñ\"", "\"ñ\""),
            // Next line, line separator, right-to-left override, a tag.
            ("a\u{85}b".as_bytes(), r#""a\xC2\x85b""#, r#""a\u0085b""#),
            ("\u{2028}".as_bytes(), r#""\xE2\x80\xA8""#, r#""\u2028""#),
            ("\u{202e}moc".as_bytes(), r#""\xE2\x80\xAEmoc""#, r#""\u202Emoc""#),
            ("\u{e0041}".as_bytes(), r#""\xF3\xA0\x81\x81""#, r#""\uDB40\uDC41""#),
            // Not UTF-8.
            (b"a\xffb\xc3", r#""a\xFFb\xC3""#, "\"a\u{fffd}b\u{fffd}\""),
            (b"\xed\xa0\x80", r#""\xED\xA0\x80""#, "\"\u{fffd}\u{fffd}\u{fffd}\""),
        ] {
            let (mut text_out, mut json_out) = (Vec::new(), Vec::new());
            text(&mut text_out, value, 512);
            json(&mut json_out, value, 512);
            assert_eq!(String::from_utf8_lossy(&text_out), as_text, "{value:?}");
            assert_eq!(String::from_utf8_lossy(&json_out), as_json, "{value:?}");
        }
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        for (value, cut) in [
            ("abcdef", "abcdef"),
            ("abcdefg", "abcdef..."),
            ("abcdeé", "abcde..."),
            ("abcd日本", "abcd..."),
            ("abc😀x", "abc..."),
            ("éé日本", "\"éé...\""),
            ("ab c 123", "\"ab c 1...\""),
        ] {
            let mut out = Vec::new();
            text(&mut out, value.as_bytes(), 6);
            assert_eq!(String::from_utf8_lossy(&out), cut);
        }
        // What only looks like the middle of a character is cut anywhere.
        let mut out = Vec::new();
        text(&mut out, &[0x80; 20], 6);
        assert_eq!(String::from_utf8_lossy(&out), r#""\x80\x80\x80...""#);
    }
}
