//! What is found wrong before the first connection: each with its exit code of sysexits(3) and one
//! line that names the cause and the remedy.

use crate::harness::{Confinement, Ended, GATEPOST, NOBODY, Scratch, Setup, is_root, run_to_end, start};
use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Asserts the exit code and that the one line on standard error has all these words.
#[track_caller]
fn assert_failed(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{}", ended.stderr);
    let lines: Vec<&str> = ended.stderr.lines().collect();
    let [line] = lines[..] else { panic!("one line: {:?}", ended.stderr) };
    assert!(line.starts_with("gatepost: "), "{line}");
    for word in words {
        assert!(line.contains(word), "{word:?} is missing: {line}");
    }
    assert_eq!(ended.stdout, "", "nothing was served");
}

/// A place and a program that every user can reach, and a user that is not root.
pub fn unprivileged(scratch: &Scratch) -> (PathBuf, Option<u32>) {
    if !is_root() {
        return (GATEPOST.clone(), None);
    }
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o777)).expect("ours");
    let program = scratch.join("gatepost");
    fs::copy(&*GATEPOST, &program).expect("space for a copy");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("ours");
    (program, Some(NOBODY))
}

#[test]
fn a_port_in_use() {
    let scratch = Scratch::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let spool = scratch.join("spool");
    let listen = format!("--listen={address}");
    let words = ["--listen", &address, "another process listens there", "choose another port"];
    assert_failed(&Setup::new(&spool, &[&listen]).fail(), 69, &words);
    assert_failed(&Setup::new(&spool, &["--listen=127.0.0.1:0", &listen]).fail(), 69, &words);
    let metrics = format!("--metrics-listen={address}");
    assert_failed(&Setup::new(&spool, &[&metrics]).fail(), 69, &["--metrics-listen", &address, "another process"]);
    let any = format!("--listen=[::]:{}", taken.local_addr().expect("bound").port());
    assert_failed(&Setup::new(&spool, &[&any]).fail(), 69, &["--listen", "IPv4 listener on the same port counts too"]);
    drop(taken);
    // The failures left nothing that would be in the way.
    start(&spool, &[]).stop();
}

#[test]
fn another_gateway_of_this_user_is_noticed_though_ports_are_shared_between_shards() {
    let scratch = Scratch::new();
    let first = start(&scratch.join("first"), &["--shards=3"]);
    let address = first.address().to_string();
    let failed = Setup::new(&scratch.join("second"), &[&format!("--listen={address}")]).fail();
    assert_failed(&failed, 69, &[&address, "another process listens there"]);
    let metrics = format!("--metrics-listen={}", first.metrics);
    assert_failed(&Setup::new(&scratch.join("second"), &[&metrics]).fail(), 69, &["--metrics-listen"]);
    first.stop();
}

#[test]
fn an_address_that_is_not_ours() {
    let scratch = Scratch::new();
    let failed = Setup::new(&scratch.join("spool"), &["--listen=192.0.2.1:2525"]).fail();
    assert_failed(&failed, 78, &["--listen 192.0.2.1:2525", "no interface of this machine has that address"]);
}

#[test]
fn a_spool_that_another_gateway_has() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    let first = start(&spool, &[]);
    let failed = Setup::new(&spool, &[]).fail();
    let owner = format!("process {}", first.pid());
    assert_failed(&failed, 75, &["spool", "is in use by another gatepost", &owner, "choose another --spool"]);
    // The first is not disturbed, and its end frees the spool however it comes.
    first.session().deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
    first.kill();
    start(&spool, &[]).stop();
}

#[test]
fn a_spool_that_cannot_be_written() {
    let scratch = Scratch::new();
    let (program, uid) = unprivileged(&scratch);
    let confinement = Confinement { uid, ..Confinement::default() };
    let closed = scratch.join("closed");
    fs::create_dir(&closed).expect("a directory");
    fs::set_permissions(&closed, Permissions::from_mode(0o555)).expect("ours");
    let serve = |spool: &Path| Setup::new(spool, &["--shards=1"]).program(&program).confined(confinement).fail();
    let words = ["closed", "ermission denied", "give this user write permission or choose another --spool"];
    assert_failed(&serve(&closed), 77, &words);
    assert_failed(&serve(&closed.join("new")), 77, &words);
    fs::set_permissions(&closed, Permissions::from_mode(0o755)).expect("ours");
}

