//! Parking the dispatcher on the ring until the shard's epoll has events.
//!
//! glommio has no public way to poll a descriptor that is not a socket of its own. But its
//! `TcpStream::from_raw_fd` arms a poll on whatever descriptor it is given, and its `poll_read`
//! stays pending until that poll completes; it then tries `recv`, which on an epoll descriptor
//! fails with ENOTSOCK. So ENOTSOCK here means "the epoll is ready". One dup and one close per
//! park; every socket of the shard is behind that single poll, which is the point: a poll per
//! socket costs 3 to 5 interrupts per message in the kernel's task work (measured: 52 against
//! 34 us per message).
//!
//! This file is the only place that knows the trick, and holds the only unsafe line of the shard.

use crate::limits::ACCEPT_PAUSE_MS;
use futures_lite::AsyncRead;
use glommio::net::TcpStream;
use glommio::timer::Timer;
use std::future::poll_fn;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd};
use std::pin::Pin;
use std::time::Duration;

/// Returns when `epoll` has events, or wrongly and early: the caller looks at the epoll anyway.
pub async fn until_ready(epoll: impl AsFd) {
    let Ok(duplicate) = epoll.as_fd().try_clone_to_owned() else {
        // Out of descriptors: look again soon. The ring is served meanwhile.
        Timer::new(Duration::from_millis(ACCEPT_PAUSE_MS / 10)).await;
        return;
    };
    // SAFETY: the descriptor is open, owned by nobody else, and is closed when the stream drops.
    // That it is no socket is sound: glommio only polls it and calls recv on it, which fails.
    let mut stream: TcpStream = unsafe { TcpStream::from_raw_fd(duplicate.into_raw_fd()) };
    let mut octet = [0];
    // Any result means that the poll has completed; ENOTSOCK is the expected one.
    let _ = poll_fn(|cx| Pin::new(&mut stream).poll_read(cx, &mut octet)).await;
}
