//! Options by file and environment, and `gatepost check`.

use crate::harness::{
    Client, Ended, GATEPOST, Gateway, NOBODY, Scratch, Setup, gatepost, is_root, list, run_to_end, start,
};
use rustix::fs::stat;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

/// `gatepost check` with these arguments and variables.
fn check_with(arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
    let mut command = gatepost(&GATEPOST);
    command.arg("check").args(arguments).envs(variables.iter().copied());
    run_to_end(command)
}

fn check(arguments: &[&str]) -> Ended {
    check_with(arguments, &[])
}

/// Options that let a check of an otherwise good configuration go well on every machine.
fn usual(spool: &Path) -> Vec<String> {
    let spool = format!("--spool={}", spool.display());
    let others = ["--hostname=mx.test.example", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0"];
    let modest = ["--max-connections=400", "--shards=2", "--min-free-disk=0", "--min-free-memory=0"];
    others.into_iter().chain(modest).map(str::to_owned).chain([spool]).collect()
}

#[track_caller]
fn assert_failed(ended: &Ended, code: i32, lines: &[&str]) {
    let told: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!((ended.code, told.len()), (Some(code), lines.len()), "{told:#?}");
    for (told, words) in told.iter().zip(lines) {
        assert!(told.starts_with("gatepost: ") && told.contains(words), "{told}\nhas not\n{words}");
    }
}

#[track_caller]
fn write(path: &Path, text: &str) -> String {
    fs::write(path, text).expect("space");
    path.display().to_string()
}

/// What tells a file from one that was changed: inode, mode, octets, time of change.
type FileState = (u64, u32, i64, (i64, u64));

/// Everything below a directory.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, FileState> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let stat = stat(&path).expect("it is there");
        if path.is_dir() {
            found.extend(snapshot(&path));
        }
        found.insert(path, (stat.st_ino, stat.st_mode, stat.st_size, (stat.st_mtime, stat.st_mtime_nsec)));
    }
    found
}

#[test]
fn serve_takes_options_from_everywhere() {
    let scratch = Scratch::new();
    let text = "accept-domain = ['file.example']\nmax-recipients = 1\nlocal-name = ['a.example']\nmax-hops = 5\n";
    let file = write(&scratch.join("gatepost.toml"), text);
    // The flags of a setup have --accept-domain=test.example.
    let setup = Setup::new(&scratch.join("spool"), &[]);
    let gateway = setup.variable("GATEPOST_CONFIG", &file).variable("GATEPOST_MAX_RECIPIENTS", "2").start();
    let mut client = gateway.session();
    for (command, reply) in [
        ("MAIL FROM:<a@b.example>", "250 "),
        ("RCPT TO:<one@file.example>", "550 "),
        ("RCPT TO:<one@test.example>", "250 "),
        ("RCPT TO:<two@test.example>", "250 "),
        ("RCPT TO:<three@test.example>", "452 "),
    ] {
        let got = client.command(command);
        assert!(got.starts_with(reply), "{command}: {got}");
    }
    client.quit();
    gateway.stop();
}

