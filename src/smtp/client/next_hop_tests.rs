//! Our own receiving session as the next hop, in memory, end to end.

use super::tests::{TIMEOUTS, in_words, message, recipient};
use super::*;
use crate::smtp::envelope::BodyType;
use crate::smtp::reply::Reply;
use crate::smtp::server::{self, Extensions, Profile, Query, Verdict};
use crate::smtp::{Durable, QueueId};

struct Pair {
    client: Session,
    server: server::Session,
    /// Octets on the way to the server, and back.
    up: Vec<u8>,
    down: Vec<u8>,
    now: Instant,
    stored: Vec<(Vec<String>, Vec<u8>)>,
    body: Vec<u8>,
    /// Most octets moved at once.
    piece: usize,
}

impl Pair {
    fn new(piece: usize) -> Self {
        Self::with(piece, Extensions::default())
    }

    /// With a next hop that takes mail by DATA only.
    fn without_chunking(piece: usize) -> Self {
        Self::with(piece, Extensions { chunking: false, binary_mime: false, ..Extensions::default() })
    }

    fn with(piece: usize, extensions: Extensions) -> Self {
        let profile = Profile {
            hostname: "mx.example".to_owned(),
            extensions,
            message_size_max: Some(1 << 20),
            recipients_max: Some(2),
            protocol_errors_max: None,
            connection_timeout: None,
            inactivity_timeout: None,
            ..Profile::default()
        };
        let now = Instant::now();
        Pair {
            client: Session::new("gw.example".into(), TIMEOUTS, Wants::default(), now),
            server: server::Session::new(Rc::new(profile), [192, 0, 2, 1].into(), now),
            up: Vec::new(),
            down: Vec::new(),
            now,
            stored: Vec::new(),
            body: Vec::new(),
            piece,
        }
    }

    fn serve(&mut self) {
        loop {
            let (consumed, step) = self.server.step(self.now, &self.up);
            match step {
                server::Step::Body(octets) => self.body.extend_from_slice(octets),
                server::Step::Abandon => self.body.clear(),
                server::Step::Decide(query) => {
                    let refused =
                        matches!(&query, Query::Recipient(mailbox) if mailbox.domain() == Some(b"no.example"));
                    let verdict = if refused { Verdict::Refuse(Reply::UnableToRelay) } else { Verdict::Accept };
                    self.server.handle_verdict(self.now, verdict);
                }
                server::Step::Commit => {
                    let envelope = self.server.envelope().expect("an envelope");
                    let recipients =
                        envelope.recipients().map(|recipient| String::from_utf8_lossy(recipient.path).into_owned());
                    self.stored.push((recipients.collect(), std::mem::take(&mut self.body)));
                    self.server.handle_durable(self.now, &Durable::attest(QueueId::from_number(7)));
                }
                server::Step::StartTls | server::Step::Challenge | server::Step::Authenticate => {
                    panic!("{step:?} was not offered")
                }
                server::Step::NeedMore | server::Step::Close | server::Step::Flush => {
                    let done = !matches!(step, server::Step::Flush);
                    self.up.drain(..consumed);
                    let replies = self.server.replies();
                    self.down.extend_from_slice(replies);
                    let sent = replies.len();
                    self.server.replies_sent(sent);
                    if done {
                        return;
                    }
                    continue;
                }
            }
            self.up.drain(..consumed);
        }
    }

    /// Moves octets until the client has something to tell.
    fn go(&mut self) -> Step {
        loop {
            let count = self.client.output().len().min(self.piece);
            self.up.extend_from_slice(&self.client.output()[..count]);
            self.client.output_sent(self.now, count);
            self.serve();
            let arrived = self.down.len().min(self.piece);
            let (consumed, step) = self.client.step(self.now, &self.down[..arrived]);
            self.down.drain(..consumed);
            if step != Step::NeedMore {
                return step;
            }
            let stuck = consumed == 0 && count == 0 && arrived == self.down.len();
            assert!(!stuck, "nothing moves: {}", self.down.escape_ascii());
            if consumed == 0 && arrived > 0 {
                // Less than a line: more of it next time.
                self.piece += 1;
            }
        }
    }

