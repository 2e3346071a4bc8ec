//! The kinds of socket: what accepts, and what was accepted or connected; and an alarm without one.

use super::{Doorbell, Key, Net};
use crate::limits::{LINGER_MAX_MS, NEXT_HOP_KEEPALIVE, NEXT_HOP_KEEPALIVES_MAX};
use crate::policy::canonical;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags, SocketType, acceptfrom_with,
    connect, recv, send, sendmsg, shutdown, socket_with, sockopt,
};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Why a task that waited goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// The socket may have what was waited for.
    Socket,
    /// The deadline has passed; it is cleared.
    Deadline,
    /// The shard's doorbell rang, or somebody used a [`Nudge`].
    Bell,
}

/// A registered descriptor; dropping it frees the slot, then closes.
#[derive(Debug)]
struct Registered {
    net: Net,
    key: Key,
    /// None once it lingers.
    fd: Option<OwnedFd>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if self.fd.is_some() {
            self.net.0.forget(&mut self.net.0.slots.borrow_mut(), self.key.index);
        }
    }
}

impl Registered {
    fn new(net: &Net, fd: OwnedFd, interest: EventFlags, readable: bool) -> io::Result<Self> {
        let key = net.register(&fd, interest, readable)?;
        Ok(Registered { net: net.clone(), key, fd: Some(fd) })
    }

    fn fd(&self) -> &OwnedFd {
        self.fd.as_ref().expect("a descriptor is taken only together with its owner")
    }

    fn with_slot<T>(&self, act: impl FnOnce(&mut super::Slot) -> T) -> T {
        let mut slots = self.net.0.slots.borrow_mut();
        act(slots.get_mut(self.key.index as usize).expect("a slot lives as long as its owner"))
    }

    /// Waits until `is_ready`, the deadline or the doorbell.
    async fn ready(&self, is_ready: impl Fn(&super::Slot) -> bool) -> Ready {
        poll_fn(|cx| self.with_slot(|slot| poll_slot(slot, cx, &is_ready))).await
    }
}

fn poll_slot(slot: &mut super::Slot, cx: &Context<'_>, is_ready: impl Fn(&super::Slot) -> bool) -> Poll<Ready> {
    if std::mem::take(&mut slot.rung) {
        return Poll::Ready(Ready::Bell);
    }
    if std::mem::take(&mut slot.expired) {
        return Poll::Ready(Ready::Deadline);
    }
    if is_ready(slot) {
        return Poll::Ready(Ready::Socket);
    }
    if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        slot.waker = Some(cx.waker().clone());
    }
    Poll::Pending
}

/// Wakes a task of the same shard that waits for a socket: it gets [`Ready::Bell`].
#[derive(Clone, Debug)]
pub struct Nudge {
    net: Net,
    key: Key,
}

impl Nudge {
    /// Wakes it, now or when it waits next. Nothing happens once its socket is gone.
    pub fn nudge(&self) {
        self.net.0.nudge(self.key.token());
    }

    /// The same for other threads.
    pub fn remote(&self) -> RemoteNudge {
        RemoteNudge { doorbell: self.net.doorbell().clone(), token: self.key.token() }
    }
}

/// A [`Nudge`] from another thread.
#[derive(Clone, Debug)]
pub struct RemoteNudge {
    doorbell: Doorbell,
    token: u64,
}

impl RemoteNudge {
    /// Wakes the task.
    pub fn nudge(&self) {
        self.doorbell.call(self.token);
    }
}

#[cfg(test)]
impl RemoteNudge {
    /// One for nobody in particular.
    pub fn of(doorbell: Doorbell) -> Self {
        RemoteNudge { doorbell, token: 0 }
    }
}

/// A deadline of its own, for a task without a socket.
#[derive(Debug)]
pub struct Alarm {
    net: Net,
    key: Key,
}

impl Alarm {
    /// An alarm that is not set.
    pub fn new(net: &Net) -> Self {
        Alarm { net: net.clone(), key: net.take_slot(false) }
    }

