//! Who may log in: `gatepost user`, and what `serve` makes of the users file.

use crate::harness::{Ended, GATEPOST, Gateway, NOBODY, Scratch, Setup, is_root, run_to_end, start, until};
use rustix::process::Signal;
use rustix::termios::{LocalModes, tcgetattr};
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

/// An entry that costs nothing to make.
fn entry(name: &str) -> String {
    format!("{name} nt-hash=8846f7eaee8fb117ad06bdd830b7586c")
}

/// Writes a users file that is its owner's alone. Who looks at that moment may see less of it.
fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("a writable directory");
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("ours");
}

/// Puts one in the place of `path`, at once.
fn put(path: &Path, text: &str) {
    let new = path.with_extension("new");
    write(&new, text);
    fs::rename(&new, path).expect("ours");
}

/// Adds lines to a file where it is, at once.
fn append(path: &Path, text: &str) {
    let file = File::options().append(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).expect("ours");
}

fn command(file: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(&*GATEPOST);
    command.arg("user").args(arguments).arg("--users").arg(file);
    command
}

fn user(file: &Path, arguments: &[&str]) -> Ended {
    run_to_end(command(file, arguments))
}

/// `gatepost user add` with this on standard input, begun.
fn begin_add(file: &Path, arguments: &[&str], input: &str) -> Child {
    let mut command = command(file, &["add"]);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program");
    // One that refuses its arguments does not read.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child
}

fn end(child: Child) -> Ended {
    let output = child.wait_with_output().expect("a child of ours");
    let text = |octets: Vec<u8>| String::from_utf8(octets).expect("UTF-8");
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn add(file: &Path, arguments: &[&str], input: &str) -> Ended {
    end(begin_add(file, arguments, input))
}

#[track_caller]
fn assert_said(ended: &Ended, line: &str) {
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), format!("{line}\n").as_str(), ""));
}

#[track_caller]
fn assert_failed(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{}", ended.stderr);
    for word in words {
        assert!(ended.stderr.contains(word), "{word:?} is missing: {}", ended.stderr);
    }
    assert!(code == 64 || ended.stderr.lines().count() == 1, "{}", ended.stderr);
}

#[test]
fn users_are_added_changed_listed_and_removed() {
    let scratch = Scratch::new();
    let file = scratch.join("users.txt");
    assert_failed(&user(&file, &["list"]), 66, &["users.txt", "no such file", "gatepost user add"]);
    assert_failed(&user(&file, &["remove", "alice"]), 66, &["no such file"]);
    assert!(!file.exists());

    assert_said(&add(&file, &["alice"], "secret\n"), "added alice");
    assert_eq!(fs::metadata(&file).expect("made").mode() & 0o7777, 0o600);
    let text = fs::read_to_string(&file).expect("text");
    assert!(text.starts_with("alice password=$argon2id$v=19$m=19456,t=2,p=1$") && text.ends_with('\n'), "{text}");
    assert!(!text.contains("secret") && !text.contains("nt-hash"), "{text}");
    write(&file, &format!("# our users\n\n{text}# the end"));

    let settings =
        ["--ntlm", "--sender=bob@example.org", "--sender=.example.net", "--binding=587", "--binding=[::1]:25"];
    let arguments: Vec<&str> = settings.into_iter().chain(["bob@example.org"]).collect();
    assert_said(&add(&file, &arguments, "password"), "added bob@example.org");
    let listed = "alice\tPLAIN,LOGIN\tsenders=any\tbindings=all\n\
                  bob@example.org\tPLAIN,LOGIN,NTLM\tsenders=bob@example.org,.example.net\tbindings=587,[::1]:25";
    assert_said(&user(&file, &["list"]), listed);
    let json = "{\"name\":\"alice\",\"mechanisms\":[\"PLAIN\",\"LOGIN\"]}\n\
                {\"name\":\"bob@example.org\",\"mechanisms\":[\"PLAIN\",\"LOGIN\",\"NTLM\"],\
                \"senders\":[\"bob@example.org\",\".example.net\"],\"bindings\":[\"587\",\"[::1]:25\"]}";
    assert_said(&user(&file, &["list", "--json"]), json);
    let nt_hash = "nt-hash=8846f7eaee8fb117ad06bdd830b7586c";
    assert!(fs::read_to_string(&file).expect("text").contains(nt_hash));

    // A new password, with new settings: none of the old ones.
    assert_said(&add(&file, &["BOB@example.org"], "other\r\nnext line\n"), "changed BOB@example.org");
    let listed =
        "alice\tPLAIN,LOGIN\tsenders=any\tbindings=all\nBOB@example.org\tPLAIN,LOGIN\tsenders=any\tbindings=all";
    assert_said(&user(&file, &["list"]), listed);

    assert_said(&user(&file, &["remove", "Alice"]), "removed Alice");
    let gone = user(&file, &["remove", "alice"]);
    assert_failed(&gone, 1, &["alice is not in", "users.txt", "gatepost user list"]);
    let text = fs::read_to_string(&file).expect("text");
    assert!(text.starts_with("# our users\n\n# the end\nBOB@example.org password="), "{text}");
    assert_eq!(fs::read_dir(scratch.path()).expect("a directory").count(), 1, "nothing else is left");
}

