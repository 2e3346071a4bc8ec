//! Every row of CONFORMANCE, the page that merges the revisions of [MS-OXSMTP], and where it is
//! shown.

use Shown::{BlackBox, Transcript};

/// Where a row, or a part of it, is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// By transcripts, named by the row's id.
    Transcript,
    /// By a test of the whole process, which names the row.
    BlackBox(&'static str),
}

const SESSION: &[Shown] = &[Transcript];

/// The ids in the page's order.
pub const ROWS: &[(&str, &[Shown])] = &[
    ("A1", &[BlackBox("tests/gateway/listeners.rs")]),
    ("A2", &[Transcript, BlackBox("tests/gateway/bindings.rs")]),
    ("A3", &[Transcript, BlackBox("tests/gateway/bindings.rs")]),
    ("B1", SESSION),
    ("B2", SESSION),
    ("B3", SESSION),
    ("B4", SESSION),
    ("B5", SESSION),
    ("B6", SESSION),
    ("B7", SESSION),
    ("C1", SESSION),
    ("C2", SESSION),
    ("C3", SESSION),
    ("C4", SESSION),
    ("C5", SESSION),
    ("C6", SESSION),
    ("C7", SESSION),
    ("C8", SESSION),
    ("C9", SESSION),
    ("C10", SESSION),
    ("C11", SESSION),
    ("C12", SESSION),
    ("C13", SESSION),
    ("C14", SESSION),
    ("C15", SESSION),
    ("C16", SESSION),
    ("C17", SESSION),
    ("C18", SESSION),
    ("C19", SESSION),
    ("D1", &[Transcript, BlackBox("tests/gateway/sessions.rs")]),
    ("D2", &[Transcript, BlackBox("tests/gateway/sessions.rs")]),
    ("E1", SESSION),
    ("E2", SESSION),
    ("E3", SESSION),
    ("E4", SESSION),
    ("E5", SESSION),
    ("E6", SESSION),
    ("E7", SESSION),
    ("E8", &[Transcript, BlackBox("tests/gateway/watermarks.rs")]),
    ("E9", &[BlackBox("tests/watchdog/main.rs")]),
    ("E10", SESSION),
    ("E11", &[Transcript, BlackBox("tests/gateway/limits.rs")]),
    ("E12", &[Transcript, BlackBox("tests/gateway/limits.rs")]),
    ("E13", &[Transcript, BlackBox("tests/gateway/blocks.rs")]),
    ("E14", &[Transcript, BlackBox("tests/gateway/blocks.rs")]),
    ("E15", &[Transcript, BlackBox("tests/gateway/dnsbl.rs")]),
    ("E16", &[BlackBox("tests/gateway/ack_delay.rs")]),
    ("E17", SESSION),
    ("F1", SESSION),
    ("F2", SESSION),
    ("F3", SESSION),
    ("F4", SESSION),
    ("F5", SESSION),
    ("F6", SESSION),
    ("F7", &[Transcript, BlackBox("tests/gateway/next_hop/auth.rs")]),
    ("F8", &[BlackBox("tests/gateway/next_hop/auth.rs")]),
    ("G1", SESSION),
    ("G2", SESSION),
    ("G3", SESSION),
    ("G4", SESSION),
    ("G5", SESSION),
    ("G6", SESSION),
    ("G7", SESSION),
    ("G8", &[Transcript, BlackBox("tests/gateway/mail.rs")]),
    ("H1", SESSION),
    ("H2", &[BlackBox("tests/gateway/next_hop/auth.rs")]),
    ("I", SESSION),
];
