//! Thousands of sessions that wait: what ends the wait comes on time, and waiting costs nothing.

use crate::alone;
use crate::crowd::{Crowd, Member};
use crate::harness::{BANNER, D1, D2, End, Gateway, PATIENCE, Scratch, Setup};
use crate::load::setting;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How late a timer may be.
const LATE_MAX: Duration = Duration::from_millis(500);
/// Within this time all have connected.
const CONNECTING: Duration = Duration::from_secs(3);
/// What is not silent speaks this long after it has connected.
const SPEAKS: Duration = Duration::from_secs(4);

/// How many sessions: what the requirement says, or fewer where there are not as many descriptors,
/// here and in the gateway.
fn sessions() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).expect("a lower limit");
    setting("GATEPOST_IDLE_SESSIONS").unwrap_or(5000).min(most.saturating_sub(1500)) as usize
}

fn source(number: usize) -> IpAddr {
    IpAddr::from([127, 63, (number / 100) as u8, (number % 100) as u8 + 1])
}

/// CPU time that the gateway uses while the crowd rests.
fn used(gateway: &Gateway, crowd: &mut Crowd, rest: Duration) -> (Duration, Duration) {
    let (cpu, begun) = (gateway.cpu(), Instant::now());
    crowd.rest(rest);
    (gateway.cpu() - cpu, begun.elapsed())
}

/// How late this machine wakes who sleeps, at worst: that is not the gateway's fault.
struct Noise {
    worst: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Noise {
    fn listen() -> Self {
        let noise = Noise { worst: Arc::default(), stop: Arc::default() };
        for _ in 0..2 {
            let (worst, stop) = (noise.worst.clone(), noise.stop.clone());
            thread::spawn(move || {
                let nap = Duration::from_millis(5);
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    thread::sleep(nap);
                    worst.fetch_max((begun.elapsed() - nap).as_micros() as u64, Ordering::Relaxed);
                }
            });
        }
        noise
    }

    fn worst(&self) -> Duration {
        Duration::from_micros(self.worst.load(Ordering::Relaxed))
    }

