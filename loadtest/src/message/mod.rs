//! The shape of a generated message, so that whoever meets one can tell whether it is whole.
//!
//! ```text
//! X-Gatepost-Load-Id: 1f2e3d4c-0000000042
//! X-Gatepost-Load-Body: 0000003712 plain 9a0b1c2d
//! From: <sender@load.example>
//! To: <recipient@load.example>
//! Subject: Load message 1f2e3d4c-0000000042
//! Date: Wed, 01 Jan 2025 00:00:00 +0000
//! Message-ID: <1f2e3d4c-0000000042@client.load.example>
//!
//! 1f2e3d4c-0000000042 00000000 KLMNOPQRSTUVWXYZabcdefghijklmnopq
//! ...
//! ```
//!
//! The second line gives the body's length in octets, its kind (`plain` or `dots`) and the CRC32C of what follows it up
//! to and including the empty line, taken with the number of every id set to zeros. Id, length and kind determine the
//! body ([`body`]): nothing else need be stored to verify it. Relays may put header fields in front of these lines, as
//! a relay does with Received; anything else counts as an alteration.
//!
//! Rejected: a CRC of the body in the header. It would have to be computed for every message, and would say that a body
//! is wrong but not where.

pub mod body;
pub mod template;
pub mod verify;

/// Name of the field with the id, as it begins its line.
pub const ID_FIELD: &[u8] = b"X-Gatepost-Load-Id: ";
/// Name of the field that describes the body.
pub const BODY_FIELD: &[u8] = b"X-Gatepost-Load-Body: ";
/// Digits of the body's length in that field.
pub const OCTETS_DIGITS: usize = 10;
