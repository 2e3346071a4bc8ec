//! Loading the configuration again: what applies to whom, what changes nothing, and what is told.

use crate::harness::tls_client::{ClientTls, Kind, Pair, put};
use crate::harness::{
    BANNER, Client, Ended, GATEPOST, Gateway, NOT_CONFIGURED, Scratch, Setup, TOTAL, assert_stored, queue_id, until,
};
use crate::sasl_client::{AUTHENTICATED, UsersFile, plain};
use rustix::process::Signal;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MAIL: &str = "MAIL FROM:<a@b.example>";
const SENDER: &str = "250 2.1.0 Sender OK";
const RECIPIENT: &str = "250 2.1.5 Recipient OK";
const RELAY_DENIED: &str = "550 5.7.1 Unable to relay";
const NOTHING: &str = "nothing has changed\n";
const RELOADS: &str = "gatepost_config_reloads_total";

/// What a file has unless it says otherwise.
const USUAL: &[(&str, &str)] = &[
    ("hostname", "'mx.test.example'"),
    ("listen", "['127.0.0.1:0']"),
    ("metrics-listen", "'127.0.0.1:0'"),
    ("shards", "2"),
    ("accept-domain", "['test.example']"),
    ("max-connections", "400"),
    ("min-free-disk", "0"),
    ("min-free-memory", "0"),
    ("tarpit", "0"),
];

/// A gateway with a configuration file.
struct Site {
    scratch: Scratch,
    file: PathBuf,
    gateway: Gateway,
}

impl Site {
    fn new(options: &[(&str, &str)]) -> Self {
        Site::among(Scratch::new(), options)
    }

    fn among(scratch: Scratch, options: &[(&str, &str)]) -> Self {
        let file = scratch.join("gatepost.toml");
        fs::write(&file, text(options)).expect("a writable directory");
        let gateway = Setup::of_file(&scratch.join("spool"), &file).start();
        Site { scratch, file, gateway }
    }

    /// Writes the usual file with these options.
    fn write(&self, options: &[(&str, &str)]) {
        fs::write(&self.file, text(options)).expect("a writable directory");
    }

    /// The same, and has it loaded; what is told of it.
    #[track_caller]
    fn reload(&self, options: &[(&str, &str)]) -> String {
        self.write(options);
        self.gateway.tell(&["reload"])
    }

    /// Has it loaded, which must fail; what is told of it.
    #[track_caller]
    fn refused(&self) -> String {
        let Ended { code, stdout, stderr } = self.gateway.command(&["reload"]);
        assert_eq!((code, stdout.as_str()), (Some(78), ""), "{stderr}");
        assert!(stderr.ends_with("gatepost: nothing has changed, the configuration is as it was\n"), "{stderr}");
        stderr
    }

    /// Sessions on all shards, most likely.
    fn sessions(&self) -> Vec<Client> {
        (0..8).map(|_| self.gateway.session()).collect()
    }

    fn reloads(&self, result: &str) -> f64 {
        self.gateway.metric_with(RELOADS, "result", result)
    }
}

fn text(options: &[(&str, &str)]) -> String {
    let is_given = |name: &str| options.iter().any(|(given, _)| *given == name);
    let usual = USUAL.iter().filter(|(name, _)| !is_given(name));
    options.iter().chain(usual).map(|(name, value)| format!("{name} = {value}\n")).collect()
}

#[track_caller]
fn may_send_to(client: &mut Client, recipient: &str, reply: &str) {
    client.expect(MAIL, SENDER);
    client.expect(&format!("RCPT TO:<{recipient}>"), reply);
    client.expect("RSET", "250 2.0.0 Resetting");
}

