//! The protocol, pure: RFC 5321 and its extensions as [MS-OXSMTP] asks for them.
//!
//! Lives here: everything that can be said about octets without a socket, a clock or a file. May
//! use `limits` only. On bad input nothing fails: the peer gets a reply of the one table in
//! [`reply`], and at worst the session ends.
//!
//! | module | subject |
//! |---|---|
//! | [`mod@line`] | command lines in the input |
//! | [`command`] | verbs and arguments |
//! | [`address`] | paths and mailboxes |
//! | [`envelope`] | what a transaction gathers |
//! | [`data`] | the content of DATA, streaming |
//! | [`encoder`] | content in the wire form of DATA |
//! | [`dsn`] | what a client asks for in reports |
//! | [`Durable`], [`QueueId`] | the proof behind the 250, and its id |
//! | [`header`], [`header_scan`] | the Received field; what an arriving header says |
//! | [`proxy`] | the header of the PROXY protocol |
//! | [`reply`] | every reply |
//! | [`sasl`] | the mechanisms of AUTH |
//! | [`server`] | the receiving session |
//! | [`client`] | the sending session |
//!
//! # Deviations
//!
//! Where the server departs from the letter of [MS-OXSMTP], or chooses between its revisions. Each
//! is a matter of one reply or one event; a comment `//=` in the code names the section that it meets.
//!
//! | the document | here | because |
//! |---|---|---|
//! | 4.0 3.2.7: TooManyRecipients, HeaderSizeExceeded, MessageSizeExceeded, MaxHopCount and MaxLocalHopCount end the session | it goes on, unless `--oxsmtp-revision` is 4.0 | 13.0 ends it no more: other messages of the session are not at fault |
//! | 13.0 3.2.7 leaves texts and most limits open | texts and default limits are those of 4.0 | they satisfy every later revision |
//! | 13.0 3.2.7: the connection timer is 5 minutes, 10 for a relay | these are defaults of an option | large messages over slow links |
//! | 3.2.7: OutOfResources; 13.0 does not say whether the session ends | it ends, as in 4.0 | overload must not hold sockets |
//! | 3.2.7: ConnectionCountPerSource and MessageRateLimitExceeded count by IP address | a network of IPv6 (`--ipv6-prefix`) is one source | a site has more addresses than any limit |
//! | 3.2.7: in Tarpit connection attempts are ignored for 5 seconds | the connection is accepted, and its banner late, once within a minute | TCP repeats an attempt that is ignored |
//! | 3.2.7: Tarpit concerns error messages | only those that refuse for good (5yz) and let the session go on | a 4yz is no fault of the client's |
//! | 4.0 3.2.7: "Hop count exceeded – possible mail loop" | the dash is the ASCII `-` | replies are ASCII (RFC 5321 section 4.2) |
//! | 4.0 3.2.5: the EHLO list has STARTTLS and AUTH NTLM by default | only with a certificate, or users to verify; AUTH not before TLS where that is required | what is offered must work (RFC 3207, RFC 4954) |
//! | 3.2.5.1: the server SHOULD answer AUTH without an initial response by the mechanism's name and "supported" | NTLM is answered so; PLAIN by an empty 334, LOGIN by its first question | clients of those take text for a challenge (RFC 4616, [MS-XLOGIN]) |
//! | nothing on logons that fail on many connections | `454 4.7.0 Temporary authentication failure` once a source has failed too often in a minute | RFC 4954 section 6; a password is not to be guessed at by reconnecting |
//! | 4.0 3.2.5: 8BITMIME and BINARYMIME can each be switched off; both have `BODY=` | 8BITMIME off refuses every `BODY=`, so BINARYMIME is off too | a parameter of what is off is refused, and no value of it is left |
//! | 4.0 3.2.5: `530 5.7.1` has two texts, "Not authenticated" too | `Client was not authenticated` | it is one condition |
//! | 4.0 3.2.5: `451 5.7.3 Must issue a STARTTLS command first` | as printed | the table is exact, though RFC 3463 wants one class in both codes |
//! | 4.0 3.2.5: an improper address at RCPT SHOULD be `501 5.1.7` | `501 5.1.3` | that is the MUST for the same condition |
//! | 4.0 3.2.5: domain expansion fails at MAIL, RCPT or DATA | at MAIL and RCPT | DATA has no address |
//! | 4.0 3.2.5: RCPT after "XECH50" | XEXCH50 is not offered; who has not authenticated gets `504 5.7.4`, and none of its octets is consumed | no list of extensions has it |
//! | nothing on a BDAT that does not parse, nor has RFC 3030 | `501 5.5.4 Invalid arguments`, and the session ends | the chunk's octets could not be told from commands |
//! | nothing on a server that shuts down | `421 4.3.2 Service shutting down`, between transactions | RFC 5321 section 3.8 |

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
pub mod proxy;
pub mod reply;
pub mod sasl;
pub mod server;

pub use durable::{Durable, QUEUE_ID_OCTETS, QUEUE_ID_SHARD_BITS, QueueId, QueueIdText};
