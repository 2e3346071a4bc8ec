//! The first octets of a connection: of a proxy, whose header comes first, and of everybody else, who
//! may have none.
//!
//! Input: two octets that say in what pieces the rest arrives; the rest. Compared with `proxy_oracle`,
//! and with itself in other pieces.

use super::driver::Driver;
use super::{pieces, proxy_oracle, replies};
use gatepost::limits::PROXY_HEADER_MAX_OCTETS;
use gatepost::smtp::proxy::{self, Parsed};
use gatepost::smtp::reply::Reply;
use gatepost::smtp::server::{Profile, Query, Verdict};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

const PROXY: [u8; 4] = [10, 0, 0, 1];

pub fn run(input: &[u8]) {
    let (sizes, input) = input.split_at(input.len().min(2));
    let parsed = proxy_oracle::compare(input);
    for sizes in [sizes, &[0], &[1]] {
        assert_eq!(arrival(&pieces(input, sizes)), parsed, "{} in pieces of {sizes:?}", input.escape_ascii());
    }
    everybody(input, sizes);
    if let Parsed::Done { consumed, source } = parsed {
        let client = source.as_ref().map_or(PROXY.into(), SocketAddr::ip);
        dialogue(client, &input[consumed..], sizes);
    }
}

/// What a driver makes of octets that come in pieces: it keeps what belongs to the header, and leaves
/// what does not.
fn arrival(pieces: &[&[u8]]) -> Parsed {
    let mut begun = Vec::new();
    let mut last = proxy::parse(&begun);
    for piece in pieces {
        assert!(begun.len() < PROXY_HEADER_MAX_OCTETS);
        let start = begun.len();
        begun.extend_from_slice(piece);
        last = proxy::parse(&begun);
        match last {
            Parsed::NeedMore { .. } => {}
            Parsed::Malformed => break,
            Parsed::Done { consumed, .. } => {
                assert!(start < consumed, "it was there before");
                break;
            }
        }
    }
    last
}

/// A session of who is no proxy: it ends where a header begins, and nowhere else.
fn everybody(input: &[u8], sizes: &[u8]) {
    let (said, is_closed) = dialogue([192, 0, 2, 1].into(), input, sizes);
    let has_header = input.starts_with(b"PROXY ") || input.starts_with(b"\r\n\r\n\0\r\nQUIT\n");
    let refusals = said.iter().filter(|reply| *reply == Reply::ProxyHeaderNotAllowed.text()).count();
    assert_eq!(refusals, usize::from(has_header), "{}", input.escape_ascii());
    if has_header {
        assert!(said.len() == 2 && is_closed, "{said:?} to {}", input.escape_ascii());
    }
}

/// The replies of a session, and whether it has ended; the same in any pieces.
fn dialogue(client: IpAddr, input: &[u8], sizes: &[u8]) -> (Vec<String>, bool) {
    let perform = |sizes: &[u8]| {
        let profile = Profile { hostname: "mx.example.org".to_owned(), ..Profile::default() };
        let policy = Box::new(|_: Instant, _: &Query<'_>| Verdict::Accept);
        let mut driver = Driver::connect(profile, client, false, Instant::now(), policy);
        pieces(input, sizes).into_iter().for_each(|piece| driver.feed(piece));
        driver.pass(Duration::from_secs(1));
        driver.finish();
        let hello = format!("Hello [{}]", client.to_canonical());
        let said = replies(&driver.take_replies());
        for reply in said.iter().filter(|reply| reply.contains(" Hello [")) {
            assert!(reply.contains(&hello), "{reply}");
        }
        (said, driver.is_closed())
    };
    let told = perform(sizes);
    for others in [&[0][..], &[1]] {
        assert_eq!(perform(others), told, "{} in pieces of {others:?}", input.escape_ascii());
    }
    told
}
