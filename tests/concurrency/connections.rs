//! Connections from one address: twenty are served, of however many that come at the same time,
//! and a place is free again however its client ended.

use crate::alone;
use crate::crowd::{Crowd, Member};
use crate::harness::{BANNER, D1, D2, End, Gateway, PATIENCE, PER_SOURCE, Scratch, start};
use crate::load::{Random, seed, setting};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Clients of a round.
const CLIENTS: usize = 64;
/// How many of them are served ([MS-OXSMTP] 3.2.7, ConnectionCountPerSource).
const SERVED: usize = 20;
const SOURCE: [u8; 4] = [127, 60, 0, 1];
/// Several addresses, so that the ports of the one source suffice, and such that no other program
/// of the machine connects to; two are a relay's.
const LISTEN: [&str; 6] = [
    "--listen=127.60.1.1:0",
    "--listen=127.60.1.2:0",
    "--listen=127.60.1.3:0",
    "--listen=127.60.1.4:0",
    "--listen=127.60.1.5:0,role=relay",
    "--listen=127.60.1.6:0,role=relay",
];
const BYE: &str = "221 2.0.0 Service closing transmission channel";

/// Where a client is in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Greeted,
    /// In the middle of a command.
    Fragment,
    Hello,
    Transaction,
    Data,
    /// In the middle of a chunk.
    Chunk,
    /// The final dot is sent.
    Committing,
    /// It has sent more commands than it reads replies.
    Flooding,
}

impl State {
    const ALL: [State; 8] = [
        State::Greeted,
        State::Fragment,
        State::Hello,
        State::Transaction,
        State::Data,
        State::Chunk,
        State::Committing,
        State::Flooding,
    ];

    /// What brings a client there from its banner.
    fn octets(self) -> Vec<u8> {
        let envelope = "EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<rcpt@test.example>\r\n";
        match self {
            State::Greeted => String::new(),
            State::Fragment => "EHL".to_owned(),
            State::Hello => "EHLO x\r\n".to_owned(),
            State::Transaction => envelope.to_owned(),
            State::Data => format!("{envelope}DATA\r\nSubject: x\r\n"),
            State::Chunk => format!("{envelope}BDAT 6000\r\nNOOP\r\nNOOP\r\n"),
            State::Committing => format!("{envelope}DATA\r\nSubject: x\r\n.\r\n"),
            State::Flooding => "EHLO x\r\n".repeat(3000),
        }
        .into_bytes()
    }

    /// The replies that a client has once it is there.
    fn replies(self) -> usize {
        match self {
            State::Greeted | State::Fragment | State::Flooding => 1,
            State::Hello => 2,
            State::Transaction | State::Chunk => 4,
            State::Data => 5,
            State::Committing => 6,
        }
    }