#[test]
fn passwords_and_arguments_that_are_refused() {
    let scratch = Scratch::new();
    let file = scratch.join("users.txt");
    let too_long = "x".repeat(257);
    for (arguments, input, words) in [
        (&["alice"][..], "", &["the password is empty"][..]),
        (&["alice"], "\nsecret\n", &["the password is empty"]),
        (&["alice"], too_long.as_str(), &["longer than 256 octets"]),
        (&["alice"], "sec\0ret\n", &["NUL"]),
        (&["a b"], "secret", &["a b", "visible characters"]),
        (&["a=b"], "secret", &["a=b", "without '='"]),
        (&["alice", "--sender=a@b@c"], "secret", &["--sender", "a@b@c", ".example.org"]),
        (&["alice", "--binding=smtp"], "secret", &["--binding", "smtp", "192.0.2.1:587"]),
    ] {
        let ended = add(&file, arguments, input);
        assert_failed(&ended, 64, words);
        assert!(!ended.stderr.contains("secret") && !file.exists(), "{}", ended.stderr);
    }
    let mut without_file = Command::new(&*GATEPOST);
    without_file.args(["user", "list"]);
    assert_failed(&run_to_end(without_file), 64, &["--users"]);
}

#[test]
fn files_that_are_refused() {
    let scratch = Scratch::new();
    let file = scratch.join("users.txt");
    let assert_refused = |code: i32, words: &[&str]| {
        let before = fs::read(&file).unwrap_or_default();
        let serve = Setup::new(&scratch.join("spool"), &[&format!("--users={}", file.display())]).fail();
        for ended in [user(&file, &["list"]), user(&file, &["remove", "a"]), add(&file, &["a"], "secret"), serve] {
            assert_failed(&ended, code, words);
        }
        assert_eq!(fs::read(&file).unwrap_or_default(), before);
        assert!(!scratch.join("spool").exists(), "nothing is made for users that cannot be read");
    };
    write(&file, &format!("{}\n# two\n", entry("alice")));
    for (mode, what) in [(0o644, "read"), (0o640, "read"), (0o604, "read"), (0o620, "changed"), (0o610, "run")] {
        fs::set_permissions(&file, Permissions::from_mode(mode)).expect("ours");
        let path = file.display();
        let [what, mode, remedy] =
            [what.to_owned(), format!("by others (mode {mode:04o})"), format!("chmod 600 {path}")];
        assert_refused(78, &[&what, &mode, &remedy]);
    }
    write(&file, &format!("{}\n# two\nbob password=hunter2\n", entry("alice")));
    assert_refused(78, &["users.txt: line 3: password= is not a PHC string", "gatepost user add"]);
    assert!(!user(&file, &["list"]).stderr.contains("hunter2"));
    fs::write(&file, b"# one\n\xff password=x\n").expect("ours");
    assert_refused(78, &["line 2", "UTF-8"]);
    File::options().write(true).open(&file).and_then(|file| file.set_len((64 << 20) + 1)).expect("a sparse file");
    assert_refused(66, &["larger than 67108864 octets"]);
    fs::remove_file(&file).expect("ours");
    fs::create_dir(&file).expect("a directory");
    assert_refused(66, &["is a directory"]);
    fs::remove_dir(&file).expect("ours");
    rustix::fs::mkfifoat(rustix::fs::CWD, &file, rustix::fs::Mode::RUSR).expect("a named pipe");
    let list = user(&file, &["list"]);
    assert_failed(&list, 66, &["no regular file"]);
    fs::remove_file(&file).expect("ours");
    let serve = Setup::new(&scratch.join("spool"), &[&format!("--users={}", file.display())]).fail();
    assert_failed(&serve, 66, &["users.txt", "no such file", "gatepost user add"]);
    let below = scratch.join("absent").join("users.txt");
    assert_failed(&add(&below, &["a"], "secret"), 73, &["absent", "make its directory"]);
}

