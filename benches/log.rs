//! What a record of the log costs the shard that writes it: 11 fields, made and published.
//! `cargo bench --bench log`; compare runs on the same machine only.

use criterion::{Criterion, criterion_group, criterion_main};
use gatepost::log::{Event, Field, Format, Level, Log, Sender, Settings};
use metrics::Counter;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Records between two flushes: less than the ring holds.
const ROUND: u64 = 2000;

fn accepted(sender: &Sender, time: SystemTime, client: IpAddr) {
    let Some(mut record) = sender.record(Event::Accepted, time) else { return };
    record.str(Field::Session, "0-42").str(Field::Id, "3kTqP0x81Lw2").address(Field::Client, client);
    record.str(Field::Listener, "192.0.2.25:25").text(Field::Helo, b"mail.client.example");
    record.text(Field::From, b"sender@client.example").text(Field::To, b"recipient@mx.example");
    record.number(Field::Size, 4215).number(Field::Nrcpt, 1);
    record.seconds(Field::Duration, Duration::from_micros(1_532)).str(Field::Tls, "TLSv1.3 TLS_AES_256_GCM_SHA384");
}

/// The time of so many records, without that of the log's thread.
fn time_of(log: &Log, sender: &Sender, records: u64) -> Duration {
    let (time, client) = (SystemTime::now(), IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)));
    let mut taken = Duration::ZERO;
    let mut left = records;
    while left > 0 {
        let round = left.min(ROUND);
        let begun = Instant::now();
        for number in 0..round {
            accepted(sender, black_box(time + Duration::from_micros(number)), black_box(client));
        }
        taken += begun.elapsed();
        left -= round;
        assert!(log.flush(Duration::from_secs(10)));
    }
    taken
}

fn records(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("log record, 11 fields");
    for (name, format, level) in [
        ("text", Format::Text, Level::Info),
        ("JSON", Format::Json, Level::Info),
        ("not written", Format::Text, Level::Warn),
    ] {
        let settings = Settings { format, level, file: Some("/dev/null".into()) };
        let lost = Arc::new(AtomicU64::new(0));
        let log = Log::start(&settings, Counter::from_arc(lost.clone())).expect("a log");
        let sender = log.sender();
        group.bench_function(name, |bencher| bencher.iter_custom(|records| time_of(&log, &sender, records)));
        assert_eq!(lost.load(Ordering::Relaxed), 0, "what is lost is not written");
    }
    group.finish();
}

criterion_group!(benches, records);
criterion_main!(benches);