#[test]
fn sessions_keep_what_they_began_with() {
    let site = Site::new(&[("max-message-size", "'1MB'"), ("max-recipients", "1")]);
    let mut before = site.sessions();
    let mut silent = site.gateway.connect();
    assert_eq!(silent.reply(), BANNER);
    let told = site.reload(&[
        ("max-message-size", "'2MB'"),
        ("disable-extension", "['CHUNKING']"),
        ("accept-domain", "['other.example']"),
        ("tarpit", "'1s'"),
    ]);
    let mut told: Vec<&str> = told.lines().collect();
    told.sort_unstable();
    let expected = [
        "accept-domain: test.example -> other.example",
        "disable-extension: none -> CHUNKING",
        "max-message-size: 1MB -> 2MB",
        "max-recipients: 1 -> 200",
        "tarpit: 0ms -> 1s",
    ];
    assert_eq!(told, expected);
    let mut after = site.sessions();
    // The refusals of those that began before would now be late beyond patience.
    site.reload(&[("max-message-size", "'3MB'"), ("tarpit", "'5m'")]);

    before.push(silent);
    for client in &mut before {
        let hello = client.ehlo();
        assert!(hello.contains("SIZE 1048576\n") && hello.contains("250-CHUNKING"), "{hello}");
        may_send_to(client, "rcpt@other.example", RELAY_DENIED);
        client.expect(&format!("{MAIL} SIZE=1048577"), "552 5.3.4 Message size exceeds fixed maximum message size");
        client.expect(MAIL, SENDER);
        client.expect("RCPT TO:<one@test.example>", RECIPIENT);
        client.expect("RCPT TO:<two@test.example>", "452 4.5.3 Too many recipients");
        let id = queue_id(&client.data(b"kept\r\n"));
        assert_stored(&site.gateway.spool, &id, b"kept\r\n");
    }
    for client in &mut after {
        let hello = client.ehlo();
        assert!(hello.contains("SIZE 2097152\n") && !hello.contains("CHUNKING"), "{hello}");
        client.expect(&format!("{MAIL} SIZE=1048577"), SENDER);
        client.expect("RCPT TO:<one@other.example>", RECIPIENT);
        client.expect("RCPT TO:<two@other.example>", RECIPIENT);
    }
    let began = Instant::now();
    after[0].expect("RCPT TO:<three@test.example>", RELAY_DENIED);
    assert!(began.elapsed() >= Duration::from_secs(1), "late");
    // The next banner for that address is late.
    assert!(site.gateway.session_from("127.7.0.1").ehlo().contains("SIZE 3145728\n"));
    // A transaction would be waited for.
    drop(after);
    site.gateway.stop();
}

#[test]
fn limits_of_connections_apply_at_once() {
    let site = Site::new(&[]);
    let open = site.sessions();
    assert_eq!(site.reload(&[("max-connections", "8")]), "max-connections: 400 -> 8\n");
    for _ in 0..8 {
        assert_eq!(site.gateway.connect().reply(), TOTAL);
    }
    assert_eq!(site.reload(&[("max-connections", "9")]), "max-connections: 8 -> 9\n");
    site.gateway.session().quit();
    open.into_iter().for_each(Client::quit);
    site.reload(&[("drain-timeout", "'77s'")]);
    for line in ["max-connections: 400 -> 8", "max-connections: 8 -> 9"] {
        assert_eq!(site.gateway.line(), format!("reload: {line}"));
    }
    assert_eq!(site.gateway.stop().last().map(String::as_str), Some("drained"));
}

#[test]
fn signal_and_command_do_the_same() {
    let site = Site::new(&[]);
    let started = site.gateway.metric("gatepost_config_reload_timestamp_seconds");
    assert!(started > 1.6e9, "{started}");
    assert_eq!(site.gateway.tell(&["reload"]), NOTHING);
    assert_eq!(site.gateway.line(), "reload: nothing has changed");
    site.gateway.signal(Signal::HUP);
    assert_eq!(site.gateway.line(), "reload: nothing has changed");
    site.write(&[("max-connections", "300"), ("drain-timeout", "'7s'")]);
    site.gateway.signal(Signal::HUP);
    let mut told = [site.gateway.line(), site.gateway.line()];
    told.sort();
    assert_eq!(told, ["reload: drain-timeout: 30s -> 7s", "reload: max-connections: 400 -> 300"]);
    fs::write(&site.file, "max-connections = 'many'\n").expect("ours");
    site.gateway.signal(Signal::HUP);
    until("it is told", || site.gateway.stderr().contains("the configuration is as it was"));
    let place = format!("gatepost: reload: {}:1: max-connections: ", site.file.display());
    assert!(site.gateway.stderr().starts_with(&place), "{}", site.gateway.stderr());
    until("they are counted", || site.reloads("failed") == 1.0);
    assert_eq!((site.reloads("unchanged"), site.reloads("applied")), (2.0, 1.0));
    assert!(site.gateway.metric("gatepost_config_reload_timestamp_seconds") > started);
    site.gateway.signal(Signal::TERM);
    assert_eq!(site.gateway.line(), "draining: transactions may go on for 7s");
}

