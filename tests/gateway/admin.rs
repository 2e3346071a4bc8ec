//! The admin socket: where it is, who may use it, what it answers to what it does not know.

use crate::harness::{Confinement, Ended, GATEPOST, NOBODY, Scratch, Setup, is_root, run_to_end, start};
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

#[track_caller]
fn assert_failed(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{}", ended.stderr);
    let [line] = ended.stderr.lines().collect::<Vec<_>>()[..] else { panic!("one line: {:?}", ended.stderr) };
    for word in words {
        assert!(line.contains(word), "{word:?} is missing: {line}");
    }
    assert_eq!(ended.stdout, "");
}

/// `gatepost block list` with these options.
fn list(options: &[&str]) -> Ended {
    let mut command = Command::new(&*GATEPOST);
    command.args(["block", "list"]).args(options);
    run_to_end(command)
}

fn at(path: &Path) -> String {
    format!("--admin-socket={}", path.display())
}

#[test]
fn is_in_the_spool_for_its_user_while_the_gateway_runs() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    let path = spool.join("admin.sock");
    let socket = at(&path);
    assert_failed(&list(&[&socket]), 69, &["no gateway listens at", &path.display().to_string(), "running", "--spool"]);
    let gateway = start(&spool, &[]);
    let metadata = fs::metadata(&path).expect("the socket");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    for options in [&[socket.as_str()][..], &["--spool", spool.to_str().expect("UTF-8")]] {
        assert_eq!(list(options).code, Some(0), "{options:?}");
    }
    assert_eq!(list(&[&socket, "--spool=x"]).code, Some(64), "one or the other");
    // What a kill leaves is no obstacle, and says what it is until then.
    gateway.kill();
    assert!(path.exists());
    assert_failed(&list(&[&socket]), 69, &["no gateway listens at", "running"]);
    let gateway = start(&spool, &[]);
    assert_eq!(list(&[&socket]).code, Some(0));
    gateway.stop();
    assert!(!path.exists(), "a clean end removes it");
}

#[test]
fn elsewhere_or_nowhere() {
    let scratch = Scratch::new();
    let path = scratch.join("gatepost.sock");
    let socket = at(&path);
    let first = start(&scratch.join("first"), &[&socket]);
    assert!(first.started.contains(&format!("admin socket at {}", path.display())), "{:?}", first.started);
    assert!(!first.spool.join("admin.sock").exists());
    // It is the first one's as long as that lives.
    let failed = Setup::new(&scratch.join("second"), &[&socket]).fail();
    assert_failed(&failed, 69, &["--admin-socket", &path.display().to_string(), "another process listens there"]);
    assert_eq!(list(&[&socket]).code, Some(0));
    first.kill();
    start(&scratch.join("second"), &[&socket]).stop();
    assert!(!path.exists());

    let without = start(&scratch.join("third"), &["--admin-socket=none"]);
    assert!(!without.started.iter().any(|line| line.contains("admin")), "{:?}", without.started);
    assert!(!without.spool.join("admin.sock").exists());
    assert_eq!(without.command(&["block", "list"]).code, Some(69));
    without.stop();
}

#[test]
fn places_where_it_cannot_be() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    let file = scratch.join("file");
    fs::write(&file, "precious").expect("a writable file");
    for (path, code, words) in [
        (scratch.join("none/x.sock"), 73, &["make its directory"][..]),
        (file.join("x.sock"), 73, &["Not a directory"]),
        (file.clone(), 73, &["no socket", "choose another path"]),
        (scratch.join(&"x".repeat(120)), 78, &["too long", "choose another path"]),
    ] {
        let failed = Setup::new(&spool, &[&at(&path)]).fail();
        let shown = path.display().to_string();
        assert_failed(&failed, code, &[&["--admin-socket", &shown], words].concat());
    }
    assert_eq!(fs::read_to_string(&file).expect("a file"), "precious");
    // A command that is given such a path says what is wrong with it, too.
    assert_failed(&list(&[&at(&file.join("x"))]), 69, &["Not a directory"]);
    assert_failed(&list(&[&at(&scratch.join(&"x".repeat(120)))]), 64, &["too long", "--admin-socket"]);
    assert_failed(&list(&[&at(&file)]), 69, &["no gateway listens at"]);
}

