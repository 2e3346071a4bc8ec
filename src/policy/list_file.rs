//! Files of items, one a line, as operators write them.

use std::fmt;

/// A line that holds no item: the operator's fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineError<E> {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub error: E,
}

impl<E: fmt::Display> fmt::Display for LineError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.error)
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for LineError<E> {}

/// The items in the text of a file: one per line, blank lines and everything from `#` on ignored,
/// lines ended by LF or CRLF, a byte order mark passed over.
///
/// # Errors
/// The first line that `parse` refuses; then none of the file is used.
pub fn parse_list_file<T, E>(text: &str, parse: impl Fn(&str) -> Result<T, E>) -> Result<Vec<T>, LineError<E>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let items = text.lines().map(|line| match line.split_once('#') {
        Some((item, _comment)) => item.trim(),
        None => line.trim(),
    });
    items
        .zip(1..)
        .filter(|(item, _)| !item.is_empty())
        .map(|(item, line)| parse(item).map_err(|error| LineError { line, error }))
        .collect()
}
