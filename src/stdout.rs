//! What operators are told of the usual course: lines on standard output, in order with the log's
//! records there; records themselves where the log is JSON (see [`crate::log`]).
//!
//! Once the log runs they pass through its thread: a reader that stands still keeps nobody from
//! draining. Nobody may be reading any more: then a line is lost.

use crate::log;
use std::fmt;

/// Says a line.
pub fn say(line: fmt::Arguments<'_>) {
    log::tell(line);
}
