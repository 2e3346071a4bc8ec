//! NTLM version 2 ([MS-NLMP]), the messages of AUTH NTLM ([MS-SMTPNTLM]): NEGOTIATE of the client,
//! CHALLENGE of the server, AUTHENTICATE of the client.
//!
//! | module | subject |
//! |---|---|
//! | [`server`] | who a client says it is, and whether it has that user's hash |
//! | [`client`] | the messages of a client |
//! | `message` | the layout that all messages share |
//! | `crypto` | hashes and keys |
//!
//! The password itself is never needed: whoever has its hash ([`NtHash`]) can prove to have it. So
//! the hash is as secret as the password.
//!
//! # What the proof covers
//!
//! The NT response has HMACs, under a key made of the hash, the user name in upper case and the
//! domain, over the server's nonce and the client's blob. What stands elsewhere in AUTHENTICATE (the
//! LM response, the workstation, flags, version) is covered by the MIC, if there is one: the blob says
//! so, where nobody can change it. curl and others send none, so none is demanded.
//!
//! Not here: NTLM version 1 and LM responses, which are refused; anonymous logon, refused too;
//! channel bindings, and with them any defence against one who stands between client and server and
//! only passes messages on (TLS is that); signing and sealing, which SMTP has no use for. Rejected:
//! the crate `rc4`, which brings three others for the sixteen octets of one key.

pub mod client;
mod crypto;
mod message;
pub mod server;

pub use client::{ClientExchange, Randomness};
pub use crypto::{NtHash, nt_hash};
pub use server::{Logon, ServerExchange};

/// Milliseconds from the beginning of 1601, where NTLM's time begins, to that of 1970.
const UNIX_EPOCH_MS: u64 = 11_644_473_600_000;

/// NTLM's time, in units of 100 ns ([MS-DTYP] 2.3.3), of a Unix time in milliseconds.
pub const fn filetime(unix_ms: u64) -> u64 {
    unix_ms.saturating_add(UNIX_EPOCH_MS).saturating_mul(10_000)
}

#[cfg(test)]
mod flip_tests;
#[cfg(test)]
mod tests;