#[test]
fn in_a_deep_spool() {
    let scratch = Scratch::new();
    let spool = scratch.join(&"d".repeat(90)).join("e".repeat(200));
    let gateway = start(&spool, &[]);
    assert_eq!(gateway.tell(&["block", "add", "192.0.2.1"]), "192.0.2.1/32 is blocked for 1h\n");
    assert!(gateway.tell(&["block", "list"]).starts_with("192.0.2.1/32\t"));
    gateway.stop();
    assert!(!spool.join("admin.sock").exists());
}

#[test]
fn other_users_are_told_who_may() {
    if !is_root() {
        println!("only root can be another user");
        return;
    }
    let scratch = Scratch::new();
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o777)).expect("ours");
    let program = scratch.join("gatepost");
    fs::copy(&*GATEPOST, &program).expect("space for a copy");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("ours");
    let ask = |socket: &str| {
        let mut command = Command::new(&program);
        command.args(["block", "list", socket]).uid(NOBODY).gid(NOBODY);
        run_to_end(command)
    };
    // The spool is closed to others; so is the socket, wherever it is.
    let path = scratch.join("open.sock");
    for (spool, option) in [("closed", None), ("open", Some(at(&path)))] {
        let options: Vec<&str> = option.as_deref().into_iter().collect();
        let gateway = start(&scratch.join(spool), &options);
        let socket = option.clone().unwrap_or_else(|| at(&gateway.spool.join("admin.sock")));
        assert_failed(&ask(&socket), 77, &["ermission denied", "as the user that the gateway runs as"]);
        assert_eq!(list(&[&socket]).code, Some(0));
    }
    // And a place that this user may not write to is named.
    let closed = scratch.join("root");
    fs::create_dir(&closed).expect("a directory");
    let confinement = Confinement { uid: Some(NOBODY), ..Confinement::default() };
    let options = ["--shards=1", &at(&closed.join("x.sock"))];
    let failed = Setup::new(&scratch.join("nobody"), &options).program(&program).confined(confinement).fail();
    assert_failed(&failed, 77, &["--admin-socket", "root/x.sock", "write permission"]);
}

/// Says something, and reads the answer to its end.
fn say(path: &Path, octets: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).expect("it listens");
    // Who says too much is answered before all is said.
    let _ = stream.write_all(octets);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn what_it_does_not_know_is_refused() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[]);
    let path = gateway.spool.join("admin.sock");
    // Connections that say nothing are in nobody's way.
    let silent: Vec<UnixStream> = (0..10).map(|_| UnixStream::connect(&path).expect("it listens")).collect();
    for (request, word) in [
        (&b"\n"[..], "does not understand"),
        (b"EHLO x\r\n", "does not understand"),
        (b"{\"command\":\"frobnicate\"}\n", "frobnicate"),
        (b"{\"command\":\"block-add\",\"cidr\":\"10.0.0.0/33\",\"for_ms\":1}\n", "10.0.0.0/33"),
        (b"\xff\xfe\n", "does not understand"),
        (&vec![b'['; 60_000], ""),
        (&vec![b'x'; 200_000], "at most 65536 octets"),
    ] {
        let mut request = request.to_vec();
        if word.is_empty() {
            // Nested as deeply as it may be long.
            request.push(b'\n');
        }
        let answer = say(&path, &request);
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        assert!(
            answer.starts_with("{\"failed\":{\"code\":\"usage\",") && answer.ends_with("}}\n"),
            "{shown}: {answer}"
        );
        assert!(answer.contains(word), "{shown}: {answer}");
    }
    // A line that comes in pieces is a line; nothing behind it is read.
    let mut stream = UnixStream::connect(&path).expect("it listens");
    for octet in b"{\"command\":\"block-list\"}" {
        stream.write_all(&[*octet]).expect("it reads");
    }
    stream.write_all(b"\n{").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert_eq!(answer, "{\"blocks\":[]}\n");
    // Half a line is none.
    let stream = UnixStream::connect(&path).expect("it listens");
    (&stream).write_all(b"{\"command\":").expect("it reads");
    stream.shutdown(std::net::Shutdown::Write).expect("connected");
    answer.clear();
    (&stream).read_to_string(&mut answer).expect("it answers");
    assert!(answer.contains("no end of line"), "{answer}");
    drop(silent);
    gateway.stop();
}