#[test]
fn a_spool_that_is_none() {
    let scratch = Scratch::new();
    let file = scratch.join("file");
    fs::write(&file, "not a directory").expect("a file");
    for spool in [file.clone(), file.join("below")] {
        assert_failed(&Setup::new(&spool, &[]).fail(), 73, &["file", "choose another --spool"]);
    }
    assert_eq!(fs::read_to_string(&file).expect("a file"), "not a directory");
}

#[test]
fn a_spool_of_another_version() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    start(&spool, &[]).stop();
    let format = spool.join("format");
    let ours = fs::read_to_string(&format).expect("the format");
    for other in ["gatepost-spool 999\n", "", "something else\n"] {
        fs::write(&format, other).expect("ours");
        let words = ["format", other.trim(), ours.trim(), "run the version that wrote it"];
        assert_failed(&Setup::new(&spool, &[]).fail(), 78, &words);
        let mut list = Command::new(&*GATEPOST);
        list.args(["queue", "list", "--spool"]).arg(&spool);
        assert_failed(&run_to_end(list), 78, &words);
    }
    fs::write(&format, ours).expect("ours");
    start(&spool, &[]).stop();
}

#[test]
fn flags_and_values() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    for (options, code, words) in [
        (&["--frobnicate"][..], 64, &["--frobnicate"][..]),
        (&["--max-message-size=10XB"], 64, &["--max-message-size", "XB", "KB"]),
        (&["--inactivity-timeout=soon"], 64, &["--inactivity-timeout", "soon"]),
        (&["--connection-timeout=1w"], 64, &["--connection-timeout", "ms, s, m, h or d"]),
        (&["--max-connections=-1"], 64, &["--max-connections"]),
        (&["--max-recipients=many"], 64, &["--max-recipients", "many"]),
        (&["--ipv6-prefix=129"], 64, &["--ipv6-prefix", "0..=128"]),
        (&["--metrics-listen=9125"], 64, &["--metrics-listen", "ADDR:PORT"]),
        (&["--listen"], 64, &["--listen"]),
        (&["--listen=25"], 78, &["--listen", "\"25\"", "ADDR:PORT"]),
        (&["--listen=localhost:25"], 78, &["--listen", "localhost:25", "ADDR:PORT"]),
        (&["--listen=127.0.0.1:1,tls=required"], 78, &["--listen", "tls=required", "give --tls-cert and --tls-key"]),
        (&["--listen=127.0.0.1:1,proxy=10.0.0.1/33"], 78, &["--listen", "proxy", "10.0.0.1/33"]),
        (&["--listen=none", "--listen=127.0.0.1:0"], 78, &["--listen", "alone"]),
        (&["--listen=127.0.0.1:2", "--listen=127.0.0.1:2"], 78, &["--listen", "twice"]),
        (&["--default-domain=a..b"], 78, &["--default-domain", "a..b", "mail.example.org"]),
        (&["--accept-domain=-x"], 78, &["--accept-domain", "-x"]),
        (&["--accept-domains-file=/nonexistent/domains"], 78, &["--accept-domains-file", "/nonexistent/domains"]),
        (&["--relay-from=10.0.0.0/33"], 78, &["--relay-from", "10.0.0.0/33"]),
        (&["--table-slots=1000"], 78, &["--table-slots", "1000"]),
        (&["--shards=0"], 78, &["--shards", "1 to"]),
        (&["--shards=100000"], 78, &["--shards", "1 to"]),
    ] {
        let ended = Setup::new(&spool, options).fail();
        if code == 78 {
            assert_failed(&ended, code, words);
        } else {
            assert_eq!(ended.code, Some(code), "{options:?}: {}", ended.stderr);
            for word in words {
                assert!(ended.stderr.contains(word), "{options:?}: {word:?} is missing: {}", ended.stderr);
            }
        }
        assert!(!spool.exists(), "{options:?}: nothing is made before the options are known to be good");
    }
    for (arguments, code) in
        [(&["--help"][..], 0), (&["--version"], 0), (&["serve", "--help"], 0), (&[], 64), (&["x"], 64)]
    {
        let mut command = Command::new(&*GATEPOST);
        command.args(arguments);
        let ended = run_to_end(command);
        assert_eq!(ended.code, Some(code), "{arguments:?}");
        assert_eq!(ended.stdout.is_empty(), code != 0, "{arguments:?}: help that was asked for is no error");
    }
}

