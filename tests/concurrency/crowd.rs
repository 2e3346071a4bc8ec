//! Many clients in one thread: sockets that never block, behind one epoll.
//!
//! What arrives is noted with the time it was seen; what does not go out at once goes out as the
//! server reads. A test says what it waits for, and nothing waits for longer than
//! [`PATIENCE`](crate::harness::PATIENCE).

use crate::harness::{End, PATIENCE};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

const EVENTS_MAX: usize = 512;

/// Clients by number, in the order in which they connected.
#[derive(Debug)]
pub struct Crowd {
    epoll: OwnedFd,
    pub members: Vec<Member>,
}

/// A client.
#[derive(Debug)]
pub struct Member {
    socket: Socket,
    /// What is still to be sent.
    out: Vec<u8>,
    /// Half-closes once everything is sent.
    finishes: bool,
    reads: bool,
    /// What was received.
    pub input: Vec<u8>,
    pub ended: Option<End>,
    /// Just before it connected.
    pub began: Instant,
    /// Just before it sent for the last time.
    pub sent: Instant,
    /// When something was received for the last time.
    pub heard: Instant,
}

impl Member {
    /// How many replies it has, the banner among them.
    pub fn replies(&self) -> usize {
        self.lines().filter(|line| line.as_bytes().get(3) == Some(&b' ')).count()
    }

    /// The lines that have come whole, without their ends.
    pub fn lines(&self) -> impl DoubleEndedIterator<Item = &str> {
        let text = str::from_utf8(&self.input).expect("replies are ASCII");
        let whole = text.rfind("\r\n").map_or("", |end| &text[..end]);
        whole.lines()
    }

    pub fn last_line(&self) -> &str {
        self.lines().next_back().unwrap_or_default()
    }

    /// Closing it resets the connection, whatever was sent.
    pub fn resets(&self) {
        self.socket.set_linger(Some(Duration::ZERO)).expect("a socket");
    }

    fn interest(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        if self.ended.is_none() {
            flags.set(EventFlags::IN, self.reads);
            flags.set(EventFlags::OUT, !self.out.is_empty());
        }
        flags
    }

    /// Sends what can be sent.
    fn send(&mut self) {
        while !self.out.is_empty() {
            match (&self.socket).write(&self.out) {
                Ok(octets) => {
                    self.out.drain(..octets);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Not connected yet.
                Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => return,
                // What the server said before it went is still to be read.
                Err(_) => self.out.clear(),
            }
        }
        if std::mem::take(&mut self.finishes) {
            // Fails when the server has ended the session before.
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; 65536];
        loop {
            match (&self.socket).read(&mut buffer) {
                Ok(0) => self.ended = Some(End::Fin),
                Ok(octets) => {
                    self.input.extend_from_slice(&buffer[..octets]);
                    self.heard = Instant::now();
                    if octets == buffer.len() {
                        continue;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => self.ended = Some(End::Reset),
                Err(error) => panic!("waiting for replies: {error}"),
            }
            return;
        }
    }
}

impl Crowd {
    pub fn new() -> Self {
        Crowd { epoll: epoll::create(CreateFlags::CLOEXEC).expect("an epoll"), members: Vec::new() }
    }

    /// Begins to connect; with a small window when `few_replies` are to fit into it.
    pub fn connect(&mut self, to: SocketAddr, source: IpAddr, few_replies: bool) -> usize {
        let connected = connect(to, source, few_replies);
        let (socket, began) = connected.unwrap_or_else(|error| panic!("connecting to {to} from {source}: {error}"));
        let number = self.members.len();
        let member = Member {
            socket,
            out: Vec::new(),
            finishes: false,
            reads: true,
            input: Vec::new(),
            ended: None,
            began,
            sent: began,
            heard: began,
        };
        epoll::add(&self.epoll, &member.socket, EventData::new_u64(number as u64), member.interest())
            .expect("an epoll");
        self.members.push(member);
        number
    }

    pub fn send(&mut self, number: usize, octets: &[u8]) {
        let member = &mut self.members[number];
        member.sent = Instant::now();
        member.out.extend_from_slice(octets);
        member.send();
        self.watch(number);
    }

    /// Half-closes when everything is sent.
    pub fn finish(&mut self, number: usize) {
        self.members[number].finishes = true;
        self.members[number].send();
    }

    /// Reads no more, or again.
    pub fn set_reads(&mut self, number: usize, reads: bool) {
        self.members[number].reads = reads;
        self.watch(number);
    }

    fn watch(&self, number: usize) {
        let member = &self.members[number];
        if member.ended.is_some() {
            return;
        }
        let data = EventData::new_u64(number as u64);
        epoll::modify(&self.epoll, &member.socket, data, member.interest()).expect("an epoll");
    }

    /// Waits for events for at most this long, and sees to them.
    pub fn turn(&mut self, timeout: Duration) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("epoll: {error}"),
        }
        for event in events {
            let (number, flags) = (event.data.u64() as usize, event.flags);
            let member = &mut self.members[number];
            let before = member.interest();
            if member.reads && member.ended.is_none() {
                member.receive();
            }
            if flags.contains(EventFlags::OUT) {
                member.send();
            }
            if !member.reads && flags.intersects(EventFlags::HUP | EventFlags::ERR) {
                // What it has not read may be lost.
                member.ended = Some(End::Reset);
            }
            if member.ended.is_some() {
                // The epoll would tell of its end again and again.
                epoll::delete(&self.epoll, &member.socket).expect("an epoll");
            } else if member.interest() != before {
                self.watch(number);
            }
        }
    }

    /// Turns until `done`.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&[Member]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(&self.members) {
            assert!(Instant::now() < deadline, "{what}: not after {PATIENCE:?}");
            self.turn(Duration::from_millis(50));
        }
    }

    /// Turns for this long.
    pub fn rest(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while let Some(rest) = deadline.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
            self.turn(rest);
        }
    }
}

fn connect(to: SocketAddr, source: IpAddr, few_replies: bool) -> io::Result<(Socket, Instant)> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None)?;
    let yes: libc::c_int = 1;
    // So that a port is taken for this peer alone, and not for all: hundreds of thousands are used.
    // SAFETY: the option's value is an int that lives through the call.
    let result = unsafe {
        let length = size_of_val(&yes) as libc::socklen_t;
        let value = (&raw const yes).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, value, length)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if few_replies {
        socket.set_recv_buffer_size(4096)?;
    }
    socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
    socket.set_tcp_nodelay(true)?;
    let began = Instant::now();
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Ok((socket, began))
}
