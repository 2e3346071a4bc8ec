//! Limits of logons and of users' mail: over connections and addresses (CONFORMANCE E4), and logons
//! that come all at once.

use crate::harness::{Client, Gateway, RATE, SHUTDOWN, Scratch, start};
use crate::sasl_client::{AUTHENTICATED, FAILED, UNAVAILABLE, UsersFile, ntlm, plain, plain_response};
use rustix::process::Signal;
use std::thread;
use std::time::{Duration, Instant};

const MAIL: &str = "MAIL FROM:<a@b.example>";
const ACCEPTED: &str = "250 2.1.0 Sender OK";
const LISTEN: &str = "--listen=127.0.0.1:0,plaintext-auth";
const PASSWORD: &str = "correct horse battery staple";
const WRONG: &str = "incorrect horse battery staple";
/// Windows are of a minute: what took longer than this says nothing.
const WINDOW: Duration = Duration::from_secs(50);
const ATTEMPTS: usize = 4;

/// A gateway with these users, by every mechanism.
fn serve(scratch: &Scratch, names: &[&str], options: &[&str]) -> Gateway {
    let users = UsersFile::new(scratch.join("users.txt"));
    for name in names {
        users.add(&[name, "--ntlm"], PASSWORD);
    }
    let users = users.option();
    start(&scratch.join("spool"), &[&[users.as_str()], options].concat())
}

/// Does it until it fits into a window.
fn within_a_window(mut attempt: impl FnMut(usize)) {
    for number in 0..ATTEMPTS {
        let begun = Instant::now();
        attempt(number);
        if begun.elapsed() < WINDOW {
            return;
        }
    }
    panic!("the machine is too slow to tell");
}

#[test]
fn a_source_that_fails_too_often_is_not_heard_for_a_while() {
    let scratch = Scratch::new();
    let gateway = serve(&scratch, &["alice"], &[LISTEN, "--logon-failure-rate=5"]);
    let metric = |result: &str| gateway.metric_where("gatepost_logons_total", &format!("result=\"{result}\""));
    for number in 0..10 {
        // Those that succeed do not count.
        let mut client = gateway.session_from("127.7.0.100");
        let log_in = if number % 5 == 0 { plain } else { ntlm };
        assert_eq!(log_in(&mut client, "alice", PASSWORD), AUTHENTICATED);
        client.quit();
    }
    let mut replies = Vec::new();
    within_a_window(|number| {
        let source = format!("127.7.0.{}", number + 1);
        replies.clear();
        for (failures, log_in) in [(3, ntlm as crate::sasl_client::LogIn), (2, plain)] {
            let mut client = gateway.session_from(&source);
            replies.extend((0..failures).map(|_| log_in(&mut client, "alice", WRONG)));
        }
        // Whatever is right, on whatever connection, and as often as it likes.
        let mut client = gateway.session_from(&source);
        for log_in in [ntlm, plain, ntlm, plain, ntlm] {
            replies.push(log_in(&mut client, "alice", PASSWORD));
        }
        client.expect(MAIL, ACCEPTED);
        client.quit();
    });
    assert_eq!(replies, [[FAILED; 5], [UNAVAILABLE; 5]].concat());
    assert!(metric("unavailable") >= 5.0 && metric("refused") >= 5.0);
    // Other sources are others.
    let mut client = gateway.session_from("127.7.1.1");
    assert_eq!(plain(&mut client, "alice", PASSWORD), AUTHENTICATED);
    client.quit();
    assert_eq!(metric("accepted"), 11.0);
}

