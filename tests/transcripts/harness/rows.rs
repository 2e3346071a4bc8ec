//! Every row of CONFORMANCE, the page that merges the revisions of [MS-OXSMTP], and where it is
//! shown.

use Shown::{BlackBox, Transcript, Waits};

/// Where a row, or a part of it, is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// By transcripts, named by the row's id.
    Transcript,
    /// By a test of the whole process, which names the row.
    BlackBox(&'static str),
    /// Not yet: this is missing.
    Waits(&'static str),
}

const USERS: Shown = Waits("AUTH");
const SESSION: &[Shown] = &[Transcript];

/// The ids in the page's order.
pub const ROWS: &[(&str, &[Shown])] = &[
    ("A1", &[BlackBox("tests/gateway/listeners.rs")]),
    ("A2", &[Transcript, BlackBox("tests/gateway/bindings.rs")]),
    ("A3", &[Transcript, BlackBox("tests/gateway/bindings.rs"), USERS]),
    ("B1", SESSION),
    ("B2", SESSION),
    ("B3", &[Transcript, Waits("STARTTLS and AUTH in the list")]),
    ("B4", SESSION),
    ("B5", SESSION),
    ("B6", SESSION),
    ("B7", SESSION),
    ("C1", SESSION),
    ("C2", SESSION),
    ("C3", &[Transcript, USERS]),
    ("C4", SESSION),
    ("C5", SESSION),
    ("C6", SESSION),
    ("C7", SESSION),
    ("C8", SESSION),
    ("C9", SESSION),
    ("C10", &[USERS]),
    ("C11", SESSION),
    ("C12", SESSION),
    ("C13", SESSION),
    ("C14", &[USERS]),
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
    ("E4", &[Transcript, Waits("the rate of an authenticated user")]),
    ("E5", SESSION),
    ("E6", SESSION),
    ("E7", &[Transcript, Waits("failed logons")]),
    ("E8", &[Transcript, BlackBox("tests/gateway/watermarks.rs")]),
    ("E9", &[BlackBox("tests/watchdog/main.rs")]),
    ("E10", SESSION),
    ("E11", &[Transcript, BlackBox("tests/gateway/limits.rs")]),
    ("E12", &[Transcript, BlackBox("tests/gateway/limits.rs")]),
    ("E13", &[Transcript, BlackBox("tests/gateway/blocks.rs")]),
    ("E14", &[Transcript, BlackBox("tests/gateway/blocks.rs")]),
    ("E15", &[Waits("DNS block lists")]),
    ("E16", &[BlackBox("tests/gateway/ack_delay.rs")]),
    ("E17", SESSION),
    ("F1", &[USERS]),
    ("F2", &[USERS]),
    ("F3", &[USERS]),
    ("F4", &[USERS]),
    ("F5", &[USERS]),
    ("F6", &[USERS]),
    ("F7", &[USERS]),
    ("F8", &[USERS]),
    ("G1", SESSION),
    ("G2", SESSION),
    ("G3", &[Transcript, Waits("STARTTLS: what is pipelined behind it")]),
    ("G4", SESSION),
    ("G5", &[Waits("STARTTLS")]),
    ("G6", &[Transcript, Waits("fields added to what is submitted")]),
    ("G7", &[Transcript, USERS]),
    ("G8", &[Transcript, BlackBox("tests/gateway/mail.rs")]),
    ("H1", &[Waits("AUTH and STARTTLS on submission bindings")]),
    ("H2", &[USERS]),
    ("I", SESSION),
];
