//! Accepting connections: the checks before the banner, in their order.

use super::Context;
use super::inbound;
use super::net::{Accepted, Connection, Listener, Ready};
use super::shared::Stage;
use crate::limits::{ACCEPT_BATCH_MAX, ACCEPT_PAUSE_MS};
use crate::smtp::reply::Reply;
use futures_lite::FutureExt;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

/// Accepts until the process drains; then answers what still waits in the kernel's queue, and
/// closes.
pub async fn listen(context: Rc<Context>, listener: Listener) {
    while context.shared.stage() == Stage::Serving {
        if listener.ready().await == Ready::Socket {
            accept_batch(&context, &listener).await;
        }
    }
    loop {
        match listener.accept() {
            Accepted::Connection(connection, _) => refuse(&context, connection, Reply::ShuttingDown),
            Accepted::Gone => {}
            Accepted::Empty | Accepted::Exhausted => return,
        }
    }
}

async fn accept_batch(context: &Rc<Context>, listener: &Listener) {
    for _ in 0..ACCEPT_BATCH_MAX {
        match listener.accept() {
            Accepted::Connection(connection, client) => admit(context, connection, client),
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

fn admit(context: &Rc<Context>, connection: Connection, client: IpAddr) {
    let permit = match context.shared.admit(client, &context.config.limits) {
        Ok(permit) => permit,
        Err(reply) => return refuse(context, connection, reply),
    };
    context.metrics.connections_accepted.increment(1);
    context.session_began();
    let context = context.clone();
    context.net.clone().spawn(async move {
        // A defect in one session must not take the shard, with thousands of others, down.
        let served = AssertUnwindSafe(inbound::serve(context.clone(), connection, client, permit)).catch_unwind().await;
        if served.is_err() {
            context.metrics.session_panics.increment(1);
        }
        context.session_ended();
    });
}

/// Answers in place of the banner. The socket is new: the reply fits into its buffer.
fn refuse(context: &Context, connection: Connection, reply: Reply) {
    context.metrics.count_refused_connection(reply);
    let mut line = Vec::with_capacity(128);
    reply.write(&mut line);
    // A peer that is gone already needs no reply.
    if matches!(connection.write(&line), Ok(Some(_))) {
        connection.linger();
    }
}
