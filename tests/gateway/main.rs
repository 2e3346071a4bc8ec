//! Black box: the real program, its sockets, its files, its exit codes.
//!
//! Everything here is told and seen as an operator or a client would: nothing of the library is
//! used but texts of replies, the numbers of queue ids, NTLM as its clients speak it, and SASL by a
//! next hop that is logged on to. What needs more than a toolchain (other vendors' clients, mounts) is
//! in `.ci/suites`.

mod ack_delay;
mod admin;
mod auth;
mod auth_limits;
mod bindings;
mod blocks;
mod config;
mod damage;
mod delivery;
mod dnsbl;
mod harness;
mod limits;
mod listeners;
mod log;
mod mail;
mod next_hop;
mod orphans;
mod preflight;
mod proxy;
mod queue;
mod reasons;
mod reload;
mod resources;
mod sasl_client;
mod sessions;
mod shutdown;
mod slow_readers;
mod spool;
mod storage;
mod tls;
mod tls_files;
mod users;
mod watermarks;
