//! Next hops given by name: looked up now and then, as the system's resolver does it.
//!
//! A name that cannot be looked up keeps the addresses it had; without any its mail waits. The
//! resolver of the system tells no time to live, so a name is looked up every
//! [`NEXT_HOP_LOOKUP_MS`], and sooner after a failure.

use crate::limits::{NEXT_HOP_LOOKUP_AGAIN_MS, NEXT_HOP_LOOKUP_MS};
use crate::shard::Shared;
use crate::stderr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::time::sleep;

/// Keeps the addresses of the next hop at `index` up to date.
pub async fn resolve(shared: Arc<Shared>, index: usize, name: String, port: u16) {
    let Some(next_hop) = shared.next_hops().get(index) else { return };
    let mut failed = false;
    loop {
        let result = lookup_host((name.as_str(), port)).await.map(Iterator::collect::<Vec<SocketAddr>>);
        let wait_ms = match result {
            Ok(addresses) if !addresses.is_empty() => {
                next_hop.set_addresses(addresses);
                if std::mem::take(&mut failed) {
                    stderr::say(format_args!("next hop {name}: its name is known again"));
                }
                NEXT_HOP_LOOKUP_MS
            }
            result => {
                let reason = result.err().map_or_else(|| "it has no address".to_owned(), |error| error.to_string());
                if !std::mem::replace(&mut failed, true) {
                    stderr::say(format_args!("next hop {name}: {reason}; it is looked up again"));
                }
                NEXT_HOP_LOOKUP_AGAIN_MS
            }
        };
        sleep(Duration::from_millis(wait_ms)).await;
    }
}
