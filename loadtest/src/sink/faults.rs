//! What the sink is to do wrong, where, and how often (`--fault`, `--faults-file`).
//!
//! ```text
//! VERB[PREFIX]=ACTION,WHEN        rcpt[bob]=550 5.1.1 no such user,first:3
//! ```
//!
//! VERB is the step at which it happens; `rcpt[PREFIX]` is only for recipients that begin so, `body@SIZE` for the
//! octet of the content at which it happens (the first). WHEN, which may be left out, is `first:N`, `%N` (each Nth) or
//! `p=0.1`. Rules of one verb are asked in their order until one acts, and each counts the times it was asked: rules
//! one behind the other with `first:N` are a script. A change of rules (SIGHUP) begins all counts anew.
//!
//! Counts are shared by all threads; chance depends on the seed, the rule and its count only, so that a run with one
//! session can be repeated. What does not parse is a usage error that names the rule.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::fault::Fault;
use crate::units::{parse_duration, parse_size};

/// Longest reply that can be told, in octets; RFC 5321 section 4.5.3.1.5 allows a line 512.
const REPLY_OCTETS_MAX: usize = 4096;
/// Octets of noise.
const NOISE_OCTETS: usize = 256;

/// A step of a session at which something can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// The greeting.
    Connect,
    /// The reply to EHLO.
    Ehlo,
    /// The reply to HELO.
    Helo,
    /// The reply to MAIL.
    Mail,
    /// The reply to RCPT.
    Rcpt,
    /// The reply to DATA, or to a BDAT that is not the last.
    Data,
    /// Amid the content.
    Body,
    /// The reply to the final dot, or to BDAT LAST.
    End,
    /// The reply to RSET.
    Rset,
    /// The reply to QUIT.
    Quit,
}

impl Verb {
    /// All of them, in the order of a session.
    pub const ALL: [Self; 10] = [
        Self::Connect,
        Self::Ehlo,
        Self::Helo,
        Self::Mail,
        Self::Rcpt,
        Self::Data,
        Self::Body,
        Self::End,
        Self::Rset,
        Self::Quit,
    ];

    /// Its name, in rules and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Ehlo => "ehlo",
            Self::Helo => "helo",
            Self::Mail => "mail",
            Self::Rcpt => "rcpt",
            Self::Data => "data",
            Self::Body => "body",
            Self::End => "end",
            Self::Rset => "rset",
            Self::Quit => "quit",
        }
    }
}

/// What happens instead of, or besides, the reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A refusal, whole lines. One that was told as a code only has our text, with an enhanced code.
    Reply {
        /// The reply with its line ends.
        lines: Arc<[u8]>,
        /// The operator's own words, which are never changed.
        literal: bool,
    },
    /// Nothing any more.
    Hang,
    /// The connection is reset.
    Reset,
    /// The connection is closed in order.
    Close,
    /// Noise in the place of the reply.
    Garbage,
    /// The reply twice; amid the content, the final reply.
    Early,
    /// The reply, so much later.
    Slow(Duration),
}

impl Action {
    /// Whether this is a reply that closes the connection (RFC 5321 section 3.8).
    pub fn closes(&self) -> bool {
        matches!(self, Self::Reply { lines, .. } if lines.starts_with(b"421"))
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(time) = text.strip_prefix("slow:") {
            return parse_duration(time).map(Self::Slow);
        }
        match text {
            "hang" => Ok(Self::Hang),
            "reset" => Ok(Self::Reset),
            "close" => Ok(Self::Close),
            "garbage" => Ok(Self::Garbage),
            "early" => Ok(Self::Early),
            _ => reply(text)
                .ok_or_else(|| format!("'{text}' is not 4yz, 5yz, hang, reset, close, garbage, early or slow:TIME")),
        }
    }
}

