//! Out of descriptors: the gateway waits, does not spin, and serves again.

use crate::harness::{BANNER, Client, Confinement, Gateway, Scratch, Setup, until};
use rustix::process::{Resource, Rlimit, prlimit};
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

fn descriptors(gateway: &Gateway) -> Vec<u64> {
    fs::read_dir(format!("/proc/{}/fd", gateway.pid()))
        .expect("it runs")
        .map(|entry| {
            entry.expect("an entry").file_name().to_str().and_then(|name| name.parse().ok()).expect("a number")
        })
        .collect()
}

fn limit(gateway: &Gateway, descriptors: u64) {
    let limit = Rlimit { current: Some(descriptors), maximum: Some(1500) };
    prlimit(Some(gateway.pid()), Resource::Nofile, limit).expect("our own child");
}

/// Lowers the limit of open files so that `more` more descriptors can be opened, connects until
/// nothing more is accepted, and sees what the gateway does and whether it recovers.
fn exhaust(more: u64, deliver: bool) {
    let scratch = Scratch::new();
    // The hard limit is ours to set: a lowered soft one can be raised again.
    let confinement = Confinement { nofile: Some((1500, 1500)), ..Confinement::default() };
    let options = ["--max-connections=500", "--max-connections-per-source=0", "--inactivity-timeout=1h"];
    let mut gateway = Setup::new(&scratch.join("spool"), &options).confined(confinement).start();
    if deliver {
        // Both shards have their segments open.
        for _ in 0..40 {
            let mut client = gateway.session();
            client.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
            client.quit();
        }
    }
    gateway.until_empty();
    // Descriptors are given out from the lowest: the limit is on the highest number.
    let open = descriptors(&gateway);
    let mut free = (0..).filter(|number| !open.contains(number));
    let highest = free.nth(more as usize).expect("numbers do not end");
    limit(&gateway, highest);

    let clients: Vec<Client> = (0..more + 40).map(|_| gateway.connect()).collect();
    let mut served = Vec::new();
    let mut waiting = Vec::new();
    for client in clients {
        client.stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
        let mut octet = [0];
        match client.stream.peek(&mut octet) {
            Ok(1) => served.push(client),
            Ok(_) => panic!("a connection was closed without a word; {}", gateway.stderr()),
            Err(_) => waiting.push(client),
        }
        // Once some wait, the rest need not be waited for one by one.
        if waiting.len() > 5 {
            break;
        }
    }
    assert!(gateway.is_running(), "it ended: {}", gateway.stderr());
    assert!(!waiting.is_empty(), "nobody waits: nothing was exhausted");

    // While they wait, hardly any time is used.
    let (cpu, begun) = (gateway.cpu(), Instant::now());
    sleep(Duration::from_secs(2));
    let (used, elapsed) = (gateway.cpu() - cpu, begun.elapsed());
    assert!(used < elapsed / 4, "{used:?} of CPU time in {elapsed:?} of waiting");

    // Those that are in are served.
    for client in &mut served {
        client.stream.set_read_timeout(Some(crate::harness::PATIENCE)).expect("a socket");
        assert_eq!(client.reply(), BANNER);
        client.expect("NOOP", "250 2.0.0 OK");
    }
    // With descriptors again, so are those that waited.
    limit(&gateway, 1500);
    for client in &mut waiting {
        client.stream.set_read_timeout(Some(crate::harness::PATIENCE)).expect("a socket");
        assert_eq!(client.reply(), BANNER);
        client.expect("NOOP", "250 2.0.0 OK");
    }
    assert!(gateway.metric("gatepost_accept_pauses_total") > 0.0);
    let mut client = gateway.session();
    client.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
    client.quit();
    drop((served, waiting));
    until("all are gone", || gateway.metric("gatepost_connections") == 0.0);
    let (code, stderr) = {
        gateway.signal(rustix::process::Signal::TERM);
        gateway.wait()
    };
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn without_descriptors_it_waits_and_recovers() {
    exhaust(30, true);
}

#[test]
fn without_descriptors_for_the_first_segment_too() {
    exhaust(10, false);
}

#[test]
fn idle_connections_cost_no_time() {
    let scratch = Scratch::new();
    let gateway = Setup::new(&scratch.join("spool"), &["--max-connections-per-source=0"]).start();
    let clients: Vec<Client> = (0..200).map(|_| gateway.session()).collect();
    // What the last of them caused has passed.
    sleep(Duration::from_millis(500));
    let (cpu, begun) = (gateway.cpu(), Instant::now());
    sleep(Duration::from_secs(2));
    let (used, elapsed) = (gateway.cpu() - cpu, begun.elapsed());
    assert!(used < elapsed / 20, "{used:?} of CPU time in {elapsed:?} of idling");
    drop(clients);
    gateway.until_empty();
    gateway.stop();
}
