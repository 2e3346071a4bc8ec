//! Messages a minute from one address: never more than allowed, over all shards, connections and
//! bindings; in both roles.

use crate::alone;
use crate::crowd::{Crowd, Member};
use crate::harness::{End, Gateway, RATE, Scratch, start};
use crate::load::setting;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

const CLIENTS: usize = 16;
const RATE_MAX: usize = 50;
const MINUTE: Duration = Duration::from_secs(60);
const OK: &str = "250 2.1.0 Sender OK";

fn gateway(scratch: &Scratch) -> Gateway {
    let listen = ["--listen=127.60.1.1:0", "--listen=127.60.1.2:0,role=relay"];
    start(&scratch.join("spool"), &[&listen[..], &[&format!("--message-rate={RATE_MAX}")]].concat())
}

fn accepted(member: &Member) -> usize {
    member.lines().filter(|line| *line == OK).count()
}

/// All send MAILs at the same time until each is refused, `pipelined` many at once: how many were
/// accepted.
fn until_refused(servers: &[SocketAddr], source: IpAddr, pipelined: usize) -> usize {
    let mut crowd = Crowd::new();
    for client in 0..CLIENTS {
        let client = crowd.connect(servers[client % servers.len()], source, false);
        crowd.send(client, b"EHLO x\r\n");
    }
    crowd.until("EHLO", |members| members.iter().all(|member| member.replies() == 2));
    let group = "MAIL FROM:<a@b.example>\r\nRSET\r\n".repeat(pipelined);
    let mut sent = 0;
    while crowd.members.iter().any(|member| member.ended.is_none()) {
        assert!(sent <= RATE_MAX, "no limit at all");
        for client in 0..CLIENTS {
            if crowd.members[client].ended.is_none() {
                crowd.send(client, group.as_bytes());
            }
        }
        sent += pipelined;
        let replies = 2 + 2 * sent;
        let is_answered = |member: &Member| member.replies() == replies || member.ended.is_some();
        crowd.until("replies", |members| members.iter().all(is_answered));
    }
    for member in &crowd.members {
        assert_eq!((member.last_line(), member.ended), (RATE, Some(End::Fin)));
    }
    crowd.members.iter().map(accepted).sum()
}

#[test]
fn exactly_the_rate_in_both_roles() {
    let _alone = alone();
    let scratch = Scratch::new();
    let gateway = gateway(&scratch);
    let rounds = setting("GATEPOST_CONCURRENCY_RATES").unwrap_or(100);
    let both = &gateway.listening[..];
    let begun = Instant::now();
    for round in 0..rounds {
        let source = IpAddr::from([127, 61, (round / 250) as u8, (round % 250) as u8 + 1]);
        // One address has one count, whichever binding it comes to.
        let servers = [&both[..1], &both[1..], both][round as usize % 3];
        let pipelined = [1, 5, RATE_MAX][round as usize / 3 % 3];
        let (begun, accepted) = (Instant::now(), until_refused(servers, source, pipelined));
        assert!(begun.elapsed() < MINUTE, "the machine is too slow to tell");
        assert_eq!(accepted, RATE_MAX, "round {round}");
    }
    println!("{rounds} rounds in {:.0?}: {RATE_MAX} messages of {CLIENTS} clients in each", begun.elapsed());
    assert_eq!(gateway.refusals("gatepost_refusals_total", "message_rate"), (rounds * CLIENTS as u64) as f64);
    gateway.stop();
}

/// The window is a fixed minute that begins with its first message.
#[test]
#[ignore = "takes more than a minute"]
fn the_next_minute_has_its_own_count() {
    let _alone = alone();
    let scratch = Scratch::new();
    let gateway = gateway(&scratch);
    let servers = &gateway.listening;
    let source = |number: u8| IpAddr::from([127, 62, 0, number]);
    let begun = Instant::now();
    for number in 1..=2 {
        assert_eq!(until_refused(&servers[usize::from(number) - 1..][..1], source(number), 5), RATE_MAX);
    }
    let filled = Instant::now();
    // Refused to the end of the minute; being refused does not prolong it.
    while begun.elapsed() < MINUTE - Duration::from_millis(1500) {
        assert_eq!(until_refused(servers, source(1), 1), 0);
        assert_eq!(until_refused(servers, source(2), 1), 0);
        sleep(Duration::from_millis(500));
    }
    sleep((MINUTE + Duration::from_millis(100)).saturating_sub(filled.elapsed()));
    for number in 1..=2 {
        assert_eq!(until_refused(&servers[usize::from(number) - 1..][..1], source(number), 5), RATE_MAX);
    }
    gateway.stop();
}