/// A refusal as lines; `\n` within the text begins another line of the same code.
fn reply(text: &str) -> Option<Action> {
    let code = text.get(..3)?;
    let valid = matches!(code.as_bytes(), [b'4' | b'5', b'0'..=b'9', b'0'..=b'9']);
    if !valid || text.len() > REPLY_OCTETS_MAX || text.bytes().any(|octet| octet.is_ascii_control()) {
        return None;
    }
    let Some(said) = text[3..].strip_prefix(' ') else {
        let lines = format!("{code} {}.0.0 Refused as told\r\n", &code[..1]).into_bytes().into();
        return (text.len() == 3).then_some(Action::Reply { lines, literal: false });
    };
    let parts: Vec<_> = said.split("\\n").collect();
    let last = parts.len() - 1;
    let line = |(at, part)| format!("{code}{}{part}\r\n", if at == last { ' ' } else { '-' });
    let lines: String = parts.into_iter().enumerate().map(line).collect();
    Some(Action::Reply { lines: lines.into_bytes().into(), literal: true })
}

/// How often a rule acts.
#[derive(Debug, Clone, Copy, PartialEq)]
enum When {
    Always,
    /// Each Nth time.
    Each(u64),
    /// The first N times.
    First(u64),
    /// With this probability.
    Chance(f64),
}

impl When {
    /// A selection at the end of a rule; None for text that is no selection.
    fn parse(text: &str) -> Option<Result<Self, String>> {
        let number = |digits: &str| {
            let number = digits.parse().ok().filter(|number| *number > 0);
            number.ok_or_else(|| format!("'{text}' needs a number from 1"))
        };
        if let Some(digits) = text.strip_prefix('%') {
            return Some(number(digits).map(Self::Each));
        }
        if let Some(digits) = text.strip_prefix("first:") {
            return Some(number(digits).map(Self::First));
        }
        let chance = text.strip_prefix("p=")?.parse().ok().filter(|chance| (0.0..=1.0).contains(chance));
        Some(chance.map(Self::Chance).ok_or_else(|| format!("'{text}' needs a probability from 0 to 1")))
    }

    fn picks(self, count: u64, random: u64) -> bool {
        match self {
            Self::Always => true,
            Self::Each(each) => count.is_multiple_of(each),
            Self::First(first) => count <= first,
            // 53 bits are what a float in 0..1 holds exactly.
            Self::Chance(chance) => ((random >> 11) as f64) < chance * (1u64 << 53) as f64,
        }
    }
}

/// One rule as it was told.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    verb: Verb,
    /// What the recipient begins with.
    prefix: Box<[u8]>,
    /// The octet of the content, from 1.
    at: u64,
    action: Action,
    when: When,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A recipient may hold "=", a reply both "=" and "]".
        let (place, what) = match text.split_once("]=") {
            Some((place, what)) if place.find('[') < place.find('=').or(Some(usize::MAX)) && place.contains('[') => {
                (place, what)
            }
            _ => text.split_once('=').ok_or_else(|| format!("'{text}' is not VERB=ACTION"))?,
        };
        let (place, prefix) = place.split_once('[').unwrap_or((place, ""));
        let (name, at) = match place.split_once('@') {
            Some((name, at)) => (name, parse_size(at)?.max(1)),
            None => (place, 1),
        };
        let verb = Verb::ALL
            .into_iter()
            .find(|verb| verb.name() == name)
            .ok_or_else(|| format!("'{name}' is not {}", Verb::ALL.map(Verb::name).join(", ")))?;
        if !prefix.is_empty() && verb != Verb::Rcpt {
            return Err(format!("'{text}': only rcpt has recipients"));
        }
        if place.contains('@') && verb != Verb::Body {
            return Err(format!("'{text}': only body has a place"));
        }
        let selected = what.rsplit_once(',').and_then(|(action, when)| Some((action, When::parse(when)?)));
        let (action, when) = match selected {
            Some((action, when)) => (action, when?),
            None => (what, When::Always),
        };
        Ok(Self { verb, prefix: prefix.as_bytes().into(), at, action: action.parse()?, when })
    }
}

/// A rule at work.
#[derive(Debug)]
struct Counted {
    rule: Rule,
    seen: AtomicU64,
}

/// All rules, in their order.
#[derive(Debug, Default)]
pub struct Faults {
    by_verb: [Vec<Counted>; Verb::ALL.len()],
    seed: u64,
}

impl Faults {
    /// Rules of which none has acted yet.
    pub fn new(rules: &[Rule], seed: u64) -> Self {
        let mut faults = Self { seed, ..Self::default() };
        for rule in rules {
            faults.by_verb[rule.verb as usize].push(Counted { rule: rule.clone(), seen: AtomicU64::new(0) });
        }
        faults
    }

