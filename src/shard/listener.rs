//! Accepting connections: the checks before the banner, in their order.

use super::Context;
use super::current::Binding;
use super::inbound::{self, Peer};
use super::net::{Accepted, Connection, Listener, Ready};
use super::proxied;
use super::records::Origin;
use super::shared::{Permit, Stage};
use super::stream::Stream;
use crate::limits::{ACCEPT_BATCH_MAX, ACCEPT_PAUSE_MS, LATE_REFUSALS_MAX, REFUSED_HANDSHAKE_MS};
use crate::smtp::reply::Reply;
use crate::smtp::server::Revision;
use futures_lite::FutureExt;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

/// Accepts with the listener of this number until the process drains; then answers what still waits in
/// the kernel's queue, and closes.
pub async fn listen(context: Rc<Context>, number: usize, listener: Listener) {
    while context.shared.stage() == Stage::Serving {
        if listener.ready().await == Ready::Socket {
            accept_batch(&context, number, &listener).await;
        }
    }
    let current = context.current();
    loop {
        match listener.accept() {
            Accepted::Connection(connection, client) => {
                refuse(&context, current.binding(number), connection, (client, None), Reply::ShuttingDown)
            }
            Accepted::Gone => {}
            Accepted::Empty | Accepted::Exhausted => return,
        }
    }
}

async fn accept_batch(context: &Rc<Context>, number: usize, listener: &Listener) {
    // The configuration does not change before this waits.
    let current = context.current();
    let binding = current.binding(number);
    for _ in 0..ACCEPT_BATCH_MAX {
        match listener.accept() {
            Accepted::Connection(connection, client) => admit(context, binding, connection, client),
            Accepted::Gone => {}
            Accepted::Empty => return,
            Accepted::Exhausted => {
                // accept(2) would fail again at once, a thousand times a millisecond.
                context.metrics.accept_pauses.increment(1);
                listener.pause(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
                return;
            }
        }
    }
    // More may wait: sessions first.
    context.net.next_turn().await;
}

fn admit(context: &Rc<Context>, binding: &Rc<Binding>, connection: Connection, client: IpAddr) {
    if binding.proxies.as_ref().is_some_and(|proxies| proxies.contains(client)) {
        return proxied::admit(context, binding, connection, client);
    }
    let now = context.net.now();
    match context.shared.admit(client, &binding.rules, &binding.config, context.is_short(), now) {
        Ok(permit) => begin(context, binding, connection, Peer { client, proxy: None, connected_at: now }, permit),
        Err(reply) => refuse(context, binding, connection, (client, None), reply),
    }
}

/// Begins the session of a connection that was admitted.
pub fn begin(context: &Rc<Context>, binding: &Rc<Binding>, connection: Connection, peer: Peer, permit: Permit) {
    context.metrics.connections_accepted.increment(1);
    let binding = binding.clone();
    spawn(context, |context| inbound::serve(context, binding, connection, peer, permit));
}

/// Spawns the task of a connection, which a drain waits for.
pub fn spawn<T: Future<Output = ()>>(context: &Rc<Context>, serve: impl FnOnce(Rc<Context>) -> T + 'static) {
    context.session_began();
    let context = context.clone();
    context.net.clone().spawn(async move {
        // A defect in one session must not take the shard, with thousands of others, down.
        let served = AssertUnwindSafe(serve(context.clone())).catch_unwind().await;
        if served.is_err() {
            context.metrics.session_panics.increment(1);
        }
        context.session_ended();
    });
}

/// Refuses a connection, at once or after the tarpit's interval; under TLS where that comes first.
///
//= [MS-OXSMTP] 4.0 3.2.7 Tarpit: IPAddressNotAllowed is answered late.
pub fn refuse(
    context: &Rc<Context>,
    binding: &Binding,
    connection: Connection,
    (client, proxy): (IpAddr, Option<IpAddr>),
    reply: Reply,
) {
    tell_refusal(context, binding, (client, proxy), reply);
    let is_late = matches!(reply, Reply::BlockedSource | Reply::BlockedSourceForATime)
        && binding.config.revision() == Revision::V4;
    let interval = binding.config.tarpit().filter(|_| is_late);
    let stream = Stream::new(connection);
    if interval.is_none() && !binding.implicit_tls {
        return answer(stream, client, reply);
    }
    if context.late_refusals.get() >= LATE_REFUSALS_MAX || context.shared.stage() != Stage::Serving {
        if interval.is_some() {
            let skips = &context.metrics.tarpit_skips;
            let reason = if context.shared.stage() == Stage::Serving { &skips.crowded } else { &skips.drain };
            reason.increment(1);
        }
        // Nobody would understand plain text where TLS comes first.
        return if binding.implicit_tls { drop(stream) } else { answer(stream, client, reply) };
    }
    if interval.is_some() {
        context.metrics.tarpit_waits.connection.increment(1);
    }
    context.late_refusals.set(context.late_refusals.get() + 1);
    let (context, implicit_tls) = (context.clone(), binding.implicit_tls);
    context.net.clone().spawn(async move {
        refuse_late(&context, stream, implicit_tls, interval, |stream| answer(stream, client, reply)).await;
        context.late_refusals.set(context.late_refusals.get() - 1);
    });
}

/// Counts and records a refusal of a client, or of the proxy that would bring one.
pub fn tell_refusal(context: &Context, binding: &Binding, (client, proxy): (IpAddr, Option<IpAddr>), reply: Reply) {
    context.metrics.count_refused_connection(reply);
    context.records.refused_connection(Origin { listener: &binding.name, proxy }, client, reply);
}

/// Waits for the interval, and for TLS; a peer that is gone meanwhile needs no answer.
async fn refuse_late(
    context: &Context,
    mut stream: Stream,
    implicit_tls: bool,
    interval: Option<Duration>,
    answer: impl FnOnce(Stream),
) {
    if let Some(interval) = interval {
        stream.set_deadline(Some(context.net.now() + interval));
        loop {
            match stream.held().await {
                Ready::Bell if context.shared.stage() == Stage::Serving => {}
                Ready::Deadline | Ready::Bell => break,
                Ready::Socket => return,
            }
        }
    }
    if implicit_tls {
        let Some(config) = context.shared.tls() else { return };
        stream.set_deadline(Some(context.net.now() + Duration::from_millis(REFUSED_HANDSHAKE_MS)));
        if stream.begin_server(config).is_err() {
            return;
        }
        loop {
            context.net.pass().await;
            match stream.handshake().await {
                Ok(None) => break,
                Ok(Some(Ready::Socket)) => {}
                Ok(Some(Ready::Bell)) if context.shared.stage() == Stage::Serving => {}
                Ok(Some(_)) | Err(_) => return stream.linger(),
            }
        }
    }
    answer(stream);
}

/// Answers in place of the banner. The socket is new: the reply fits into its buffer.
pub fn answer(mut stream: Stream, client: IpAddr, reply: Reply) {
    let mut line = Vec::with_capacity(256);
    reply.write(&mut line, client);
    // A peer that is gone already needs no reply.
    if matches!(stream.write(&line), Ok(Some(_))) {
        stream.linger();
    }
}