    /// Waits until `deadline`, the doorbell or a nudge.
    pub async fn wait(&self, deadline: Option<Instant>) -> Ready {
        self.net.0.set_deadline(self.key.index, deadline);
        poll_fn(|cx| {
            let mut slots = self.net.0.slots.borrow_mut();
            let slot = slots.get_mut(self.key.index as usize).expect("a slot lives as long as its owner");
            poll_slot(slot, cx, |_| false)
        })
        .await
    }

    /// What wakes it from elsewhere.
    pub fn nudge(&self) -> Nudge {
        Nudge { net: self.net.clone(), key: self.key }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.net.0.forget(&mut self.net.0.slots.borrow_mut(), self.key.index);
    }
}

/// What came of an attempt to accept.
#[derive(Debug)]
pub enum Accepted {
    /// A connection and its peer's address, IPv4-mapped ones as IPv4.
    Connection(Connection, IpAddr),
    /// Nobody waits.
    Empty,
    /// The connection was gone before it was taken.
    Gone,
    /// No descriptor or memory for one more: pause.
    Exhausted,
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener(Registered);

impl Listener {
    /// Takes over a bound, listening, non-blocking socket.
    pub fn new(net: &Net, fd: OwnedFd) -> io::Result<Self> {
        Registered::new(net, fd, EventFlags::IN, true).map(Listener)
    }

    /// Waits until a connection may be there.
    pub async fn ready(&self) -> Ready {
        self.0.ready(|slot| slot.readable).await
    }

    /// Pauses for this long, or until the doorbell rings.
    pub async fn pause(&self, pause: Duration) {
        self.0.with_slot(|slot| slot.readable = false);
        self.0.net.0.set_deadline(self.0.key.index, Some(self.0.net.now() + pause));
        while self.0.ready(|slot| slot.readable).await == Ready::Socket {
            self.0.with_slot(|slot| slot.readable = false);
        }
        self.0.with_slot(|slot| slot.readable = true);
    }

    /// Accepts one connection.
    pub fn accept(&self) -> Accepted {
        match acceptfrom_with(self.0.fd(), SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok((fd, address)) => {
                // A peer that is gone already has no address.
                let Some(Ok(address)) = address.map(SocketAddr::try_from) else { return Accepted::Gone };
                // What is reckoned from here must not begin before the client did.
                self.0.net.refresh_now();
                // Clients wait for the banner: there is nothing to read yet.
                match Registered::new(&self.0.net, fd, EventFlags::IN, false) {
                    Ok(registered) => Accepted::Connection(Connection(registered), canonical(address.ip())),
                    Err(_) => Accepted::Exhausted,
                }
            }
            Err(Errno::AGAIN) => {
                self.0.with_slot(|slot| slot.readable = false);
                Accepted::Empty
            }
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Accepted::Exhausted,
            // ECONNABORTED, EPROTO and the network errors of accept(2): that connection only.
            Err(_) => Accepted::Gone,
        }
    }
}

/// A connection, accepted or made.
#[derive(Debug)]
pub struct Connection(Registered);

impl Connection {
    /// Begins to connect; wait in [`Self::writable`], then ask [`Self::connect_result`].
    pub fn connect(net: &Net, address: SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = socket_with(family, SocketType::STREAM, flags, None)?;
        // What is sent is sent whole: waiting for acknowledgements only delays it.
        sockopt::set_tcp_nodelay(&fd, true)?;
        notice_when_forgotten(&fd)?;
        match connect(&fd, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let registered = Registered::new(net, fd, EventFlags::IN | EventFlags::OUT, false)?;
        registered.with_slot(|slot| slot.writable = false);
        Ok(Connection(registered))
    }

    /// How connecting ended.
    pub fn connect_result(&self) -> io::Result<()> {
        Ok(sockopt::socket_error(self.0.fd())??)
    }

    /// Waits for the deadline, the doorbell or a nudge, whatever the peer sends.
    pub async fn interrupted(&self) -> Ready {
        self.0.ready(|_| false).await
    }

    /// The same, or until the connection is reset ([`Ready::Socket`]).
    pub async fn held(&self) -> Ready {
        self.0.ready(|slot| slot.is_dead).await
    }

    /// What wakes the task that waits for this connection.
    pub fn nudge(&self) -> Nudge {
        Nudge { net: self.0.net.clone(), key: self.0.key }
    }

    /// Waits until there may be input.
    pub async fn ready(&self) -> Ready {
        self.0.ready(|slot| slot.readable).await
    }

    /// Waits until there may be room for output.
    pub async fn writable(&self) -> Ready {
        self.0.ready(|slot| slot.writable).await
    }

    /// Waits until there may be input, or room for output.
    pub async fn ready_or_writable(&self) -> Ready {
        self.0.ready(|slot| slot.readable || slot.writable).await
    }

    /// Sets or clears the deadline that [`Ready::Deadline`] tells of.
    pub fn set_deadline(&self, deadline: Option<Instant>) {
        self.0.net.0.set_deadline(self.0.key.index, deadline);
    }

    /// Reads what is there: 0 is the peer's end, `None` nothing yet. Reads the clock too: a deadline
    /// that is reckoned from the input must not be early by the peer's own clock, and in a long
    /// turn much may arrive after its beginning.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let octets = self.receive(buffer, RecvFlags::empty())?;
        if octets.is_some_and(|octets| octets < buffer.len()) {
            self.0.with_slot(|slot| slot.readable = slot.hung_up);
        }
        Ok(octets)
    }

