//! The file of rules, read line by line: it keeps to a small part of YAML, and what goes beyond is refused.

/// A rule that records or alerts.
#[derive(Debug, Default)]
pub struct Rule {
    /// The alert's or the recorded metric's name.
    pub name: String,
    /// Whether it alerts.
    pub is_alert: bool,
    /// The query.
    pub expression: String,
    /// `critical` or `warning`; empty for what records.
    pub severity: String,
    /// One line for a list of alerts.
    pub summary: String,
    /// What to do.
    pub description: String,
}

/// Reads all rules; the error says what line is not understood.
pub fn read(text: &str) -> Result<Vec<Rule>, String> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let wrong = |what: &str| format!("line {}: {what}: {line}", number + 1);
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let (key, value) = content.split_once(':').ok_or_else(|| wrong("no key"))?;
        let value = value.trim();
        if let "- alert" | "- record" = key {
            rules.push(Rule { name: value.to_owned(), is_alert: key == "- alert", ..Rule::default() });
            continue;
        }
        if let "groups" | "- name" | "rules" | "labels" | "annotations" | "for" = key {
            continue;
        }
        let rule = rules.last_mut().ok_or_else(|| wrong("before the first rule"))?;
        let field = match key {
            "expr" => &mut rule.expression,
            "severity" => &mut rule.severity,
            "summary" => &mut rule.summary,
            "description" => &mut rule.description,
            _ => return Err(wrong("a key that nobody knows")),
        };
        if !field.is_empty() {
            return Err(wrong("a second time"));
        }
        *field = match value {
            "|" => {
                let mut block = String::new();
                while let Some((_, line)) = lines.next_if(|(_, next)| indent(next) > indent(line)) {
                    block += line.trim();
                    block.push('\n');
                }
                block
            }
            _ if value.starts_with('"') => serde_json::from_str(value).map_err(|error| wrong(&error.to_string()))?,
            _ => value.to_owned(),
        };
    }
    Ok(rules)
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read() {
        let text = concat!(
            "groups:\n  - name: g\n    rules:\n      # Words.\n      - record: a:b\n        expr: |\n          a\n          + b\n",
            "      - alert: A\n        expr: a:b == 0\n        for: 1m\n        labels:\n          severity: critical\n",
            "        annotations:\n          summary: \"it \\\"says\\\": so\"\n          description: \"do\"\n",
        );
        let rules = read(text).unwrap();
        let [recorded, alert] = rules.as_slice() else { panic!("{rules:?}") };
        assert_eq!(
            (recorded.name.as_str(), recorded.is_alert, recorded.expression.as_str()),
            ("a:b", false, "a\n+ b\n")
        );
        assert_eq!((alert.name.as_str(), alert.is_alert, alert.expression.as_str()), ("A", true, "a:b == 0"));
        assert_eq!((alert.severity.as_str(), alert.summary.as_str()), ("critical", "it \"says\": so"));
        assert_eq!(alert.description, "do");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in ["expr: a", "- alert: A\n  exp: a", "- alert: A\n  a word", "- alert: A\n  expr: a\n  expr: b"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
