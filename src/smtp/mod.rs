//! The protocol, pure: RFC 5321 and its extensions as [MS-OXSMTP] asks for them.
//!
//! Lives here: everything that can be said about octets without a socket, a clock or a file. May
//! use `limits` only. On bad input nothing fails: the peer gets a reply of the one table in
//! [`reply`], and at worst the session ends.
//!
//! | module | subject |
//! |---|---|
//! | [`line`] | command lines in the input |
//! | [`command`] | verbs and arguments |
//! | [`address`] | paths and mailboxes |
//! | [`envelope`] | what a transaction gathers |
//! | [`data`] | the content of DATA, streaming |
//! | [`encoder`] | content in the wire form of DATA |
//! | [`dsn`] | what a client asks for in reports |
//! | [`Durable`], [`QueueId`] | the proof behind the 250, and its id |
//! | [`header`] | the Received field |
//! | [`reply`] | every reply |
//! | [`server`] | the receiving session |
//! | [`client`] | the sending session |

pub mod address;
pub mod client;
pub mod command;
pub mod data;
pub mod dsn;
mod durable;
pub mod encoder;
pub mod envelope;
pub mod header;
pub mod header_scan;
pub mod line;
pub mod reply;
pub mod server;

pub use durable::{Durable, QUEUE_ID_OCTETS, QUEUE_ID_SHARD_BITS, QueueId, QueueIdText};