#[test]
fn what_is_broken_changes_nothing() {
    let scratch = Scratch::new();
    let (domains, users) = (scratch.join("domains"), UsersFile::new(scratch.join("users")));
    let pair = Pair::make(scratch.path(), "mx", Kind::Ecdsa, &["mx.test.example"]);
    fs::write(&domains, "test.example\n").expect("a writable directory");
    users.add(&["alice"], "secret");
    let quoted = |path: &std::path::Path| format!("'{}'", path.display());
    let named = [quoted(&domains), quoted(users.path()), quoted(&pair.certificate), quoted(&pair.key)];
    let good = [
        ("accept-domains-file", named[0].as_str()),
        ("users", &named[1]),
        ("tls-cert", &format!("[{}]", named[2])),
        ("tls-key", &format!("[{}]", named[3])),
    ];
    let site = Site::among(scratch, &good);
    let mut session = site.gateway.session();
    let hello = session.ehlo();
    let with = |more: &[(&'static str, &'static str)]| {
        let mut all: Vec<(&str, &str)> = good.to_vec();
        all.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
        all.extend(more);
        all
    };
    // A fault beside a change that is in order.
    let change = ("max-message-size", "'1MB'");
    let file = site.file.display();
    let absent = site.scratch.join("absent");
    let cases = [
        (with(&[("max-message-size", "'1QB'")]), format!("{file}:5: max-message-size: ")),
        (with(&[change, ("tarpit", "'6m'")]), "tarpit: ".to_owned()),
        (with(&[change, ("users", "'/nonexistent/users'")]), "/nonexistent/users: there is no such file".to_owned()),
        (with(&[change, ("tls-cert", "[]")]), "tls-cert: there are 0 of it, and 1 of --tls-key".to_owned()),
        (with(&[change, ("accept-domains-file", "'/nonexistent/domains'")]), "accept-domains-file: ".to_owned()),
        (with(&[change, ("max-connections", "4000000000")]), "--max-connections 4000000000".to_owned()),
    ];
    let count = cases.len() as f64;
    for (options, told) in &cases {
        site.write(options);
        let stderr = site.refused();
        assert!(stderr.contains(told), "{told:?}: {stderr}");
        assert!(site.gateway.stderr().contains(told), "{told:?}");
        assert_eq!(site.gateway.session().ehlo(), hello);
    }
    // Files that are named by a configuration which is in order otherwise.
    site.write(&with(&[change]));
    fs::write(&domains, "test.example\n-x.example\n").expect("ours");
    assert!(site.refused().contains(&format!("{}: line 2: ", domains.display())));
    fs::write(&domains, "test.example\nmore.example\n").expect("ours");
    fs::rename(&pair.key, &absent).expect("ours");
    assert!(site.refused().contains(&format!("--tls-key {}", pair.key.display())));
    assert_eq!(site.gateway.session().ehlo(), hello);
    may_send_to(&mut site.gateway.session(), "rcpt@more.example", RELAY_DENIED);
    assert_eq!((site.reloads("failed"), site.reloads("applied")), (count + 2.0, 0.0));
    // All of it, when the last fault is mended.
    fs::rename(&absent, &pair.key).expect("ours");
    let told = site.gateway.tell(&["reload"]);
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].starts_with("users: 1 loaded from ") && lines[1].starts_with("certificates loaded from "));
    assert_eq!(lines[2..], ["max-message-size: 10MB -> 1MB", "accept-domains-file: 1 domains -> 2"]);
    may_send_to(&mut site.gateway.session(), "rcpt@more.example", RECIPIENT);
    assert!(site.gateway.session().ehlo().contains("SIZE 1048576\n"));
    assert_eq!(session.ehlo(), hello);
}

