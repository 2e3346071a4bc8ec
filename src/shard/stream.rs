//! A connection with or without TLS: what the drivers of both sessions read from and write to.
//!
//! rustls is driven by hand, without a runtime's traits: it turns octets into octets, and this type
//! moves them. Nothing of a message is kept here longer than until the next call: plaintext goes into
//! the caller's buffer, and what the socket does not take is bounded by rustls. Memory of an idle
//! connection under TLS is rustls' session with one read buffer of 4 KB.
//!
//! On failure: a peer that breaks the protocol gets its alert and the connection an error; an end of
//! the stream without close_notify is an end like any other, since no message ends with it
//! (RFC 5321 section 4.1.1.4).

use super::net::{Connection, Nudge, Ready};
use crate::limits::TLS_WRITE_OCTETS;
use crate::smtp::header::{TLS_1_2, TLS_1_3, TlsParameters};
use rustls::pki_types::ServerName;
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection,
};
use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::sync::Arc;
use std::time::Instant;

/// A connection, and the TLS on it.
#[derive(Debug)]
pub struct Stream {
    connection: Connection,
    tls: Option<Box<Tls>>,
}

#[derive(Debug)]
struct Tls {
    session: rustls::Connection,
    /// There may be something that the socket does not tell of: plaintext, where the handshake is just
    /// done or the last read filled its buffer; an end or an error behind what was read last.
    has_more: bool,
    /// That error.
    failure: Option<io::Error>,
}

impl Stream {
    /// A connection without TLS.
    pub fn new(connection: Connection) -> Self {
        Stream { connection, tls: None }
    }

    /// Begins TLS as its server; drive [`Self::handshake`] next. Input that the caller has read
    /// before is no part of it, and is to be thrown away.
    pub fn begin_server(&mut self, config: Arc<ServerConfig>) -> io::Result<()> {
        let session = ServerConnection::new(config).map_err(io::Error::other)?;
        self.begin(session.into());
        Ok(())
    }

    /// Begins TLS as its client, in the same way.
    pub fn begin_client(&mut self, config: Arc<ClientConfig>, name: ServerName<'static>) -> io::Result<()> {
        let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        self.begin(session.into());
        Ok(())
    }

    fn begin(&mut self, mut session: rustls::Connection) {
        session.set_buffer_limit(Some(TLS_WRITE_OCTETS));
        self.tls = Some(Box::new(Tls { session, has_more: false, failure: None }));
    }

    /// Goes on with the handshake as far as the socket allows, then waits. `None`: it is done, and all
    /// of it is sent; else call this again, having seen to what ended the wait. An error is the
    /// connection's end; the peer was told why if it could be.
    pub async fn handshake(&mut self) -> io::Result<Option<Ready>> {
        let Some(tls) = &mut self.tls else { return Ok(None) };
        loop {
            if !tls.flush(&self.connection)? {
                return Ok(Some(self.connection.writable().await));
            }
            if !tls.session.is_handshaking() {
                // The peer's first octets may have come with its last ones of the handshake.
                tls.has_more = true;
                return Ok(None);
            }
            match tls.receive(&self.connection)? {
                None => return Ok(Some(self.connection.ready().await)),
                Some(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Some(_) => {}
            }
        }
    }

    /// Whether TLS was begun.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Protocol and cipher, once the handshake is done.
    pub fn tls_parameters(&self) -> Option<TlsParameters> {
        let session = &self.tls.as_ref()?.session;
        let version = match session.protocol_version()? {
            ProtocolVersion::TLSv1_3 => TLS_1_3,
            ProtocolVersion::TLSv1_2 => TLS_1_2,
            _ => return None,
        };
        Some(TlsParameters { version, cipher: cipher_name(session.negotiated_cipher_suite()?.suite()) })
    }

    /// Whether the handshake resumed an earlier session.
    pub fn is_resumed(&self) -> bool {
        let kind = self.tls.as_ref().and_then(|tls| tls.session.handshake_kind());
        kind == Some(HandshakeKind::Resumed)
    }

    /// Reads what is there: 0 is the peer's end, `None` nothing yet.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match &mut self.tls {
            None => self.connection.read(buffer),
            Some(tls) => tls.read(&self.connection, buffer),
        }
    }

    /// Writes what fits: `None` nothing now; wait in [`Self::writable`]. Under TLS what was taken may
    /// not have left yet: see [`Self::flush`].
    pub fn write(&mut self, octets: &[u8]) -> io::Result<Option<usize>> {
        match &mut self.tls {
            None => self.connection.write(octets),
            Some(tls) => tls.write(&self.connection, octets),
        }
    }

    /// Sends what was taken and has not left; false when the socket has no room for all of it.
    pub fn flush(&mut self) -> io::Result<bool> {
        self.tls.as_mut().map_or(Ok(true), |tls| tls.flush(&self.connection))
    }

    /// Waits until there may be input.
    pub async fn ready(&self) -> Ready {
        if self.has_more() {
            return Ready::Socket;
        }
        self.connection.ready().await
    }

    /// Waits until there may be room for output.
    pub async fn writable(&self) -> Ready {
        self.connection.writable().await
    }

    /// Waits until there may be input, or room for output.
    pub async fn ready_or_writable(&self) -> Ready {
        if self.has_more() {
            return Ready::Socket;
        }
        self.connection.ready_or_writable().await
    }

    fn has_more(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.has_more)
    }

    /// Waits for the deadline, the doorbell or a nudge, whatever the peer sends.
    pub async fn interrupted(&self) -> Ready {
        self.connection.interrupted().await
    }

    /// The same, or until the connection is reset ([`Ready::Socket`]).
    pub async fn held(&self) -> Ready {
        self.connection.held().await
    }

    /// What wakes the task that waits for this connection.
    pub fn nudge(&self) -> Nudge {
        self.connection.nudge()
    }

    /// Sets or clears the deadline that [`Ready::Deadline`] tells of.
    pub fn set_deadline(&self, deadline: Option<Instant>) {
        self.connection.set_deadline(deadline);
    }

    /// Says that nothing more comes, where there are words for it.
    ///
    //= RFC 8446 section 6.1: each party says so before it closes.
    pub fn close_notify(&mut self) {
        let Some(tls) = &mut self.tls else { return };
        tls.session.send_close_notify();
        // A peer that takes no more needs no farewell.
        let _ = tls.flush(&self.connection);
    }

    /// Says that nothing more comes, and lingers for the peer's end.
    pub fn linger(mut self) {
        self.close_notify();
        self.connection.linger();
    }
}