#[test]
fn many_at_once_lose_nobody() {
    let scratch = Scratch::new();
    let file = scratch.join("users.txt");
    let names: Vec<String> = (0..8).map(|number| format!("user{number}")).collect();
    let added: Vec<Child> = names.iter().map(|name| begin_add(&file, &["--ntlm", name], name)).collect();
    for (name, child) in names.iter().zip(added) {
        assert_said(&end(child), &format!("added {name}"));
    }
    let listed = user(&file, &["list"]).stdout;
    assert_eq!(listed.lines().count(), names.len(), "{listed}");
    assert!(names.iter().all(|name| listed.contains(&format!("{name}\t"))), "{listed}");

    // Removing takes no time but that of the file: these meet.
    let many: Vec<String> = (0..40).map(|number| format!("many{number}")).collect();
    let entries: Vec<String> = many.iter().map(|name| entry(name)).collect();
    write(&file, &format!("{}\n# stays\n{}\n", entry("first"), entries.join("\n")));
    let begin = |name: &String| {
        let mut command = command(&file, &["remove", name]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program")
    };
    let removed: Vec<Child> = many.iter().map(begin).collect();
    for (name, child) in many.iter().zip(removed) {
        assert_said(&end(child), &format!("removed {name}"));
    }
    assert_eq!(fs::read_to_string(&file).expect("text"), format!("{}\n# stays\n", entry("first")));
    assert_eq!(fs::read_dir(scratch.path()).expect("a directory").count(), 1, "nothing else is left");
}

#[test]
fn a_changed_file_is_whose_it_was_and_a_link_stays_one() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("real")).expect("a directory");
    let (link, real) = (scratch.join("users.txt"), scratch.join("real").join("users.txt"));
    write(&real, &format!("{}\n{}\n", entry("alice"), entry("bob")));
    symlink(&real, &link).expect("a link");
    if is_root() {
        chown(&real, Some(NOBODY), Some(NOBODY)).expect("root");
    }
    let before = fs::metadata(&real).expect("made");
    // Left over from one that was killed.
    fs::write(scratch.join("real").join(".users.txt.new"), "half of it").expect("a file");
    assert_said(&user(&link, &["remove", "bob"]), "removed bob");
    let after = fs::metadata(&real).expect("made");
    assert_eq!((after.uid(), after.gid(), after.mode()), (before.uid(), before.gid(), before.mode()));
    assert!(fs::symlink_metadata(&link).expect("made").is_symlink());
    assert_eq!(fs::read_to_string(&link).expect("text"), format!("{}\n", entry("alice")));
    assert_eq!(fs::read_dir(scratch.join("real")).expect("a directory").count(), 1);
}

/// Both ends of a new terminal: ours, and the program's.
fn terminal() -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: the pointers are to writable integers; the others may be null.
    let result = unsafe { libc::openpty(&raw mut ours, &raw mut theirs, null, null.cast(), null.cast()) };
    assert_eq!(result, 0, "a terminal: {}", std::io::Error::last_os_error());
    // SAFETY: the call has just returned these descriptors; nobody else knows them.
    unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

