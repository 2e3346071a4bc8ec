//! Black box: the real program, its sockets, its files, its exit codes.
//!
//! Everything here is told and seen as an operator or a client would: nothing of the library is
//! used, but for SASL by a next hop that is logged on to. What needs more than a toolchain (other
//! vendors' clients, mounts) is in `.ci/suites`.

mod ack_delay;
mod admin;
mod bindings;
mod blocks;
mod delivery;
mod harness;
mod limits;
mod listeners;
mod mail;
mod next_hop;
mod preflight;
mod queue;
mod resources;
mod sessions;
mod shutdown;
mod slow_readers;
mod spool;
mod users;
mod watermarks;