    /// The same, and leaves it there: the next read finds it at once.
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.receive(buffer, RecvFlags::PEEK)
    }

    fn receive(&self, buffer: &mut [u8], flags: RecvFlags) -> io::Result<Option<usize>> {
        loop {
            match recv(self.0.fd(), &mut *buffer, flags) {
                Ok((octets, _)) => {
                    self.0.net.refresh_now();
                    return Ok(Some(octets));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.0.with_slot(|slot| slot.readable = false);
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes what fits: `None` nothing now; wait in [`Self::writable`].
    pub fn write(&self, octets: &[u8]) -> io::Result<Option<usize>> {
        self.send(|fd| send(fd, octets, SendFlags::NOSIGNAL))
    }

    /// The same of several pieces, as one.
    pub fn write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        self.send(|fd| sendmsg(fd, pieces, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL))
    }

    fn send(&self, send: impl Fn(&OwnedFd) -> Result<usize, Errno>) -> io::Result<Option<usize>> {
        loop {
            match send(self.0.fd()) {
                Ok(sent) => return Ok(Some(sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.watch_output()?;
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Asks the epoll for output too. Not before a send was refused: most sockets never need it,
    /// and each would get an event at once.
    fn watch_output(&self) -> io::Result<()> {
        self.0.with_slot(|slot| slot.writable = false);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::modify(&self.0.net.0.epoll, self.0.fd(), EventData::new_u64(self.0.key.token()), flags)?)
    }

    /// Half-closes, and drops what the peer still sends, for at most [`LINGER_MAX_MS`]: closing
    /// with unread input would reset the connection, and the last reply might be lost with it.
    pub fn linger(self) {
        let Connection(mut registered) = self;
        let Some(fd) = registered.fd.take() else { return };
        let net = registered.net.clone();
        // Fails when the peer has reset the connection: draining notices.
        let _ = shutdown(&fd, Shutdown::Write);
        net.0.linger(registered.key, fd, net.now() + Duration::from_millis(LINGER_MAX_MS));
    }
}

/// Has the kernel ask a silent peer whether it still has the connection. Who waits for a greeting or
/// a reply has nothing to send, so nothing else would tell. Linux forgets a connection without a
/// reset when its listening socket is closed just as the handshake ends (a next hop that restarts
/// under load: seen), as does a host that lost power, or a firewall that was restarted.
fn notice_when_forgotten(fd: &OwnedFd) -> io::Result<()> {
    sockopt::set_tcp_keepidle(fd, NEXT_HOP_KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(fd, NEXT_HOP_KEEPALIVE)?;
    sockopt::set_tcp_keepcnt(fd, NEXT_HOP_KEEPALIVES_MAX)?;
    Ok(sockopt::set_socket_keepalive(fd, true)?)
}