fn read_until(stderr: &mut ChildStderr, end: &str) -> String {
    let mut text = Vec::new();
    let mut octet = [0];
    while !text.ends_with(end.as_bytes()) {
        assert_eq!(stderr.read(&mut octet).expect("piped"), 1, "it ends: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&octet);
    }
    String::from_utf8(text).expect("UTF-8")
}

#[test]
fn a_terminal_is_asked_twice_and_shows_nothing() {
    let scratch = Scratch::new();
    let file = scratch.join("users.txt");
    for (answers, code, last, made) in [
        (&["tops3cret\n", "tops3cret\n"][..], 0, "", true),
        (&["tops3cret\n", "tops4cret\n"], 64, "not the same", false),
        // Ctrl-C, without Enter.
        (&["tops3\u{3}"], 75, "interrupted", false),
        (&["tops3cret\n", "\u{3}"], 75, "interrupted", false),
        (&["\n"], 64, "empty", false),
    ] {
        let _ = fs::remove_file(&file);
        let (mut ours, theirs) = terminal();
        let before = tcgetattr(&theirs).expect("a terminal");
        assert!(before.local_modes.contains(LocalModes::ECHO | LocalModes::ISIG));
        let mut command = command(&file, &["add", "alice"]);
        command.stdin(theirs.try_clone().expect("a descriptor")).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program");
        let mut stderr = child.stderr.take().expect("piped");
        for (answer, question) in answers.iter().zip(["Password for alice: ", "Once more: "]) {
            assert_eq!(read_until(&mut stderr, ": "), question);
            ours.write_all(answer.as_bytes()).expect("a terminal");
        }
        let ended = end(child);
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).expect("UTF-8");
        assert_eq!(ended.code, Some(code), "{rest}");
        assert!(rest.contains(last) && !rest.contains("tops"), "{rest}");
        assert_eq!(file.exists(), made, "{answers:?}");
        let after = tcgetattr(&theirs).expect("a terminal");
        assert_eq!(after.local_modes, before.local_modes, "the terminal is as it was");
        assert_eq!(format!("{:?}", after.special_codes), format!("{:?}", before.special_codes));
        // What it showed: the line ends alone.
        rustix::io::ioctl_fionbio(&ours, true).expect("a terminal");
        let mut shown = Vec::new();
        let _ = ours.read_to_end(&mut shown);
        assert!(shown.iter().all(|octet| b"\r\n".contains(octet)), "{:?}", String::from_utf8_lossy(&shown));
    }
}

#[track_caller]
fn assert_stops(mut gateway: Gateway) -> String {
    gateway.signal(Signal::TERM);
    let (code, stderr) = gateway.wait();
    assert_eq!(code, Some(0), "{stderr}");
    stderr
}

#[test]
fn a_running_gateway_loads_the_file_again() {
    let scratch = Scratch::new();
    let file = scratch.join("users.txt");
    let path = file.display();
    let two = format!("{}\n{}\n", entry("alice"), entry("bob"));
    write(&file, &two);
    let gateway = start(&scratch.join("spool"), &[&format!("--users={path}")]);
    assert_eq!(gateway.line(), format!("users: 2 loaded from {path}"));

    // Changed by the command, by an editor in place, by a file put in its place.
    assert_said(&user(&file, &["remove", "bob"]), "removed bob");
    assert_eq!(gateway.line(), format!("users: 1 loaded from {path}"));
    append(&file, &format!("{}\n{}\n", entry("bob"), entry("carol")));
    assert_eq!(gateway.line(), format!("users: 3 loaded from {path}"));
    put(&file, &two);
    assert_eq!(gateway.line(), format!("users: 2 loaded from {path}"));
    // Unchanged, and asked for.
    gateway.signal(Signal::HUP);
    assert_eq!(gateway.line(), format!("users: 2 loaded from {path}"));
    assert_eq!(gateway.line(), "reload: nothing has changed");

    // What cannot be loaded is told once for each change, and each time somebody asks.
    let broken = format!("{path}: line 3: ");
    let told = |what: &str| gateway.stderr().matches(what).count();
    append(&file, "carol\n");
    until("it is told", || told(&broken) == 1);
    assert!(gateway.stderr().contains("the users that were loaded before stay"), "{}", gateway.stderr());
    gateway.signal(Signal::HUP);
    until("it is told again", || told("reload: nothing has changed") == 1);
    assert_eq!(told(&broken), 2);
    fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("ours");
    until("it is told", || told("can be read by others (mode 0644)") == 1);
    fs::remove_file(&file).expect("ours");
    until("it is told", || told("there is no such file") == 1);
    put(&file, &two);
    assert_eq!(gateway.line(), format!("users: 2 loaded from {path}"));
    let stderr = assert_stops(gateway);
    assert_eq!(stderr.lines().count(), 5, "each once: {stderr}");
}

#[test]
fn sighup_ends_nothing() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &[]);
    let mut session = gateway.session();
    gateway.signal(Signal::HUP);
    assert_eq!(gateway.line(), "reload: nothing has changed");
    session.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
    session.quit();
    let stderr = assert_stops(gateway);
    assert_eq!(stderr, "");
}