    /// What comes before a QUIT.
    fn rest(self) -> Vec<u8> {
        match self {
            State::Fragment => b"\r\n".to_vec(),
            State::Data => b".\r\n".to_vec(),
            State::Chunk => b"NOOP\r\n".repeat(998),
            _ => Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Death {
    Quit,
    /// QUIT, and gone before the reply.
    QuitAndGone,
    Close,
    Reset,
    HalfClose,
}

impl Death {
    const ALL: [Death; 5] = [Death::Quit, Death::QuitAndGone, Death::Close, Death::Reset, Death::HalfClose];
}

/// Rounds on one gateway, from one address.
struct Rounds {
    gateway: Gateway,
    random: Random,
    rounds: u64,
    deaths: BTreeMap<(State, Death), u64>,
    settled_longest: Duration,
    _scratch: Scratch,
}

impl Rounds {
    fn new(options: &[&str]) -> Self {
        let scratch = Scratch::new();
        let options = [&LISTEN[..], &["--message-rate=0"], options].concat();
        let gateway = start(&scratch.join("spool"), &options);
        let seed = seed();
        println!("seed {seed}");
        Rounds {
            gateway,
            random: Random::new(seed),
            rounds: 0,
            deaths: BTreeMap::new(),
            settled_longest: Duration::ZERO,
            _scratch: scratch,
        }
    }

    /// All connect at the same time, and all have their answer before any goes. The numbers of
    /// those that are served.
    fn gather(&mut self) -> (Crowd, Vec<usize>) {
        let mut crowd = Crowd::new();
        let source = IpAddr::from(SOURCE);
        let servers = &self.gateway.listening;
        for client in 0..CLIENTS {
            let to = servers[(self.rounds as usize + client) % servers.len()];
            crowd.connect(to, source, client % 16 == 0);
        }
        self.rounds += 1;
        let answered = |member: &Member| match member.last_line() {
            "" => false,
            PER_SOURCE => member.ended.is_some(),
            _ => true,
        };
        crowd.until("every client has its answer", |members| members.iter().all(answered));
        let served: Vec<usize> = (0..CLIENTS).filter(|&client| crowd.members[client].last_line() == BANNER).collect();
        for member in &crowd.members {
            if member.last_line() != BANNER {
                assert_eq!(member.input, format!("{PER_SOURCE}\r\n").as_bytes());
                assert_eq!(member.ended, Some(End::Fin));
                // Spares the kernel a port for a minute.
                member.resets();
            }
        }
        (crowd, served)
    }

    fn judge(&self, served: &[usize]) {
        assert_eq!(served.len(), SERVED, "greeted in round {}", self.rounds);
    }

    /// Brings each to some state, or on its way to it.
    fn advance(&mut self, crowd: &mut Crowd, served: &[usize]) -> Vec<(usize, State)> {
        let states: Vec<(usize, State)> =
            served.iter().map(|&client| (client, self.random.choose(&State::ALL))).collect();
        let mut awaited = Vec::new();
        for &(client, state) in &states {
            if state == State::Flooding {
                crowd.set_reads(client, false);
            }
            crowd.send(client, &state.octets());
            if self.random.below(2) == 0 {
                awaited.push((client, state.replies()));
            }
        }
        crowd.until("replies", |members| {
            let is_there = |&(client, count): &(usize, usize)| {
                members[client].replies() >= count || members[client].ended.is_some()
            };
            awaited.iter().all(is_there)
        });
        states
    }

    /// Each ends in some way.
    fn end(&mut self, mut crowd: Crowd, states: &[(usize, State)]) {
        let mut awaited = Vec::new();
        for &(client, state) in states {
            let death = self.random.choose(&Death::ALL);
            *self.deaths.entry((state, death)).or_default() += 1;
            match death {
                Death::Quit | Death::QuitAndGone => {
                    crowd.send(client, &[&state.rest()[..], b"QUIT\r\n"].concat());
                    if death == Death::Quit {
                        crowd.set_reads(client, true);
                        awaited.push((client, Some(BYE)));
                    }
                }
                Death::Close => {}
                Death::Reset => crowd.members[client].resets(),
                Death::HalfClose => {
                    crowd.finish(client);
                    crowd.set_reads(client, true);
                    awaited.push((client, None));
                }
            }
        }
        crowd.until("the end", |members| awaited.iter().all(|&(client, _)| members[client].ended.is_some()));
        for (client, last) in awaited {
            let member = &crowd.members[client];
            assert_eq!(member.ended, Some(End::Fin), "after {:?}", member.last_line());
            if let Some(last) = last {
                assert_eq!(member.last_line(), last);
            }
        }
    }

    /// Waits until the program counts none of them any more.
    fn settle(&mut self) {
        let begun = Instant::now();
        while self.gateway.metric("gatepost_connections") != 0.0 {
            assert!(begun.elapsed() < PATIENCE, "a count that stays, after round {}", self.rounds);
            sleep(Duration::from_millis(1));
        }
        self.settled_longest = self.settled_longest.max(begun.elapsed());
    }

    /// Holds what the program has counted against what was done.
    fn audit(&self) {
        let Rounds { gateway, rounds, .. } = self;
        let refused = gateway.refusals("gatepost_connections_refused_total", "connections_per_source");
        assert_eq!(refused, (*rounds * (CLIENTS - SERVED) as u64) as f64, "refused in {rounds} rounds");
        let accepted = gateway.metric("gatepost_connections_accepted_total");
        assert_eq!(accepted, (*rounds * SERVED as u64) as f64, "accepted in {rounds} rounds");
        assert_eq!(gateway.metric("gatepost_session_panics_total"), 0.0);
    }
}

#[test]
fn twenty_of_sixty_four_however_clients_end() {
    let _alone = alone();
    let wanted = setting("GATEPOST_CONCURRENCY_ROUNDS").unwrap_or(500);
    let mut rounds = Rounds::new(&[]);
    let begun = Instant::now();
    while rounds.rounds < wanted {
        let (mut crowd, served) = rounds.gather();
        rounds.judge(&served);
        let states = rounds.advance(&mut crowd, &served);
        rounds.end(crowd, &states);
        rounds.settle();
        if rounds.rounds.is_multiple_of(100) {
            rounds.audit();
        }
    }
    let deaths: u64 = rounds.deaths.values().sum();
    println!(
        "{wanted} rounds in {:.0?}: {SERVED} of {CLIENTS} in each; {deaths} ends of {} kinds, counts settled within {:?}",
        begun.elapsed(),
        rounds.deaths.len(),
        rounds.settled_longest
    );
    rounds.audit();
    rounds.gateway.stop();
}

/// Late refusals: a client can end while its reply is held back, and its next banner is late.
#[test]
fn twenty_of_sixty_four_with_a_tarpit() {
    let _alone = alone();
    let wanted = setting("GATEPOST_CONCURRENCY_ROUNDS").unwrap_or(500) / 25;
    let mut rounds = Rounds::new(&["--tarpit=200ms"]);
    for _ in 0..wanted {
        let (mut crowd, served) = rounds.gather();
        rounds.judge(&served);
        for &client in &served {
            crowd.send(client, b"FOO\r\n");
        }
        let states: Vec<_> = served.iter().map(|&client| (client, State::Hello)).collect();
        rounds.end(crowd, &states);
        rounds.settle();
    }
    println!("{wanted} rounds: {SERVED} of {CLIENTS} in each; counts settled within {:?}", rounds.settled_longest);
    rounds.audit();
    rounds.gateway.stop();
}

/// Rounds in which the server ends every session by a timer, saying `last`.
fn by_timer(option: &str, last: &str) {
    let _alone = alone();
    let wanted = setting("GATEPOST_CONCURRENCY_TIMEOUTS").unwrap_or(10);
    let timeout = Duration::from_secs(1);
    let mut rounds = Rounds::new(&[&format!("--{option}=1s"), &format!("--relay-{option}=1s")]);
    let (mut judged, mut ended) = (0, 0);
    while judged < wanted {
        let begun = Instant::now();
        let (mut crowd, served) = rounds.gather();
        // A session that began after that cannot have ended before the timer's time.
        if begun.elapsed() < timeout {
            rounds.judge(&served);
            judged += 1;
        }
        assert!(rounds.rounds <= 2 * wanted + 10, "the machine is too slow to tell");
        let states = rounds.advance(&mut crowd, &served);
        let readers: Vec<_> = states.iter().filter(|(_, state)| *state != State::Flooding).collect();
        let mut nudged = Instant::now();
        while readers.iter().any(|(client, _)| crowd.members[*client].ended.is_none()) {
            assert!(begun.elapsed() < PATIENCE, "sessions that no timer ends");
            crowd.turn(Duration::from_millis(50));
            if last == D1 && nudged.elapsed() > Duration::from_millis(100) {
                nudged = Instant::now();
                // Also those who are not silent.
                for (client, _) in readers.iter().filter(|(client, _)| client % 2 == 0) {
                    crowd.send(*client, b"NOOP\r\n");
                }
            }
        }
        for (client, state) in readers {
            let member = &crowd.members[*client];
            assert_eq!((member.last_line(), member.ended), (last, Some(End::Fin)), "{state:?}");
            ended += 1;
        }
        // Nobody else reads, and they are ended all the same.
        rounds.settle();
    }
    let Rounds { rounds: all, settled_longest, gateway, .. } = rounds;
    println!(
        "{judged} of {all} rounds: {SERVED} of {CLIENTS} in each; {ended} times {last:?}; counts settled within {settled_longest:?}"
    );
    gateway.stop();
}

#[test]
fn twenty_of_sixty_four_when_silent_clients_are_ended() {
    by_timer("inactivity-timeout", D2);
}

#[test]
fn twenty_of_sixty_four_when_old_sessions_are_ended() {
    by_timer("connection-timeout", D1);
}
