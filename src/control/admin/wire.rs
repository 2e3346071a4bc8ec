//! What is said on the admin socket: the one table for both sides.
//!
//! A connection carries one [`Request`] and one [`Answer`], each a line of JSON. To add a command: a
//! variant here, its handler in [`super::Commands`], and its subcommand in `cmd`.

use crate::control::preflight::{ExitCode, Failure};
use serde::{Deserialize, Serialize};

/// What an operator asks of a running gateway.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Block a range for some time; one that is there gets the new expiry.
    BlockAdd {
        /// The range, as `policy::parse_range` reads it.
        cidr: String,
        /// For how long.
        for_ms: u64,
    },
    /// The ranges that are blocked for some time.
    BlockList,
    /// Block a range no longer.
    BlockRemove {
        /// The range, as `policy::parse_range` reads it.
        cidr: String,
    },
    /// Load the configuration again.
    Reload,
    /// Let a shard stand still for some time.
    #[cfg(feature = "fault-injection")]
    FaultStall {
        /// The shard's number.
        shard: usize,
        /// For how long.
        for_ms: u64,
    },
    /// Let a shard panic.
    #[cfg(feature = "fault-injection")]
    FaultKill {
        /// The shard's number.
        shard: usize,
    },
}

/// What the gateway says to it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is done.
    Done,
    /// [`Request::BlockList`], sorted.
    Blocks(Vec<BlockedRange>),
    /// [`Request::Reload`]: the configuration is in use.
    Reloaded {
        /// What was changed, and what needs a restart.
        lines: Vec<String>,
        /// The numbers of the shards that do not go by it yet.
        late: Vec<usize>,
    },
    /// It is not done.
    Failed {
        /// The exit code of the command that asked.
        code: ExitCode,
        /// Cause and remedy in one line.
        message: String,
    },
}

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Self {
        Answer::Failed { code: failure.code, message: failure.message }
    }
}

/// A range that is blocked for some time.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedRange {
    /// The range, without host bits.
    pub cidr: String,
    /// For how much longer.
    pub left_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let table = [
            (
                Request::BlockAdd { cidr: "192.0.2.0/24".to_owned(), for_ms: 1000 },
                r#"{"command":"block-add","cidr":"192.0.2.0/24","for_ms":1000}"#,
            ),
            (Request::BlockList, r#"{"command":"block-list"}"#),
            (Request::BlockRemove { cidr: "::1".to_owned() }, r#"{"command":"block-remove","cidr":"::1"}"#),
            (Request::Reload, r#"{"command":"reload"}"#),
        ];
        for (request, line) in table {
            assert_eq!(serde_json::to_string(&request).expect("a line"), line);
            assert_eq!(serde_json::from_str::<Request>(line).expect(line), request);
        }
        let table = [
            (Answer::Done, r#""done""#),
            (Answer::Blocks(Vec::new()), r#"{"blocks":[]}"#),
            (
                Answer::Reloaded { lines: vec!["tarpit: 5s -> 1s".to_owned()], late: vec![1] },
                r#"{"reloaded":{"lines":["tarpit: 5s -> 1s"],"late":[1]}}"#,
            ),
            (
                Answer::from(Failure::new(ExitCode::NotThere, "it\nis not")),
                r#"{"failed":{"code":"not-there","message":"it\nis not"}}"#,
            ),
        ];
        for (answer, line) in table {
            assert_eq!(serde_json::to_string(&answer).expect("a line"), line);
            assert_eq!(serde_json::from_str::<Answer>(line).expect(line), answer);
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in [
            "",
            "{}",
            "block-list",
            r#"{"command":"frobnicate"}"#,
            r#"{"command":"block-add","cidr":"::1"}"#,
            r#"{"command":"block-add","cidr":"::1","for_ms":-1}"#,
            r#"{"command":"block-remove","cidr":"::1","force":true}"#,
        ] {
            assert!(serde_json::from_str::<Request>(line).is_err(), "{line}");
        }
    }
}
