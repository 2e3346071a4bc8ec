//! Gatepost.
pub mod limits;
pub mod policy;
pub mod queue;
pub mod smtp;