#[test]
fn faults_have_their_place_and_end_the_start() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    let path = scratch.join("gatepost.toml");
    let serve = |text: &str, variables: &[(&str, &str)]| {
        let file = format!("--config={}", write(&path, text));
        let setup = Setup::new(&spool, &[&file]);
        variables.iter().fold(setup, |setup, (name, value)| setup.variable(name, value)).fail()
    };
    let shown = path.display();
    for (text, variables, lines) in [
        ("a = 1\n\ntarpit = 'soon'\n", &[][..], &[":1: a: there is no such option", ":3: tarpit: \"soon\": "][..]),
        ("tarpit = 1\ntarpit = 2\n", &[], &[":2: tarpit: duplicate key"]),
        ("tarpit = \n", &[], &[":1: "]),
        ("\n\nqueue-lifetime = 0\n", &[], &[":3: queue-lifetime: 0: no message would be tried"]),
        ("", &[("GATEPOST_SPOOLS", "x")], &["GATEPOST_SPOOLS: there is no such option; did you mean GATEPOST_SPOOL?"]),
        ("", &[("GATEPOST_NEXT_HOP", "a:25 a:25")], &["GATEPOST_NEXT_HOP: \"a:25\": a:25 is given twice"]),
    ] {
        let ended = serve(text, variables);
        assert_failed(&ended, 78, lines);
        if text.contains('=') {
            assert!(
                ended.stderr.lines().all(|line| line.starts_with(&format!("gatepost: {shown}:"))),
                "{}",
                ended.stderr
            );
        }
        assert!(!spool.exists());
    }
    let missing = Setup::new(&spool, &["--config=/nonexistent/gatepost.toml"]).fail();
    assert_failed(&missing, 78, &["/nonexistent/gatepost.toml: cannot read the configuration: No such file"]);
    // A flag that is none stays a matter of usage.
    assert_eq!(check(&["--tarpit=soon"]).code, Some(64));
}

#[test]
fn help_names_the_variables() {
    for command in ["serve", "check"] {
        let mut help = gatepost(&GATEPOST);
        help.args([command, "--help"]);
        let text = run_to_end(help).stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        for variable in ["CONFIG", "LISTEN", "MAX_CONNECTIONS_PER_SOURCE", "TARPIT", "ADMIN_SOCKET"] {
            assert!(text.contains(&format!("[env: GATEPOST_{variable}]")), "{variable}: {text}");
        }
    }
}

#[test]
fn check_prints_what_holds_as_a_file() {
    let scratch = Scratch::new();
    let spool = scratch.join("spool");
    let file = write(&scratch.join("gatepost.toml"), "# hops\nmax-hops = 5\nblock = ['192.0.2.1', '192.0.2.2']\n");
    let mut arguments = usual(&spool);
    arguments.push(format!("--config={file}"));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = check_with(&arguments, &[("GATEPOST_TARPIT", "60")]);
    let note = format!("gatepost: spool {} is not there: serve makes it\n", spool.display());
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), note.as_str()));
    for line in [
        &format!("max-hops = 5  # {file}:2"),
        &format!("block = [\"192.0.2.1\", \"192.0.2.2\"]  # {file}:3"),
        "tarpit = \"1m\"  # GATEPOST_TARPIT",
        "shards = 2  # flag",
        "retry-max = \"1h\"  # default",
        "# users is not set  # default",
    ] {
        assert!(ended.stdout.lines().any(|printed| printed == line), "{line}\nis not in\n{}", ended.stdout);
    }
    // Fed back it is the same, and all of it comes from there.
    let printed = scratch.join("printed.toml");
    let again = check(&["--config", &write(&printed, &ended.stdout)]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    let settings = |text: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| Some(line.rsplit_once("  # ")?.0.to_owned()));
        lines.collect()
    };
    assert_eq!(settings(&again.stdout), settings(&ended.stdout));
    let others = |line: &&str| !line.starts_with('#') && !line.contains(&format!("{}:", printed.display()));
    assert_eq!(again.stdout.lines().find(others), None);
    // Nothing was made.
    let names: Vec<PathBuf> = snapshot(scratch.path()).into_keys().collect();
    assert_eq!(names, [scratch.join("gatepost.toml"), printed]);
}

