//! Whom a session asks, as the driver sees them: policy, and who knows the users.

use gatepost::smtp::sasl::Mechanisms;
use gatepost::smtp::server::{Logon, LogonVerdict, Query, Verdict};
use std::time::Instant;

/// Everybody that a session asks.
pub type Policy = Box<dyn Outside>;

/// Who answers the session's questions.
pub trait Outside {
    /// The mechanisms by which users can be verified.
    fn mechanisms(&self) -> Mechanisms {
        Mechanisms::default()
    }

    /// The answer to `Step::Decide`.
    fn decide(&mut self, now: Instant, query: &Query<'_>) -> Verdict;

    /// The answer to `Step::Authenticate`.
    fn judge(&mut self, _now: Instant, _logon: Logon) -> Judgement {
        Judgement::Refuse
    }
}

/// Without users.
impl<F: FnMut(Instant, &Query<'_>) -> Verdict> Outside for F {
    fn decide(&mut self, now: Instant, query: &Query<'_>) -> Verdict {
        self(now, query)
    }
}

/// What is said to a logon: a [`LogonVerdict`] that owns its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    Accept(String),
    Refuse,
    NotHere,
    Unavailable,
}

impl Judgement {
    /// The same, borrowed.
    pub fn verdict(&self) -> LogonVerdict<'_> {
        match self {
            Judgement::Accept(name) => LogonVerdict::Accept(name),
            Judgement::Refuse => LogonVerdict::Refuse,
            Judgement::NotHere => LogonVerdict::NotHere,
            Judgement::Unavailable => LogonVerdict::Unavailable,
        }
    }
}
