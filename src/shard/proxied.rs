//! Connections that a proxy brings: its header of the PROXY protocol, then the checks, of the client
//! that the header tells of.
//!
//! The place in the total is taken before the header is read, so that proxies which say nothing are
//! bounded like sessions are; all other checks need the client. Until then a connection costs its
//! socket, this task and what has come of the header, for [`PROXY_HEADER_MS`] at most. What is not
//! the header's is not read: it is looked at where it lies, and the session, or its TLS, finds
//! it there (rejected: handing it to them, which have three ways to begin).
//!
//! On a bad header, or none in time, the connection ends. A proxy that leaves without a word has
//! looked whether this server is there, and is no error.

use super::Context;
use super::current::Binding;
use super::inbound::Peer;
use super::listener;
use super::net::{Connection, Ready};
use super::shared::{Place, Stage};
use super::stream::Stream;
use crate::limits::{PROXY_HEADER_MAX_OCTETS, PROXY_HEADER_MS};
use crate::policy::canonical;
use crate::smtp::proxy::{self, Parsed};
use crate::smtp::reply::Reply;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

/// Why there is no header.
enum Failure {
    /// What has come is none, or was cut off.
    Malformed,
    /// It has not come in time.
    TimedOut,
    /// Nothing has come before the end.
    Closed,
    /// The process drains.
    Draining,
}

/// Takes on a connection that was accepted from a proxy.
pub fn admit(context: &Rc<Context>, binding: &Rc<Binding>, connection: Connection, proxy: IpAddr) {
    let place = match context.shared.take_place(&binding.config) {
        Ok(place) => place,
        Err(reply) => return end(context, binding, connection, proxy, reply),
    };
    let binding = binding.clone();
    listener::spawn(context, move |context| serve(context, binding, connection, proxy, place));
}

/// Reads the header; then there is a client to be admitted, or nothing more to be done here.
async fn serve(context: Rc<Context>, binding: Rc<Binding>, connection: Connection, proxy: IpAddr, place: Place) {
    let connected_at = context.net.now();
    let failure = match read_header(&context, &connection).await {
        Ok(source) => {
            let client = source.map_or(proxy, |source| canonical(source.ip()));
            let peer = Peer { client, proxy: source.map(|_| proxy), connected_at };
            return introduce(&context, &binding, connection, peer, place);
        }
        Err(failure) => failure,
    };
    // It is given back before the socket closes.
    drop(place);
    let headers = &context.metrics.proxy_headers;
    match failure {
        Failure::Closed => headers.closed.increment(1),
        Failure::Draining => end(&context, &binding, connection, proxy, Reply::ShuttingDown),
        Failure::Malformed | Failure::TimedOut => {
            let result = if let Failure::TimedOut = failure { &headers.timeout } else { &headers.malformed };
            result.increment(1);
            end(&context, &binding, connection, proxy, Reply::ProxyHeaderMissing);
        }
    }
}

/// Admits or refuses the client that a header told of.
fn introduce(context: &Rc<Context>, binding: &Rc<Binding>, connection: Connection, peer: Peer, place: Place) {
    let headers = &context.metrics.proxy_headers;
    let result = if peer.proxy.is_some() { &headers.accepted } else { &headers.local };
    result.increment(1);
    match place.admit(peer.client, &binding.rules, &binding.config, context.is_short(), context.net.now()) {
        Ok(permit) => listener::begin(context, binding, connection, peer, permit),
        Err(reply) => listener::refuse(context, binding, connection, (peer.client, peer.proxy), reply),
    }
}

/// Waits for the header and takes it off the socket: the source that it tells of.
async fn read_header(context: &Context, connection: &Connection) -> Result<Option<SocketAddr>, Failure> {
    connection.set_deadline(Some(context.net.now() + Duration::from_millis(PROXY_HEADER_MS)));
    let mut begun = Vec::new();
    loop {
        // The bell may have rung before this wait began.
        if context.shared.stage() != Stage::Serving {
            return Err(Failure::Draining);
        }
        match connection.ready().await {
            Ready::Bell => {}
            Ready::Deadline => return Err(Failure::TimedOut),
            Ready::Socket => {
                if let Some(source) = take_header(context, connection, &mut begun)? {
                    return Ok(source);
                }
            }
        }
    }
}

/// Takes what there is of the header, behind what has `begun`, and nothing else. `None`: more is to
/// come.
fn take_header(
    context: &Context,
    connection: &Connection,
    begun: &mut Vec<u8>,
) -> Result<Option<Option<SocketAddr>>, Failure> {
    let mut scratch = context.scratch.borrow_mut();
    // The parser asks for no more than this, so there is room for the next octet.
    let buffer = &mut scratch[..PROXY_HEADER_MAX_OCTETS];
    let start = begun.len();
    buffer[..start].copy_from_slice(begun);
    let end = match connection.peek(&mut buffer[start..]) {
        Ok(None) => return Ok(None),
        Ok(Some(octets)) if octets > 0 => start + octets,
        // The end.
        Ok(_) | Err(_) => return Err(if start == 0 { Failure::Closed } else { Failure::Malformed }),
    };
    let (taken, source) = match proxy::parse(&buffer[..end]) {
        Parsed::NeedMore { .. } => (end, None),
        Parsed::Malformed => return Err(Failure::Malformed),
        Parsed::Done { consumed, source } => (consumed, Some(source)),
    };
    // They are there, unless a reset has come meanwhile.
    if !matches!(connection.read(&mut buffer[start..taken]), Ok(Some(octets)) if octets == taken - start) {
        return Err(Failure::Malformed);
    }
    if source.is_none() {
        begun.extend_from_slice(&buffer[start..taken]);
    }
    Ok(source)
}

/// Ends a connection before its client is known: with a reply, but where TLS comes first, which cannot
/// begin behind a header that was not read.
fn end(context: &Context, binding: &Binding, connection: Connection, proxy: IpAddr, reply: Reply) {
    listener::tell_refusal(context, binding, (proxy, None), reply);
    if binding.implicit_tls { connection.linger() } else { listener::answer(Stream::new(connection), proxy, reply) }
}
