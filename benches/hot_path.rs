//! Time of the pure parts of the hot path: the data decoder, a whole session in memory, a record
//! into a batch. `cargo bench --bench hot_path`; compare runs on the same machine only.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gatepost::queue::record::{Body, NewMessage};
use gatepost::queue::spool::{Resume, Spool};
use gatepost::smtp::data::{Decoder, Piece};
use gatepost::smtp::envelope::{Envelope, RecipientParameters, SenderParameters};
use gatepost::smtp::server::{Profile, Session, Step, Verdict};
use std::hint::black_box;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Lines of 78 octets, 4 KB in all, ended by the final dot; `dots`: every line begins with one.
fn content(dots: bool) -> Vec<u8> {
    let line = [(if dots { ".." } else { "xx" }).to_owned(), "x".repeat(74), "\r\n".to_owned()].concat();
    let mut content = line.repeat(4096 / line.len()).into_bytes();
    content.extend_from_slice(b".\r\n");
    content
}

fn decode(input: &[u8]) -> u64 {
    let mut decoder = Decoder::default();
    let mut at = 0;
    loop {
        let (consumed, piece) = decoder.step(&input[at..]);
        at += consumed;
        match piece {
            Piece::Content(octets) => _ = black_box(octets),
            Piece::End | Piece::NeedMore => return decoder.octets(),
        }
    }
}

fn decoder(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("data decoder, 4 KB");
    for (name, dots) in [("plain", false), ("a dot on every line", true)] {
        let input = content(dots);
        group.throughput(Throughput::Bytes(input.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| decode(black_box(&input))));
    }
    group.finish();
}

fn profile() -> Rc<Profile> {
    Rc::new(Profile {
        hostname: "mx.example.org".to_owned(),
        default_domain: None,
        message_size_max: Some(10 << 20),
        recipients_max: Some(200),
        protocol_errors_max: Some(5),
        connection_timeout: Some(Duration::from_secs(300)),
        inactivity_timeout: Some(Duration::from_secs(60)),
        ..Profile::default()
    })
}

/// Steps a session through `input` as a driver does, with every answer yes and no disk.
fn drive(session: &mut Session, now: Instant, input: &[u8]) {
    let mut at = 0;
    loop {
        let (consumed, step) = session.step(now, &input[at..]);
        at += consumed;
        match step {
            Step::Decide(_) => session.handle_verdict(now, Verdict::Accept),
            Step::Body(octets) => _ = black_box(octets),
            Step::Commit => session.handle_commit_failure(now),
            Step::NeedMore | Step::Close => break,
            Step::Flush | Step::Abandon | Step::StartTls | Step::Challenge | Step::Authenticate => {}
        }
    }
    let sent = session.replies().len();
    session.replies_sent(sent);
}

fn session(criterion: &mut Criterion) {
    let now = Instant::now();
    let client = "192.0.2.1".parse().expect("an address");
    let profile = profile();
    let transaction: Vec<Vec<u8>> = [
        b"MAIL FROM:<a@example.com>\r\n".to_vec(),
        b"RCPT TO:<b@example.org>\r\n".to_vec(),
        b"DATA\r\n".to_vec(),
        content(false),
    ]
    .into();
    criterion.bench_function("a transaction, 4 KB", |bencher| {
        let mut session = Session::new(profile.clone(), client, now);
        drive(&mut session, now, b"EHLO client.example\r\n");
        bencher.iter(|| {
            for input in &transaction {
                drive(&mut session, now, black_box(input));
            }
        });
    });
    criterion.bench_function("a connection to its banner", |bencher| {
        bencher.iter(|| Session::new(profile.clone(), black_box(client), now));
    });
}

fn spool(criterion: &mut Criterion) {
    let mut envelope = Envelope::default();
    let mailbox = gatepost::smtp::address::mailbox(b"someone@example.org").expect("a mailbox");
    envelope.begin(Some(&mailbox), None, SenderParameters::default());
    assert!(envelope.add_recipient(&mailbox, None, RecipientParameters::default()));
    let body = content(false);
    let client = "192.0.2.1".parse().expect("an address");
    criterion.bench_function("64 records of 4 KB into a batch", |bencher| {
        bencher.iter_batched_ref(
            || Spool::new(0, Resume::default(), 1),
            |spool| {
                for _ in 0..64 {
                    let id = spool.next_id(0);
                    let message = NewMessage {
                        id,
                        arrived_unix_ms: 0,
                        envelope: &envelope,
                        client,
                        hello: b"client",
                        body: Body::Inline(&body),
                    };
                    black_box(spool.append(&message));
                }
                spool.take_batch()
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, decoder, session, spool);
criterion_main!(benches);
