//! What connections to next hops need before the shards start: certificates to trust, and passwords.
//!
//! Each is read once. On failure: one line that names the next hop, what is wrong and the remedy; the
//! process does not start.

mod auth_file;
mod tls;

use crate::config::NextHopConfig;
use crate::control::preflight::{ExitCode, Failure};
use crate::shard::Security;
use std::fmt;
use std::sync::Arc;

/// How connections to each of the next hops are protected, in their order.
pub fn secure(next_hops: &[NextHopConfig]) -> Result<Vec<Security>, Failure> {
    let mut trust = tls::Trust::default();
    let secure_one = |next_hop: &NextHopConfig| {
        let failed = |reason: &dyn fmt::Display| {
            Failure::new(ExitCode::Config, format!("next hop {}: {reason}", next_hop.address))
        };
        let credentials = next_hop.auth_file.as_deref().map(auth_file::read).transpose();
        Ok(Security {
            tls: tls::client(next_hop, &mut trust).map_err(|reason| failed(&reason))?,
            credentials: credentials.map_err(|reason| failed(&reason))?.map(Arc::new),
        })
    };
    next_hops.iter().map(secure_one).collect()
}