    /// These rules and then those of a file: one on a line, empty lines and lines that begin with `#` left out.
    pub fn read(rules: &[Rule], path: Option<&Path>, seed: u64) -> Result<Self, Fault> {
        let mut rules = rules.to_vec();
        if let Some(path) = path {
            let text = std::fs::read_to_string(path).map_err(|error| Fault::file(path, error))?;
            for (index, line) in text.lines().enumerate() {
                if line.trim().is_empty() || line.starts_with('#') {
                    continue;
                }
                let wrong = |error| Fault::Usage(format!("{}:{}: {error}", path.display(), index + 1));
                rules.push(line.parse().map_err(wrong)?);
            }
        }
        Ok(Self::new(&rules, seed))
    }

    /// Number of rules.
    pub fn len(&self) -> usize {
        self.by_verb.iter().map(Vec::len).sum()
    }

    /// What goes wrong at this step now.
    pub fn pick(&self, verb: Verb) -> Option<Action> {
        self.pick_where(verb, |_| true)
    }

    /// What goes wrong with this recipient, a path without its brackets.
    pub fn pick_recipient(&self, recipient: &[u8]) -> Option<Action> {
        self.pick_where(Verb::Rcpt, |rule| recipient.starts_with(&rule.prefix))
    }

    /// What goes wrong at this octet of the content.
    pub fn pick_body(&self, at: u64) -> Option<Action> {
        self.pick_where(Verb::Body, |rule| rule.at == at)
    }

    /// The first octet of the content behind `after` at which something may go wrong.
    pub fn next_in_body(&self, after: u64) -> Option<u64> {
        self.by_verb[Verb::Body as usize].iter().map(|counted| counted.rule.at).filter(|at| *at > after).min()
    }

    fn pick_where(&self, verb: Verb, concerned: impl Fn(&Rule) -> bool) -> Option<Action> {
        let rules = &self.by_verb[verb as usize];
        let (_, picked) = rules.iter().enumerate().filter(|(_, counted)| concerned(&counted.rule)).find(
            |(index, Counted { rule, seen })| {
                let count = seen.fetch_add(1, Ordering::Relaxed) + 1;
                rule.when.picks(count, mix(mix(mix(self.seed) ^ ((verb as u64) << 32 | *index as u64)) ^ count))
            },
        )?;
        Some(picked.rule.action.clone())
    }
}

