//! What would keep `serve` from starting with a configuration: the same functions that `serve` prepares
//! itself with, or their halves that only look, all of them asked.
//!
//! Changes nothing, also beside a running gateway. What it finds holds for the user that it runs as.

use super::preflight::{self, Failure, Shards};
use super::resources::Resources;
use super::{admin, next_hops, tls, users_file};
use crate::config::Config;
use crate::log;
use crate::shard::Shared;
use crate::shard::storage::{SpoolDirectory, SpoolState};
use std::path::Path;
use std::slice;
use std::sync::Arc;

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// What is as it should be, and worth a word.
    pub notes: Vec<String>,
    /// What would keep `serve` from starting, in the order in which it would come to it.
    pub failures: Vec<Failure>,
}

impl Findings {
    /// Looks at all that `serve` would need.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let mut findings = Findings::default();
        findings.keep(log::check(&config.log));
        for next_hop in &config.delivery.next_hops {
            findings.keep(next_hops::secure(slice::from_ref(next_hop)));
        }
        if let Some(path) = &config.users {
            findings.keep(users_file::read_users(path));
        }
        for files in &config.certificates {
            findings.keep(tls::check(files));
        }
        let shards = Shards::serving(config.shards.unwrap_or_else(|| preflight::cores().len()));
        findings.keep(preflight::check_io_uring());
        findings.keep(preflight::check_locked_memory(shards));
        findings.keep(preflight::check_descriptors(config, shards));
        let spool = findings.keep(SpoolDirectory::check(&config.spool));
        findings.failures.extend(preflight::check_ports(&config.bindings, config.metrics_listen));
        if let Some(spool) = spool {
            findings.check_in_spool(config, &spool);
        }
        findings
    }

    /// What depends on the state of the spool.
    fn check_in_spool(&mut self, config: &Config, spool: &SpoolState) {
        let path = config.spool.display();
        let on_disk: &Path = match spool {
            SpoolState::New { above } => {
                self.notes.push(format!("spool {path} is not there: serve makes it"));
                above
            }
            SpoolState::Free => &config.spool,
            SpoolState::InUse { owner } => {
                self.notes.push(format!("spool {path} is in use by a running gatepost (process {owner})"));
                &config.spool
            }
        };
        let is_running = matches!(spool, SpoolState::InUse { .. });
        let is_to_be_made =
            |socket: &Path| matches!(spool, SpoolState::New { .. }) && socket.parent() == Some(&config.spool);
        if let Some(socket) = config.admin_socket.as_deref().filter(|socket| !is_to_be_made(socket)) {
            self.keep(admin::check(socket, is_running));
        }
        // It says by itself what there is too little of.
        let shared = Arc::new(Shared::new(Arc::new(config.clone()), []));
        self.keep(Resources::new(on_disk, shared));
    }

    fn keep<T, E: Into<Failure>>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.failures.push(error.into())).ok()
    }
}