#[test]
fn what_needs_a_restart_is_said_and_the_rest_applied() {
    let site = Site::new(&[("listen", "['127.0.0.1:0', '[::1]:0']")]);
    let new = [
        ("listen", "['127.0.0.1:0,allow=127.9.0.0/16', '127.0.0.1:1']"),
        ("shards", "1"),
        ("hostname", "'other.example'"),
        ("next-hop", "['127.0.0.1:2']"),
        ("max-recipients", "1"),
    ];
    let mut open = site.gateway.session();
    let pending = [
        "listen: [::1]:0: needs a restart",
        "listen: 127.0.0.1:1: needs a restart",
        "hostname: needs a restart",
        "shards: needs a restart",
        "next-hop: needs a restart",
    ];
    let told = site.reload(&new);
    assert!(told.contains("shards: 2 -> 1\n") && told.contains("max-recipients: 200 -> 1\n"), "{told}");
    // Each time until it is restarted.
    let again = site.gateway.tell(&["reload"]);
    for line in pending {
        assert!(told.lines().any(|told| told == line) && again.lines().any(|told| told == line), "{line}: {told}");
    }
    assert!(again.starts_with(NOTHING) && again.lines().count() == 1 + pending.len(), "{again}");
    // An address that stays has its new attributes, one that goes its old ones.
    for _ in 0..4 {
        assert_eq!(site.gateway.connect().reply(), NOT_CONFIGURED);
        let mut other = Client::connect(site.gateway.listening[1], None);
        other.hello();
        other.expect(MAIL, SENDER);
        other.expect("RCPT TO:<one@test.example>", RECIPIENT);
        other.expect("RCPT TO:<two@test.example>", "452 4.5.3 Too many recipients");
    }
    let mut allowed = site.gateway.connect_from("127.9.0.1");
    assert_eq!(allowed.hello(), "250-mx.test.example Hello [127.9.0.1]");
    open.deliver("a@b.example", &["one@test.example", "two@test.example"], b"x\r\n");
    assert_eq!(site.reload(&[("listen", "['127.0.0.1:0', '[::1]:0']")]).lines().count(), 5);
    assert_eq!(site.gateway.tell(&["reload"]), NOTHING);
    site.gateway.session().quit();
}

#[test]
fn users_come_and_go() {
    let scratch = Scratch::new();
    let [one, two] = ["one", "two"].map(|name| UsersFile::new(scratch.join(name)));
    one.add(&["alice"], "first");
    two.add(&["alice"], "second");
    let [one, two] = [one, two].map(|users| format!("'{}'", users.path().display()));
    let listen = ("listen", "['127.0.0.1:0,plaintext-auth']");
    let site = Site::among(scratch, &[listen]);
    let logs_on = |password: &str| plain(&mut site.gateway.session(), "alice", password);
    let mut nobody = site.gateway.session();
    assert!(!nobody.ehlo().contains("AUTH"));
    for (users, good, bad) in [(&one, "first", "second"), (&two, "second", "first")] {
        let told = site.reload(&[listen, ("users", users)]);
        assert!(told.starts_with("users: 1 loaded from ") && told.contains("\nusers: "), "{told}");
        assert_eq!(logs_on(good), AUTHENTICATED);
        assert_ne!(logs_on(bad), AUTHENTICATED);
    }
    let mut open = site.gateway.session();
    // Who was offered AUTH may still ask, and nobody is known.
    assert!(site.reload(&[listen]).ends_with("-> none\n"));
    assert_ne!(plain(&mut open, "alice", "second"), AUTHENTICATED);
    assert!(!site.gateway.session().ehlo().contains("AUTH") && !nobody.ehlo().contains("AUTH"));
}

