//! As much of PromQL as it takes to find what a query refers to: metrics with their matchers, and the
//! labels of its clauses. It does not judge whether a query makes sense: that is promtool's part.

use std::ops::Range;

/// A metric where a query names it.
#[derive(Debug, PartialEq)]
pub struct Selector {
    /// Its name, with the suffix that a histogram's parts have.
    pub metric: String,
    /// Name and value of each matcher.
    pub matchers: Vec<(String, String)>,
    /// The range behind it, without brackets.
    pub range: Option<String>,
    place: usize,
}

/// The labels of one `by`, `on` or the like.
#[derive(Debug)]
pub struct Clause {
    /// The word that begins it.
    pub word: String,
    /// Its labels.
    pub labels: Vec<String>,
    operand: Range<usize>,
}

/// What a query refers to.
#[derive(Debug, Default)]
pub struct Query {
    /// Its selectors, in their order.
    pub selectors: Vec<Selector>,
    /// Its clauses, in their order.
    pub clauses: Vec<Clause>,
}

impl Query {
    /// The selectors that a clause is about: those of the aggregation that it belongs to, or all for
    /// clauses that match two operands.
    pub fn operands<'a>(&'a self, clause: &'a Clause) -> impl Iterator<Item = &'a Selector> {
        self.selectors.iter().filter(|selector| clause.operand.contains(&selector.place))
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Text(&'a str),
    /// What stands in brackets.
    Range(&'a str),
    /// Numbers and durations: nothing is looked up in them.
    Number,
    Mark(char),
}

/// Reads a query; the error says what is not understood.
pub fn read(text: &str) -> Result<Query, String> {
    let tokens = tokens(text)?;
    let mut query = Query::default();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at = match token {
            Token::Word("and" | "or" | "unless" | "bool" | "offset") => at + 1,
            Token::Word(word @ ("by" | "without" | "on" | "ignoring" | "group_left" | "group_right")) => {
                let (labels, behind) = labels(&tokens, at + 1)?;
                let operand = match *word {
                    "by" | "without" => behind..closing(&tokens, behind)?,
                    _ => 0..tokens.len(),
                };
                query.clauses.push(Clause { word: (*word).to_owned(), labels, operand });
                behind
            }
            Token::Word(name) if is_call(&tokens, at) => {
                if name.contains(':') {
                    return Err(format!("{name} is called"));
                }
                at + 1
            }
            Token::Word(name) => {
                let (matchers, behind) = matchers(&tokens, at + 1)?;
                let range = tokens.get(behind).and_then(|token| match token {
                    Token::Range(range) => Some((*range).to_owned()),
                    _ => None,
                });
                query.selectors.push(Selector { metric: (*name).to_owned(), matchers, range, place: at });
                behind
            }
            Token::Text(text) => return Err(format!("the text {text:?} is no matcher's")),
            Token::Mark('{' | '}') => return Err("braces without a metric".to_owned()),
            Token::Range(_) | Token::Number | Token::Mark(_) => at + 1,
        };
    }
    Ok(query)
}

/// Whether a word is a function or an aggregation: an opening parenthesis or a clause follows.
fn is_call(tokens: &[Token<'_>], at: usize) -> bool {
    matches!(tokens.get(at + 1), Some(Token::Mark('(') | Token::Word("by" | "without")))
}

/// `(a, b)`: the words, and where it goes on.
fn labels(tokens: &[Token<'_>], at: usize) -> Result<(Vec<String>, usize), String> {
    let end = closing(tokens, at)?;
    let words = tokens[at..end].iter().filter_map(|token| match token {
        Token::Word(word) => Some((*word).to_owned()),
        _ => None,
    });
    Ok((words.collect(), end))
}

/// Behind the parenthesis that closes the one here.
fn closing(tokens: &[Token<'_>], at: usize) -> Result<usize, String> {
    if tokens.get(at) != Some(&Token::Mark('(')) {
        return Err("a clause stands before what it is about, and labels in parentheses".to_owned());
    }
    let mut depth = 0;
    for (place, token) in tokens.iter().enumerate().skip(at) {
        match token {
            Token::Mark('(') => depth += 1,
            Token::Mark(')') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Ok(place + 1);
        }
    }
    Err("a parenthesis is not closed".to_owned())
}

/// `{a="b", c=~"d"}`, or nothing: names and values, and where it goes on.
fn matchers(tokens: &[Token<'_>], at: usize) -> Result<(Vec<(String, String)>, usize), String> {
    let mut found = Vec::new();
    if tokens.get(at) != Some(&Token::Mark('{')) {
        return Ok((found, at));
    }
    let mut name = None;
    for (place, token) in tokens.iter().enumerate().skip(at + 1) {
        match token {
            Token::Mark('}') => return Ok((found, place + 1)),
            Token::Word(word) => name = Some(*word),
            Token::Text(value) => {
                let name = name.take().ok_or("a matcher's value without its label")?;
                found.push((name.to_owned(), (*value).to_owned()));
            }
            Token::Mark('=' | '!' | '~' | ',') => {}
            Token::Mark(_) | Token::Number | Token::Range(_) => break,
        }
    }
    Err("matchers that do not end".to_owned())
}

fn tokens(text: &str) -> Result<Vec<Token<'_>>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            _ if first.is_whitespace() => first.len_utf8(),
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '"' | '\'' => {
                let length = quoted(rest, first)?;
                found.push(Token::Text(&rest[1..length - 1]));
                length
            }
            '[' => {
                let end = rest.find(']').ok_or("a bracket is not closed")?;
                found.push(Token::Range(&rest[1..end]));
                end + 1
            }
            'a'..='z' | 'A'..='Z' | '_' | ':' => {
                let length = while_of(rest, |character| character.is_ascii_alphanumeric() || "_:".contains(character));
                found.push(Token::Word(&rest[..length]));
                length
            }
            '0'..='9' | '.' | '$' => {
                found.push(Token::Number);
                1 + while_of(&rest[1..], |character| character.is_ascii_alphanumeric() || "_.".contains(character))
            }
            '(' | ')' | '{' | '}' | ',' | '=' | '!' | '~' | '<' | '>' | '+' | '-' | '*' | '/' | '%' | '^' => {
                found.push(Token::Mark(first));
                1
            }
            _ => return Err(format!("{first:?} is not of PromQL")),
        };
        rest = &rest[length..];
    }
    Ok(found)
}

/// How many octets at the begin are of this kind.
fn while_of(text: &str, is_of: impl Fn(char) -> bool) -> usize {
    text.find(|character| !is_of(character)).unwrap_or(text.len())
}

/// The octets of the text in quotes at the begin, with the quotes.
fn quoted(text: &str, quote: char) -> Result<usize, String> {
    let mut is_escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if character == quote => return Ok(at + 1),
            _ => {}
        }
    }
    Err("a text is not closed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(query: &Query) -> Vec<&str> {
        query.selectors.iter().map(|selector| selector.metric.as_str()).collect()
    }

    #[test]
    fn selectors_are_found() {
        let query = read(r#"1 - sum(rate(a_total{x="1", y=~"b|c"}[5m])) / on (job) (b:c > 1e3) and d offset 1h or up"#)
            .unwrap();
        assert_eq!(names(&query), ["a_total", "b:c", "d", "up"]);
        let first = &query.selectors[0];
        assert_eq!(first.matchers, [("x".to_owned(), "1".to_owned()), ("y".to_owned(), "b|c".to_owned())]);
        assert_eq!(first.range.as_deref(), Some("5m"));
        assert_eq!(query.selectors[1].range, None);
        let text = read(r#"a{x="} by (\" [5m]"} # b"#).unwrap();
        assert_eq!(names(&text), ["a"]);
    }

    #[test]
    fn a_clause_is_about_its_operand() {
        let query = read("sum by (le, x) (a) / max by (y) (b + c) * on (z) d").unwrap();
        let about = |number: usize| {
            let clause = &query.clauses[number];
            let operands: Vec<_> = query.operands(clause).map(|selector| selector.metric.as_str()).collect();
            (clause.labels.join(" "), operands.join(" "))
        };
        assert_eq!(about(0), ("le x".to_owned(), "a".to_owned()));
        assert_eq!(about(1), ("y".to_owned(), "b c".to_owned()));
        assert_eq!(about(2), ("z".to_owned(), "a b c d".to_owned()));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        // The first is PromQL, too: this reader wants clauses in front.
        let texts = [
            "sum(a) by (x)",
            "sum by x (a)",
            "a{x=\"1\"",
            "a{x=\"1}",
            "a[5m",
            "on (a",
            "a \"b\"",
            "{x=\"1\"}",
            "a ; b",
        ];
        for text in texts {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