impl Tls {
    /// Fills the buffer as far as there is something: what is pipelined is one group, in however many
    /// records it came (E17).
    fn read(&mut self, connection: &Connection, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        let mut filled = 0;
        self.has_more = true;
        while filled < buffer.len() {
            let step = match self.session.reader().read(&mut buffer[filled..]) {
                Ok(0) => Ok(Some(0)),
                Ok(octets) => {
                    filled += octets;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => match self.receive(connection) {
                    Ok(Some(_)) => continue,
                    nothing => nothing,
                },
                // The stream was cut off: an end, but not one that the peer has sealed.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(Some(0)),
                Err(error) => Err(error),
            };
            match step {
                // What came before an end or an error comes first.
                Ok(Some(_)) if filled > 0 => break,
                Err(error) if filled > 0 => {
                    self.failure = Some(error);
                    break;
                }
                Ok(None) => {
                    self.has_more = false;
                    return Ok((filled > 0).then_some(filled));
                }
                told => return told,
            }
        }
        Ok(Some(filled))
    }

    /// Takes in what the socket has: 0 is its end, `None` nothing yet.
    fn receive(&mut self, connection: &Connection) -> io::Result<Option<usize>> {
        let octets = match self.session.read_tls(&mut Wire(connection)) {
            Ok(octets) => octets,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let processed = self.session.process_new_packets();
        // Answers of the protocol itself: alerts, key updates. What does not fit now goes with the
        // next output.
        let _ = self.flush(connection)?;
        processed.map_err(io::Error::other)?;
        Ok(Some(octets))
    }

    fn write(&mut self, connection: &Connection, octets: &[u8]) -> io::Result<Option<usize>> {
        if !self.flush(connection)? {
            return Ok(None);
        }
        let taken = self.session.writer().write(octets)?;
        let _ = self.flush(connection)?;
        Ok(Some(taken))
    }

    fn flush(&mut self, connection: &Connection) -> io::Result<bool> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Wire(connection)) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// The socket as rustls wants it.
struct Wire<'a>(&'a Connection);

impl io::Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)?.ok_or_else(|| ErrorKind::WouldBlock.into())
    }
}

impl io::Write for Wire<'_> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.write(octets)?.ok_or_else(|| ErrorKind::WouldBlock.into())
    }

    /// The records of a handshake's flight leave as one segment.
    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.write_vectored(pieces)?.ok_or_else(|| ErrorKind::WouldBlock.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The name in IANA's registry (RFC 8447 section 8).
fn cipher_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        // Those of TLS 1.2 have one name.
        suite => suite.as_str().unwrap_or("unknown"),
    }
}
