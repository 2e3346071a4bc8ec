//! What operators are told while the gateway runs: lines on standard error, and in the log where
//! that is JSON or a file (see [`crate::log`]).
//!
//! Nobody may be reading any more (a log pipe whose reader has ended): then a line is lost, and
//! nothing else. `eprintln!` would panic, and end the task that had something to say.

use crate::log;
use std::fmt;
use std::io::{self, Write};

/// Says a line, with the program's name before it.
pub fn say(line: fmt::Arguments<'_>) {
    only(line);
    log::notice(line);
}

/// Says a line here and not in the log, which is what it is about.
pub(crate) fn only(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "gatepost: {line}");
}