/// The finalizer of splitmix64: every bit of the result depends on every bit of `value`.
fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Appends noise: no octet of it is a digit or a line end, but the last two are CRLF, so that it is a line and no reply.
pub fn noise(out: &mut Vec<u8>) {
    let octets = (0..NOISE_OCTETS as u64).map(|at| mix(at) as u8);
    out.extend(octets.map(|octet| if matches!(octet, b'\r' | b'\n' | b'0'..=b'9') { !octet } else { octet }));
    out.extend_from_slice(b"\r\n");
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(rules: &[&str], seed: u64) -> Faults {
        let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        Faults::new(&rules, seed)
    }

    fn said(action: Option<Action>) -> String {
        match action {
            None => "-".to_owned(),
            Some(Action::Reply { lines, .. }) => String::from_utf8(lines.to_vec()).unwrap(),
            Some(action) => format!("{action:?}").to_lowercase(),
        }
    }

    #[test]
    fn rules_are_read() {
        for (rule, verb, lines) in [
            ("mail=451", Verb::Mail, "451 4.0.0 Refused as told\r\n"),
            ("mail=451 4.7.1 wait, then = again", Verb::Mail, "451 4.7.1 wait, then = again\r\n"),
            ("end=554 ,%", Verb::End, ""),
            ("rcpt[a=b]=550 ] = [x]=,first:2", Verb::Rcpt, "550 ] = [x]=\r\n"),
            (
                "connect=554 5.7.1 one\\ntwo\\n5.7.1 three",
                Verb::Connect,
                "554-5.7.1 one\r\n554-two\r\n554 5.7.1 three\r\n",
            ),
        ] {
            match rule.parse::<Rule>() {
                Ok(parsed) => assert_eq!((parsed.verb, said(Some(parsed.action)).as_str()), (verb, lines), "{rule}"),
                Err(error) => assert_eq!(lines, "", "{rule}: {error}"),
            }
        }
        let slow: Rule = "body@64KB=slow:250ms,p=0.5".parse().unwrap();
        assert_eq!(
            (slow.at, slow.action, slow.when),
            (65536, Action::Slow(Duration::from_millis(250)), When::Chance(0.5))
        );
        for rule in [
            "",
            "mail",
            "mail=",
            "mail=250",
            "mail=45",
            "mail=4511",
            "mail=451x",
            "frob=451",
            "mail[a]=451",
            "mail@1=451",
            "mail=hang,%0",
            "mail=hang,first:x",
            "mail=hang,p=2",
            "mail=slow:1",
            "mail=451 a\r\n",
        ] {
            assert!(rule.parse::<Rule>().is_err(), "{rule}");
        }
    }

    #[test]
    fn rules_take_turns() {
        let plan = faults(&["mail=451,first:2", "mail=hang,first:1", "mail=reset,%3", "quit=close"], 0);
        let mail: Vec<_> = (0..9).map(|_| said(plan.pick(Verb::Mail))).collect();
        let refused = "451 4.0.0 Refused as told\r\n";
        assert_eq!(mail, [refused, refused, "hang", "-", "-", "reset", "-", "-", "reset"]);
        assert_eq!((said(plan.pick(Verb::Quit)), said(plan.pick(Verb::Rset))), ("close".to_owned(), "-".to_owned()));
        assert_eq!(plan.len(), 4);
    }

    #[test]
    fn recipients_and_places_are_told_apart() {
        let plan = faults(&["rcpt[bob]=hang,first:1", "rcpt[b]=reset", "body@7=close", "body=early"], 0);
        let rcpt: Vec<_> =
            [&b"alice@x"[..], b"bert@x", b"bob@x", b"bob@x"].map(|to| said(plan.pick_recipient(to))).into();
        assert_eq!(rcpt, ["-", "reset", "hang", "reset"]);
        assert_eq!([0, 1, 6, 7].map(|after| plan.next_in_body(after)), [Some(1), Some(7), Some(7), None]);
        assert_eq!([1, 7, 8].map(|at| said(plan.pick_body(at))), ["early", "close", "-"]);
    }

    #[test]
    fn chance_is_repeatable_and_about_right() {
        let run = |seed| {
            let plan = faults(&["end=hang,p=0.1"], seed);
            (0..10_000).map(|_| plan.pick(Verb::End).is_some()).collect::<Vec<_>>()
        };
        let count = run(7).into_iter().filter(|picked| *picked).count();
        assert!((800..1200).contains(&count), "{count}");
        assert!(run(7) == run(7) && run(7) != run(8));
        for (chance, count) in [("0", 0), ("1", 100)] {
            let plan = faults(&[&format!("end=hang,p={chance}")], 1);
            assert_eq!((0..100).filter(|_| plan.pick(Verb::End).is_some()).count(), count);
        }
    }

    #[test]
    fn noise_is_no_reply() {
        let mut out = Vec::new();
        noise(&mut out);
        assert_eq!(out.len(), NOISE_OCTETS + 2);
        assert!(out.ends_with(b"\r\n") && out.iter().filter(|octet| **octet == b'\n').count() == 1);
        assert!(!out.iter().any(u8::is_ascii_digit) && out.iter().any(|octet| *octet >= 0x80));
    }

    #[test]
    fn a_file_adds_to_the_command_line() {
        let path = std::env::temp_dir().join(format!("gatepost-load-faults-{}", std::process::id()));
        let rules = ["mail=451".parse().unwrap()];
        std::fs::write(&path, "# a comment\n\nend=hang\nmail=reset\n").unwrap();
        assert_eq!(Faults::read(&rules, Some(&path), 0).unwrap().len(), 3);
        std::fs::write(&path, "end=hang\nend=frob\n").unwrap();
        let error = Faults::read(&rules, Some(&path), 0).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains(":2: 'frob' is not"), "{error}");
        assert!(matches!(Faults::read(&rules, Some(&path), 0), Err(Fault::File(..))));
    }
}
