//! A client's connection: the one place that touches a socket, so that TLS can be put under it later.
//!
//! Every operation has a deadline. Buffers stay with the session across connections. A [`Breakage`] leaves the
//! connection of no use: the session closes it.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Sleep;

use super::reply::{Reply, ReplyBuffer};
use super::stats::Breakage;

/// A timer that is cheap to move: only the first deadline is armed, later ones when it fires.
pub struct Deadline {
    sleep: Pin<Box<Sleep>>,
    at: Instant,
}

impl Deadline {
    /// A deadline that has to be set before it is polled.
    pub fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(Duration::ZERO)), at: Instant::now() }
    }

    /// Moves the deadline; it may only move forward.
    pub fn set(&mut self, at: Instant) {
        self.at = at;
    }

    /// Ready when the deadline has passed.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            if Instant::now() >= self.at {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.at.into());
        }
    }
}

/// A connection, or the place for one.
pub struct Wire {
    stream: Option<TcpStream>,
    input: ReplyBuffer,
    deadline: Deadline,
    timeout: Duration,
}

impl Wire {
    /// Not connected. `timeout` bounds each operation.
    pub fn new(timeout: Duration) -> Self {
        Self { stream: None, input: ReplyBuffer::default(), deadline: Deadline::new(), timeout }
    }

    /// Whether there is a connection.
    pub fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Closes the connection.
    pub fn close(&mut self) {
        self.stream = None;
        self.input.clear();
    }

    /// Connects, from `source` if given.
    pub async fn connect(&mut self, target: SocketAddr, source: Option<IpAddr>) -> Result<(), Breakage> {
        self.close();
        self.deadline.set(Instant::now() + self.timeout);
        let socket = socket(target, source)?;
        let connecting = TcpSocket::from_std_stream(socket.into()).connect(target);
        let mut connecting = std::pin::pin!(connecting);
        let deadline = &mut self.deadline;
        let stream = poll_fn(|cx| match connecting.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(result.map_err(Breakage::from)),
            Poll::Pending => deadline.poll(cx).map(|()| Err(Breakage::Timeout)),
        })
        .await?;
        self.stream = Some(stream);
        Ok(())
    }

    /// Hands all octets to the kernel.
    pub async fn send(&mut self, mut octets: &[u8]) -> Result<(), Breakage> {
        self.deadline.set(Instant::now() + self.timeout);
        let Self { stream: Some(stream), deadline, .. } = self else { return Err(Breakage::Closed) };
        poll_fn(|cx| {
            while !octets.is_empty() {
                match Pin::new(&mut *stream).poll_write(cx, octets) {
                    Poll::Ready(Ok(len)) => octets = &octets[len..],
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                    Poll::Pending => return deadline.poll(cx).map(|()| Err(Breakage::Timeout)),
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Waits for the next reply.
    pub async fn reply(&mut self) -> Result<Reply<'_>, Breakage> {
        // Set by the send before it for the first reply; several to one group of commands each get their time.
        let (code, range) = loop {
            if let Some(found) = self.input.take().map_err(|_| Breakage::Malformed)? {
                break found;
            }
            self.read().await?;
        };
        Ok(self.input.reply(code, range))
    }

    /// Gives the next reply its full time, when no command of its own has been sent for it.
    pub fn extend(&mut self) {
        self.deadline.set(Instant::now() + self.timeout);
    }

    async fn read(&mut self) -> Result<(), Breakage> {
        let Self { stream: Some(stream), deadline, input, .. } = self else { return Err(Breakage::Closed) };
        let len = poll_fn(|cx| {
            let mut buffer = ReadBuf::new(input.room());
            match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) => Poll::Ready(Ok(buffer.filled().len())),
                Poll::Ready(Err(error)) => Poll::Ready(Err(Breakage::from(error))),
                Poll::Pending => deadline.poll(cx).map(|()| Err(Breakage::Timeout)),
            }
        })
        .await?;
        if len == 0 {
            return Err(Breakage::Closed);
        }
        input.filled(len);
        Ok(())
    }
}

fn socket(target: SocketAddr, source: Option<IpAddr>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        // The port is chosen at connect, when the whole quadruple is known: a port can then serve many destinations.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(socket)
}