    /// Asserts that the latest was on time, but for what the machine is late itself.
    fn assert_on_time(&self, latest: Duration) {
        println!("this machine wakes sleepers late by up to {:?}", self.worst());
        assert!(latest <= LATE_MAX + 2 * self.worst(), "late by {latest:?}");
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What must come when, for every session of a group.
struct Expected {
    last: &'static str,
    after: Duration,
    /// From its last input, not from its beginning.
    from_input: bool,
}

impl Expected {
    /// How late it came; the beginning is the client's, before the server's.
    fn late(&self, member: &Member) -> Duration {
        assert_eq!(member.last_line(), self.last);
        let from = if self.from_input { member.sent } else { member.began };
        let took = member.heard.duration_since(from);
        assert!(took >= self.after, "{:?} after {took:?}: {:?} early", self.last, self.after - took);
        took - self.after
    }
}

/// Four groups: on a gateway's binding and on a relay's, silent clients and such as speak once.
/// Some of each are in the middle of something.
#[test]
fn timers_are_on_time_and_cost_nothing() {
    let _alone = alone();
    let sessions = sessions();
    let seconds = Duration::from_secs;
    let options = [
        "--listen=127.60.1.1:0",
        "--listen=127.60.1.2:0,role=relay",
        &format!("--max-connections={}", sessions + 10),
        "--inactivity-timeout=15s",
        "--connection-timeout=18s",
        "--relay-inactivity-timeout=16s",
        "--relay-connection-timeout=19s",
    ];
    let scratch = Scratch::new();
    let gateway = Setup::new(&scratch.join("spool"), &options).start();
    let group = |number: usize| number % 4;
    let expected = [
        Expected { last: D2, after: seconds(15), from_input: true },
        Expected { last: D2, after: seconds(16), from_input: true },
        Expected { last: D1, after: seconds(18), from_input: false },
        Expected { last: D1, after: seconds(19), from_input: false },
    ];
    let (mut crowd, noise) = (Crowd::new(), Noise::listen());
    let begun = Instant::now();
    let mut speaking = VecDeque::new();
    for number in 0..sessions {
        let due = begun + CONNECTING * number as u32 / sessions as u32;
        crowd.rest(due.saturating_duration_since(Instant::now()));
        let client = crowd.connect(gateway.listening[number % 2], source(number), false);
        match number / 4 % 4 {
            0 => {}
            1 => crowd.send(client, b"EHLO x\r\n"),
            2 => {
                crowd.send(client, b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<rcpt@test.example>\r\nDATA\r\nx\r\n")
            }
            _ => crowd.send(client, b"EH"),
        }
        if group(number) >= 2 {
            speaking.push_back(client);
        }
    }
    let connected = begun.elapsed();
    crowd.until("banners", |members| members.iter().all(|member| member.input.starts_with(BANNER.as_bytes())));
    while let Some(client) = speaking.pop_front() {
        let due = crowd.members[client].began + SPEAKS;
        crowd.rest(due.saturating_duration_since(Instant::now()));
        crowd.send(client, b"LO y\r\n");
    }
    crowd.rest(Duration::from_millis(300));
    assert_eq!(gateway.metric("gatepost_connections"), sessions as f64);
    assert!(begun.elapsed() < seconds(14), "the machine is too slow to tell: {:?}", begun.elapsed());
    let quiet = seconds(15).saturating_sub(begun.elapsed() + Duration::from_millis(300));
    let (cpu, elapsed) = used(&gateway, &mut crowd, quiet);
    let deadline = Instant::now() + PATIENCE;
    while crowd.members.iter().any(|member| member.ended.is_none()) {
        assert!(Instant::now() < deadline, "sessions that no timer ends");
        crowd.turn(Duration::from_millis(50));
    }
    println!("{sessions} sessions within {connected:.1?}; {cpu:?} of CPU time in {elapsed:.1?} of silence");
    let mut longest = Duration::ZERO;
    for (index, expected) in expected.iter().enumerate() {
        let members = crowd.members.iter().enumerate().filter(|(number, _)| group(*number) == index);
        let mut late: Vec<Duration> = members.map(|(_, member)| expected.late(member)).collect();
        late.sort();
        let role = if index % 2 == 0 { "gateway" } else { "relay" };
        let (median, most) = (late[late.len() / 2], late[late.len() - 1]);
        println!("{role}, {:?}: {} late by {median:?}, at most {most:?}", expected.last, late.len());
        longest = longest.max(most);
    }
    assert!(crowd.members.iter().all(|member| member.ended == Some(End::Fin)));
    noise.assert_on_time(longest);
    assert!(cpu <= elapsed / 50, "{cpu:?} of CPU time in {elapsed:?} of silence");
    gateway.until_empty();
    gateway.stop();
}

/// All sessions are refused a command, and wait for the reply.
#[test]
fn late_refusals_are_on_time_and_cost_nothing() {
    let _alone = alone();
    let sessions = sessions();
    let interval = Duration::from_secs(5);
    let options = ["--listen=127.60.1.1:0", &format!("--max-connections={}", sessions + 10), "--tarpit=5s"];
    let scratch = Scratch::new();
    let gateway = Setup::new(&scratch.join("spool"), &options).start();
    let (mut crowd, noise) = (Crowd::new(), Noise::listen());
    for number in 0..sessions {
        crowd.connect(gateway.address(), source(number), false);
        if number % 20 == 0 {
            crowd.turn(Duration::ZERO);
        }
    }
    crowd.until("banners", |members| members.iter().all(|member| member.last_line() == BANNER));
    let begun = Instant::now();
    for client in 0..sessions {
        let due = begun + Duration::from_secs(1) * client as u32 / sessions as u32;
        crowd.rest(due.saturating_duration_since(Instant::now()));
        // Those who say more in one go wait but once.
        crowd.send(client, if client % 2 == 0 { b"FOO\r\n" } else { b"FOO\r\nFOO\r\nNOOP\r\n" });
    }
    crowd.rest(Duration::from_millis(300));
    assert!(begun.elapsed() < interval / 2, "the machine is too slow to tell: {:?}", begun.elapsed());
    let quiet = interval.saturating_sub(begun.elapsed() + Duration::from_millis(300));
    let (cpu, elapsed) = used(&gateway, &mut crowd, quiet);
    let wanted = |client: usize| 2 + client % 2 * 2;
    crowd.until("replies", |members| {
        members.iter().enumerate().all(|(client, member)| member.replies() == wanted(client))
    });
    let mut late = Vec::new();
    for (client, member) in crowd.members.iter().enumerate() {
        let refusal = "500 5.3.3 Unrecognized command";
        let replies: Vec<&str> = member.lines().skip(1).collect();
        assert_eq!(replies, [refusal, refusal, "250 2.0.0 OK"][..][if client % 2 == 0 { 0..1 } else { 0..3 }]);
        let took = member.heard.duration_since(member.sent);
        assert!(took >= interval, "a reply after {took:?}");
        late.push(took - interval);
    }
    late.sort();
    let (median, most) = (late[late.len() / 2], late[late.len() - 1]);
    println!(
        "{sessions} refusals late by {median:?}, at most {most:?}; {cpu:?} of CPU time in {elapsed:.1?} of silence"
    );
    noise.assert_on_time(most);
    assert!(cpu <= elapsed / 50, "{cpu:?} of CPU time in {elapsed:?} of silence");
    drop(crowd);
    gateway.until_empty();
    gateway.stop();
}