#[test]
fn certificates_come_and_go() {
    let scratch = Scratch::new();
    let pairs = ["one", "two"].map(|name| Pair::make(scratch.path(), name, Kind::Ecdsa, &["mx.test.example"]));
    let site = Site::among(scratch, &[]);
    let mut before = site.gateway.session();
    for pair in &pairs {
        let [certificate, key] = [&pair.certificate, &pair.key].map(|path| format!("['{}']", path.display()));
        let told = site.reload(&[("tls-cert", &certificate), ("tls-key", &key)]);
        assert!(told.starts_with("certificates loaded from ") && told.contains("\ntls-cert: "), "{told}");
        let mut client = site.gateway.session();
        client.starttls(&ClientTls::default());
        assert_eq!(client.tls().peer_certificates().expect("a handshake")[0], pair.der);
        assert!(!before.ehlo().contains("STARTTLS"));
    }
    let mut offered = site.gateway.session();
    site.reload(&[]);
    assert!(!site.gateway.session().ehlo().contains("STARTTLS"));
    offered.starttls(&ClientTls::default());
}

#[test]
fn lists_are_read_again() {
    let scratch = Scratch::new();
    let blocked = scratch.join("blocked");
    fs::write(&blocked, "192.0.2.0/24\n").expect("a writable directory");
    let site = Site::among(scratch, &[("block-file", &format!("'{}'", blocked.display()))]);
    let mut open = site.gateway.session_from("127.8.0.1");
    fs::write(&blocked, "192.0.2.0/24\n127.8.0.0/16\n").expect("ours");
    assert_eq!(site.gateway.tell(&["reload"]), "block-file: 1 ranges -> 2\n");
    for _ in 0..4 {
        assert!(site.gateway.connect_from("127.8.0.1").reply().starts_with("550 5.7.1 External client"));
    }
    open.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
    fs::write(&blocked, "").expect("ours");
    assert_eq!(site.gateway.tell(&["reload"]), "block-file: 2 ranges -> 0\n");
    site.gateway.session_from("127.8.0.1").quit();
}

#[test]
fn a_gateway_that_drains_reads_nothing() {
    let mut site = Site::new(&[("drain-timeout", "'1h'")]);
    let mut session = site.gateway.session();
    session.expect(MAIL, SENDER);
    session.expect("RCPT TO:<rcpt@test.example>", RECIPIENT);
    session.expect("DATA", "354 Start mail input; end with <CRLF>.<CRLF>");
    site.gateway.signal(Signal::TERM);
    assert!(site.gateway.line().starts_with("draining: "));
    site.write(&[("max-message-size", "1")]);
    let Ended { code, stderr, .. } = site.gateway.command(&["reload"]);
    assert_eq!(code, Some(69), "{stderr}");
    assert!(stderr.contains("is draining"), "{stderr}");
    site.gateway.signal(Signal::HUP);
    until("it is told", || site.gateway.stderr().matches("is draining").count() == 2);
    session.send("to the end\r\n.\r\n");
    queue_id(&session.reply());
    assert_eq!(site.gateway.wait().0, Some(0));
}

#[test]
fn many_at_once() {
    let site = Site::new(&[]);
    let mut open = site.sessions();
    for round in 1..=5 {
        put(&site.file, &text(&[("max-recipients", &(10 * round).to_string())]));
        let command = |_| {
            let mut command = Command::new(&*GATEPOST);
            command.arg("reload").arg("--spool").arg(&site.gateway.spool).stdout(Stdio::null());
            command.spawn().expect("the program")
        };
        let commands: Vec<Child> = (0..6).map(command).collect();
        site.gateway.signal(Signal::HUP);
        // What is loaded is one of the two files, and the last one by those who ask from here on.
        put(&site.file, &text(&[("max-recipients", "100")]));
        site.gateway.session().quit();
        for mut command in commands {
            assert!(command.wait().expect("a child of ours").success());
        }
    }
    open.iter_mut().for_each(|client| may_send_to(client, "rcpt@test.example", RECIPIENT));
    site.write(&[("max-recipients", "1")]);
    site.gateway.tell(&["reload"]);
    for client in &mut site.sessions() {
        client.expect(MAIL, SENDER);
        client.expect("RCPT TO:<one@test.example>", RECIPIENT);
        client.expect("RCPT TO:<two@test.example>", "452 4.5.3 Too many recipients");
    }
    assert_eq!(site.reloads("failed"), 0.0);
    site.gateway.stop();
}