    fn send(&mut self, paths: &[&str], content: &[u8]) -> String {
        let recipients: Vec<Recipient<'_>> = paths.iter().map(|path| recipient(path)).collect();
        let body_type = BodyType::EightBitMime;
        let message = Transaction { body_type, eight_bit: true, ..message(content.len() as u64, &recipients) };
        self.client.begin(self.now, &message).expect("sendable");
        let mut step = self.go();
        if step == Step::SendBody {
            for piece in content.chunks(self.piece.max(1000)) {
                self.client.body(piece);
                let sent = self.client.output().len();
                self.up.extend_from_slice(self.client.output());
                self.client.output_sent(self.now, sent);
                self.serve();
            }
            self.client.body_end(self.now);
            step = self.go();
        }
        assert_eq!(step, Step::Answered);
        assert!(self.client.is_idle());
        in_words(&self.client.take_dispositions())
    }
}

fn contents() -> Vec<Vec<u8>> {
    let long = [vec![b'l'; 100_000], b"\r\n.".to_vec(), vec![b'm'; 100_000], b"\r\n".to_vec()].concat();
    vec![
        b"".to_vec(),
        b"\r\n".to_vec(),
        b".\r\n".to_vec(),
        b"Subject: x\r\n\r\n.\r\n..\r\n.a\r\n\r\n.\r\n".to_vec(),
        b"a\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<x@b.example>\r\nDATA\r\nQUIT\r\n".to_vec(),
        "h\u{e9}\r\n\u{0}\r\n".as_bytes().to_vec(),
        b".\r\n".repeat(3000),
        long,
    ]
}

#[test]
fn everything_arrives_as_it_was_sent() {
    for piece in [1, 2, 7, 100, usize::MAX] {
        let mut pair = Pair::new(piece);
        assert_eq!(pair.go(), Step::Ready);
        let offered = *pair.client.capabilities();
        assert!(offered.pipelining && offered.eight_bit_mime && offered.size == Some(1 << 20));
        for content in contents() {
            assert_eq!(pair.send(&["a@b.example", "c@d.example"], &content), "delivered; delivered");
            let recipients = vec!["a@b.example".to_owned(), "c@d.example".to_owned()];
            let (stored_for, stored) = pair.stored.pop().expect("a message");
            assert_eq!(stored_for, recipients);
            assert!(stored == content, "content of {} octets differs", content.len());
            assert!(pair.stored.is_empty());
        }
        pair.client.quit(pair.now);
        assert_eq!(pair.go(), Step::Closed);
        assert!(pair.server.is_closed());
    }
}

#[test]
fn line_ends_arrive_mended_by_data() {
    for (content, want) in [
        (&b"a\n.\nb"[..], &b"a\r\n.\r\nb\r\n"[..]),
        (b"a\r\n.\n.\r\nQUIT\r\n", b"a\r\n.\r\n.\r\nQUIT\r\n"),
        (b"\r.\r\n\r", b" .\r\n \r\n"),
    ] {
        for piece in [1, usize::MAX] {
            let mut pair = Pair::without_chunking(piece);
            pair.go();
            assert_eq!(pair.send(&["a@b.example"], content), "delivered");
            assert_eq!(pair.stored, [(vec!["a@b.example".to_owned()], want.to_vec())]);
            // Chunks are verbatim.
            let mut pair = Pair::new(piece);
            pair.go();
            assert_eq!(pair.send(&["a@b.example"], content), "delivered");
            assert_eq!(pair.stored, [(vec!["a@b.example".to_owned()], content.to_vec())]);
        }
    }
}

#[test]
fn refusals_and_what_follows_them() {
    let mut pair = Pair::new(usize::MAX);
    pair.go();
    let relay = "failed 550 5.7.1 Unable to relay";
    assert_eq!(pair.send(&["a@no.example", "c@d.example"], b"x\r\n"), format!("{relay}; delivered"));
    assert_eq!(pair.send(&["a@no.example", "b@no.example"], b"x\r\n"), format!("{relay}; {relay}"));
    assert_eq!(
        pair.send(&["a@a.example", "b@b.example", "c@c.example"], b"y\r\n"),
        "delivered; delivered; too many 452 4.5.3 Too many recipients"
    );
    assert_eq!(pair.send(&["c@c.example"], b"y\r\n"), "delivered");
    let recipients = |pair: &Pair| pair.stored.iter().map(|(recipients, _)| recipients.join(" ")).collect::<Vec<_>>();
    assert_eq!(recipients(&pair), ["c@d.example", "a@a.example b@b.example", "c@c.example"]);
}