//= [MS-OXSMTP] 3.2.7 MessageRateLimitExceeded: on a relay, by user.
#[test]
fn a_user_of_a_relay_has_five_messages_a_minute() {
    let names = ["user0", "user1", "user2", "user3", "other"];
    let scratch = Scratch::new();
    let gateway = serve(&scratch, &names, &["--listen=127.0.0.1:0,role=relay", "--listen=127.0.0.1:0"]);
    let log_in = |listener: usize, source: &str, name: &str| {
        let mut client = Client::connect(gateway.listening[listener], Some(source.parse().expect("an address")));
        client.hello();
        assert_eq!(ntlm(&mut client, name, PASSWORD), AUTHENTICATED);
        client
    };
    let mail = |client: &mut Client| {
        let reply = client.command(MAIL);
        if reply == ACCEPTED {
            client.expect("RSET", "250 2.0.0 Resetting");
        }
        reply
    };
    let mut replies = Vec::new();
    within_a_window(|number| {
        let mut one = log_in(0, "127.7.2.1", names[number]);
        let mut two = log_in(0, "127.7.2.2", &names[number].to_uppercase());
        replies.clear();
        for _ in 0..3 {
            replies.extend([mail(&mut one), mail(&mut two)]);
        }
        two.assert_ended();
        replies.push(mail(&mut one));
        one.assert_ended();
        // Another user from there, and somebody who is nobody.
        let mut other = log_in(0, "127.7.2.1", "other");
        replies.push(mail(&mut other));
        let mut anonymous = gateway.session_from("127.7.2.1");
        replies.extend((0..6).map(|_| mail(&mut anonymous)));
        // On a gateway binding it is the address that counts.
        let mut elsewhere = log_in(1, "127.7.2.1", names[number]);
        replies.extend((0..6).map(|_| mail(&mut elsewhere)));
    });
    let expected = [&[ACCEPTED; 5][..], &[RATE; 2], &[ACCEPTED; 13]].concat();
    assert_eq!(replies, expected);
}

/// Hashes are computed elsewhere than where sessions are served.
#[test]
fn many_logons_at_once_hold_up_nobody() {
    const COUNT: usize = 64;
    let scratch = Scratch::new();
    let gateway = serve(&scratch, &["alice"], &[LISTEN, "--shards=1", "--inactivity-timeout=0"]);
    let mut clients: Vec<Client> =
        (0..COUNT).map(|number| gateway.session_from(&format!("127.7.3.{}", number + 1))).collect();
    let mut other = gateway.session_from("127.7.4.1");
    for client in &mut clients {
        client.send(format!("AUTH PLAIN {}\r\nNOOP\r\n", plain_response("alice", PASSWORD)));
    }
    let answers = thread::spawn(move || {
        clients.iter_mut().map(|client| (client.reply(), client.reply())).collect::<Vec<(String, String)>>()
    });
    let mut served = 0;
    while !answers.is_finished() {
        other.expect("NOOP", "250 2.0.0 OK");
        served += 1;
    }
    let answers = answers.join().expect("answers");
    // A machine that needs half a minute for them may say so.
    assert!(answers.iter().all(|(logon, _)| [AUTHENTICATED, UNAVAILABLE].contains(&logon.as_str())), "{answers:?}");
    assert!(answers.iter().all(|(_, noop)| noop == "250 2.0.0 OK"), "{answers:?}");
    assert!(answers.iter().any(|(logon, _)| logon == AUTHENTICATED));
    // Had each hash held the shard, there would have been one turn between two of them at most.
    assert!(served > COUNT, "{served}");
    assert_eq!(gateway.metric("gatepost_logons_total"), COUNT as f64);
}

/// Whoever leaves while its password is looked at, or is looked at when the gateway is to end, does no
/// harm.
#[test]
fn logons_that_are_given_up() {
    let scratch = Scratch::new();
    let mut gateway = serve(&scratch, &["alice"], &[LISTEN, "--drain-timeout=1h"]);
    let begin = |number: usize| {
        let mut client = gateway.session_from(&format!("127.7.5.{number}"));
        client.send(format!("AUTH PLAIN {}\r\n", plain_response("alice", PASSWORD)));
        client
    };
    for number in 1..=20 {
        match number % 3 {
            0 => begin(number).reset(),
            1 => begin(number).half_close(),
            _ => drop(begin(number)),
        }
    }
    gateway.until_empty();
    assert_eq!(gateway.metric("gatepost_session_panics_total"), 0.0);
    let mut waiting: Vec<Client> = (1..=8).map(begin).collect();
    gateway.signal(Signal::TERM);
    for client in &mut waiting {
        let reply = client.reply();
        // It may have been told before it was read.
        if reply != SHUTDOWN {
            assert_eq!(reply, AUTHENTICATED);
            assert_eq!(client.reply(), SHUTDOWN);
        }
        client.assert_ended();
    }
    assert_eq!(gateway.wait(), (Some(0), String::new()));
}