#[test]
fn too_few_descriptors() {
    let scratch = Scratch::new();
    let limited = |current, maximum| Confinement { nofile: Some((current, maximum)), ..Confinement::default() };
    // 100 + 256 a shard + 256.
    let options = ["--max-connections=100", "--shards=2"];
    let failed = Setup::new(&scratch.join("spool"), &options).confined(limited(800, 867)).fail();
    let words =
        ["RLIMIT_NOFILE is 867", "--max-connections 100 on 2 shards needs 868", "ulimit -n 868", "LimitNOFILE="];
    assert_failed(&failed, 71, &words);
    // Exactly enough; and what is only the soft limit's fault is put right.
    Setup::new(&scratch.join("spool"), &options).confined(limited(64, 868)).start().stop();
}

#[test]
fn too_little_memory_to_lock() {
    let scratch = Scratch::new();
    let limited = |kb: u64, uid| Confinement { memlock: Some((kb << 10, kb << 10)), uid, ..Confinement::default() };
    // What glommio asks for, whoever runs it.
    let failed = Setup::new(&scratch.join("spool"), &["--shards=1"]).confined(limited(511, None)).fail();
    assert_failed(&failed, 71, &["RLIMIT_MEMLOCK is 523264", "ulimit -l", "LimitMEMLOCK=", "--shards"]);
    if is_root() {
        Setup::new(&scratch.join("spool"), &["--shards=2"]).confined(limited(512, None)).start().stop();
    }
    // What the kernel charges to all but root.
    let (program, uid) = unprivileged(&scratch);
    let spool = scratch.join("nobody");
    let setup = |kb| Setup::new(&spool, &["--shards=2"]).program(&program).confined(limited(kb, uid));
    let words =
        ["RLIMIT_MEMLOCK is 2096128", "2 shards need 2097152", "ulimit -l 2048", "LimitMEMLOCK=", "lower --shards"];
    assert_failed(&setup(2047).fail(), 71, &words);
    let gateway = setup(2048).start();
    gateway.session().deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
    gateway.stop();
}

#[test]
fn io_uring_is_forbidden() {
    let scratch = Scratch::new();
    let confinement = Confinement { no_io_uring: true, ..Confinement::default() };
    let failed = Setup::new(&scratch.join("spool"), &[]).confined(confinement).fail();
    assert_failed(&failed, 77, &["io_uring is forbidden", "kernel.io_uring_disabled=0", "seccomp"]);
}

#[test]
fn a_port_for_root_alone() {
    let scratch = Scratch::new();
    let (program, uid) = unprivileged(&scratch);
    let confinement = Confinement { uid, ..Confinement::default() };
    let first_free =
        fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").expect("a sysctl of Linux 4.11");
    let first_free: u16 = first_free.trim().parse().expect("a port");
    // An address that nobody else on this machine listens on.
    let listen = "--listen=127.213.7.1:25";
    let setup = Setup::new(&scratch.join("spool"), &["--shards=1", listen]).program(&program).confined(confinement);
    if first_free > 25 {
        assert_failed(&setup.fail(), 77, &["--listen 127.213.7.1:25", "CAP_NET_BIND_SERVICE", "setcap"]);
    } else {
        // This machine (a container, most likely) leaves all ports to everybody: then it must work.
        println!("ports from {first_free} are free for all here: the refusal cannot be seen");
        setup.start().stop();
    }
}

#[test]
fn queue_commands_name_what_is_wrong() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    let queue = |arguments: &[&str]| {
        let mut command = Command::new(&*GATEPOST);
        command.arg("queue").args(arguments).arg("--spool").arg(&spool);
        run_to_end(command)
    };
    assert_failed(&queue(&["list"]), 66, &["is not a gatepost spool", "--spool"]);
    assert!(!spool.exists(), "looking makes nothing");
    start(&spool, &[]).stop();
    assert_eq!(queue(&["list"]).code, Some(0));
    assert_failed(&queue(&["cat", "nonsense"]), 64, &["nonsense", "gatepost queue list"]);
    assert_failed(&queue(&["cat", "00000000001"]), 66, &["00000000001", "is not in the queue"]);
    assert_eq!(queue(&["cat"]).code, Some(64));
}
