//! What the sessions of a shard read and say, counted and recorded.

use super::records::Records;
use crate::metrics::ShardMetrics;
use crate::smtp::command::Verb;
use crate::smtp::reply::Reply;
use crate::smtp::server::{Observer, Session};
use std::rc::Rc;

/// Hears the sessions of a shard.
#[derive(Debug)]
pub struct ShardObserver {
    metrics: Rc<ShardMetrics>,
    records: Records,
}

impl ShardObserver {
    /// Counts and records here.
    pub fn new(metrics: Rc<ShardMetrics>, records: Records) -> Self {
        ShardObserver { metrics, records }
    }
}

impl Observer for ShardObserver {
    fn command(&self, verb: Verb) {
        self.metrics.count_command(verb);
    }

    fn reply(&self, code: u16) {
        self.metrics.count_reply(code);
    }

    fn refusal(&self, session: &Session, reply: Reply) {
        self.metrics.count_refusal(reply, session.content_octets());
        self.records.refused(session, reply);
    }
}