#[test]
fn check_tells_all_that_is_wrong() {
    let scratch = Scratch::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let users = scratch.join("users");
    write(&users, "");
    fs::set_permissions(&users, Permissions::from_mode(0o644)).expect("ours");
    let occupied = write(&scratch.join("file"), "no directory");
    let before = snapshot(scratch.path());
    let own = |option: &str, name: &str| format!("--{option}={}", scratch.join(name).display());
    let options = [
        "--next-hop=192.0.2.1:25,tls=required,ca=/nonexistent/ca.pem".to_owned(),
        "--route=a.example=192.0.2.2:25,auth-file=/nonexistent/auth".to_owned(),
        own("users", "users"),
        own("tls-cert", "cert.pem"),
        own("tls-key", "key.pem"),
        format!("--spool={occupied}"),
        format!("--listen={address}"),
        format!("--metrics-listen={address}0"),
        "--max-connections=400".to_owned(),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    // An address that is none is a fault of the configuration: nothing is looked at.
    let ended = check(&options);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(64), ""), "{}", ended.stderr);
    let options: Vec<&str> = options
        .into_iter()
        .map(|option| if option.starts_with("--metrics-listen") { "--metrics-listen=192.0.2.1:9125" } else { option })
        .collect();
    let ended = check(&options);
    let lines: Vec<&str> = ended.stderr.lines().collect();
    let expected = [
        "next hop 192.0.2.2:25: tls=optional with auth-file",
        "next hop 192.0.2.1:25: ca=/nonexistent/ca.pem: ",
        "next hop 192.0.2.2:25: auth-file=/nonexistent/auth: ",
        "can be read by others (mode 0644): chmod 600",
        "--tls-cert ",
        "cannot write to ",
        "another process listens there",
        "--metrics-listen 192.0.2.1:9125: ",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, words) in lines.iter().zip(expected) {
        assert!(line.contains(words), "{line}\nhas not\n{words}");
    }
    // serve would end at the first.
    assert_eq!(ended.code, Some(78));
    assert!(ended.stdout.contains("next-hop = [\"192.0.2.1:25,tls=required,ca=/nonexistent/ca.pem\"]  # flag\n"));
    assert_eq!(snapshot(scratch.path()), before);
}

#[test]
fn check_ends_as_serve_would() {
    let scratch = Scratch::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = format!("--listen={}", taken.local_addr().expect("bound"));
    let file = write(&scratch.join("file"), "no directory");
    let socket = format!("--admin-socket={file}");
    let other = start(&scratch.join("other"), &[]);
    let other_socket = format!("--admin-socket={}", other.spool.join("admin.sock").display());
    let spool = scratch.join("spool");
    start(&spool, &[]).stop();
    let before = snapshot(&spool);
    for options in [
        &[listen.as_str()][..],
        &["--listen=192.0.2.1:25"],
        &[&socket],
        &[&other_socket],
        &["--admin-socket=/nonexistent/admin.sock"],
        &["--users=/nonexistent/users"],
        &["--max-connections=100000000"],
        &["--listen=127.0.0.1:1,tls=required"],
    ] {
        let served = Setup::new(&spool, options).fail();
        let usual = usual(&spool);
        let given = |option: &str| options.iter().any(|other| other.split('=').next() == option.split('=').next());
        let arguments: Vec<&str> =
            usual.iter().map(String::as_str).filter(|option| !given(option)).chain(options.iter().copied()).collect();
        let checked = check(&arguments);
        assert_eq!((checked.code, checked.stderr), (served.code, served.stderr), "{options:?}");
    }
    // The failed starts wrote their process ids into the lock; the checks did nothing.
    assert!(snapshot(&spool).keys().eq(before.keys()));
    other.stop();
}

#[test]
fn check_as_a_user_who_may_not() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let program = scratch.join("gatepost");
    fs::copy(&*GATEPOST, &program).expect("space for a copy");
    for path in [scratch.path(), &program] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("ours");
    }
    let [closed, spool] = ["closed", "spool"].map(|name| scratch.join(name));
    fs::create_dir(&closed).expect("a directory");
    let gateway = start(&spool, &[]);
    gateway.session().deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
    gateway.stop();
    let listed = snapshot(&spool);
    // All but a segment is nobody's: somebody has run the gateway as root.
    let segment = listed.keys().find(|path| path.to_string_lossy().contains("segment")).expect("a segment");
    for path in listed.keys().chain([&spool]).filter(|path| *path != segment) {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
    }
    for (spool, words) in [
        (&closed, format!("cannot write to {}: Permission denied", closed.display())),
        (&closed.join("new"), format!("cannot make a directory in {}: Permission denied", closed.display())),
        (&spool, format!("cannot write to {}: Permission denied", segment.display())),
    ] {
        let mut command = gatepost(&program);
        command.arg("check").args(usual(spool)).uid(NOBODY).gid(NOBODY);
        let ended = run_to_end(command);
        assert_eq!(ended.code, Some(77), "{}", ended.stderr);
        assert!(ended.stderr.contains(&words), "{words}: {}", ended.stderr);
    }
}

#[test]
fn check_beside_a_running_gateway_is_not_noticed() {
    let scratch = Scratch::new();
    let gateway = start(&scratch.join("spool"), &["--listen=127.0.0.1:0", "--listen=[::1]:0"]);
    let mut session = gateway.session();
    session.deliver("a@b.example", &["rcpt@test.example"], b"one\r\n");
    let listening: Vec<String> = gateway.listening.iter().map(|address| format!("--listen={address}")).collect();
    let metrics = format!("--metrics-listen={}", gateway.metrics);
    let mut arguments: Vec<String> =
        usual(&gateway.spool).into_iter().filter(|option| !option.contains("listen=")).collect();
    arguments.extend(listening);
    arguments.push(metrics);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let note = format!(
        "gatepost: spool {} is in use by a running gatepost (process {})\n",
        gateway.spool.display(),
        gateway.pid()
    );
    for _ in 0..3 {
        let before = snapshot(scratch.path());
        let ended = check(&arguments);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), note.as_str()));
        assert_eq!(snapshot(scratch.path()), before);
        // Sessions that are open, and new ones, at both addresses.
        session.deliver("a@b.example", &["rcpt@test.example"], b"more\r\n");
        gateway.session().deliver("a@b.example", &["rcpt@test.example"], b"new\r\n");
        let mut other = Client::connect(gateway.listening[1], None);
        other.hello();
        other.deliver("a@b.example", &["rcpt@test.example"], b"by the other\r\n");
    }
    assert_eq!(gateway.metric("gatepost_queue_messages"), 10.0);
    drop(session);
    assert_eq!(stopped(gateway), 10);
}

/// Ends a gateway; the messages in its spool.
fn stopped(gateway: Gateway) -> usize {
    let spool = gateway.spool.clone();
    gateway.stop();
    list(&spool).len()
}

#[test]
fn the_example_is_a_configuration() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples/gatepost.toml");
    let text = fs::read_to_string(&example).expect("the example");
    let scratch = Scratch::new();
    let own = |name: &str, text: &str| write(&scratch.join(name), text);
    let certified = rcgen::generate_simple_self_signed(["mx.example.org".to_owned()]).expect("a certificate");
    let users = own("users", "");
    fs::set_permissions(&users, Permissions::from_mode(0o600)).expect("ours");
    let files = [
        format!("--tls-cert={}", own("cert.pem", &certified.cert.pem())),
        format!("--tls-key={}", own("key.pem", &certified.signing_key.serialize_pem())),
        format!("--users={users}"),
        format!("--accept-domains-file={}", own("domains", "example.net\n")),
        format!("--block-file={}", own("blocked", "192.0.2.1\n")),
    ];
    // Every line that is switched off is a key at the line's begin.
    let switch_on = |line: &str| match line.strip_prefix('#') {
        Some(line) if line.starts_with(|letter: char| letter.is_ascii_lowercase()) => line.to_owned(),
        _ => line.to_owned(),
    };
    let all: String = text.lines().map(switch_on).flat_map(|line| [line, "\n".to_owned()]).collect();
    assert!(all.len() < text.len(), "some are switched off");
    let all = own("all.toml", &all);
    let example = example.display().to_string();
    for (file, files) in [(&example, &[][..]), (&all, &files)] {
        let config = format!("--config={file}");
        // What depends on the machine.
        let mut arguments = usual(&scratch.join("spool"));
        arguments.retain(|option| !option.starts_with("--hostname"));
        arguments.push(config);
        arguments.extend_from_slice(files);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ended = check(&arguments);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stdout.contains(&format!("hostname = \"mx.example.org\"  # {file}:")), "{}", ended.stdout);
    }
}
