//! AUTH as a server: the mechanisms, what is refused, and what a user may do (CONFORMANCE A3, C9, C10,
//! F, G6).

use crate::harness::tls_client::{ClientTls, Kind, Pair};
use crate::harness::{BANNER, Client, Gateway, NOT_CONFIGURED, Scratch, Setup, cat, list};
use crate::sasl_client::{
    AUTHENTICATED, FAILED, MECHANISMS, TOO_MANY_ERRORS, UNRECOGNIZED, UsersFile, base64, login, ntlm, ntlm_response,
    plain, plain_response,
};
use std::fs;
use std::path::Path;

const LOGONS: &str = "gatepost_logons_total";
const MAIL: &str = "MAIL FROM:<a@b.example>";
const ACCEPTED: &str = "250 2.1.0 Sender OK";
const BAD_SEQUENCE: &str = "503 5.5.1 Bad sequence of commands";
const SENDER_NOT_PERMITTED: &str = "550 5.7.1 Client does not have permissions to submit to this server";
const PASSWORD: &str = "correct horse battery staple";
const ZEROS: [u8; 4096] = [0; 4096];
const WRONG: &str = "incorrect horse battery staple";

/// A gateway with a certificate and users: alice by every mechanism.
struct Site {
    _scratch: Scratch,
    users: UsersFile,
    gateway: Gateway,
}

impl Site {
    fn new(options: &[&str]) -> Self {
        let scratch = Scratch::new();
        let users = UsersFile::new(scratch.join("users.txt"));
        users.add(&["alice", "--ntlm"], PASSWORD);
        let gateway = serve(&scratch, &users, options);
        Site { _scratch: scratch, users, gateway }
    }

    /// Changes the users, and waits until the gateway knows.
    fn change_users(&self, change: impl FnOnce(&UsersFile)) {
        change(&self.users);
        assert!(self.gateway.line().starts_with("users: "));
    }

    fn logons(&self, mechanism: &str, result: &str) -> f64 {
        let sample = format!("{LOGONS}{{mechanism=\"{mechanism}\",result=\"{result}\"}} ");
        let scrape = self.gateway.scrape();
        let line = scrape.lines().find_map(|line| line.strip_prefix(&sample));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// A session under TLS.
    #[track_caller]
    fn secure_session(&self) -> Client {
        let mut client = self.gateway.session();
        client.starttls(&ClientTls::default());
        client
    }
}

fn serve(scratch: &Scratch, users: &UsersFile, options: &[&str]) -> Gateway {
    let [certificate, key] = Pair::make(scratch.path(), "mx", Kind::Ecdsa, &["mx.test.example"]).options();
    let users = users.option();
    let own = [certificate.as_str(), &key, &users];
    let gateway = Setup::new(&scratch.join("spool"), &[&own, options].concat()).start();
    assert!(gateway.line().starts_with("users: "));
    assert!(gateway.line().starts_with("certificates loaded "));
    gateway
}

/// What EHLO offers of AUTH.
#[track_caller]
fn offered(client: &mut Client) -> Option<String> {
    client.ehlo().lines().find_map(|line| line[4..].strip_prefix("AUTH ").map(str::to_owned))
}

#[test]
fn passwords_are_for_tls_unless_told_otherwise() {
    let site =
        Site::new(&["--listen=127.0.0.1:0", "--listen=127.0.0.1:0,plaintext-auth", "--listen=127.0.0.1:0,auth=off"]);
    let at = |index: usize| {
        let mut client = Client::connect(site.gateway.listening[index], None);
        assert_eq!(client.reply(), BANNER);
        client
    };
    let mut client = at(0);
    client.expect("AUTH NTLM", "503 5.5.2 Send hello first");
    assert_eq!(offered(&mut client).as_deref(), Some("NTLM"));
    client.expect("AUTH LOGIN", UNRECOGNIZED);
    assert_eq!(plain(&mut client, "alice", PASSWORD), UNRECOGNIZED);
    client.expect("AUTH CRAM-MD5", UNRECOGNIZED);
    client.starttls(&ClientTls::default());
    assert_eq!(offered(&mut client).as_deref(), Some("NTLM LOGIN PLAIN"));
    assert_eq!(plain(&mut client, "alice", PASSWORD), AUTHENTICATED);
    client.quit();
    let mut client = at(1);
    assert_eq!(offered(&mut client).as_deref(), Some("NTLM LOGIN PLAIN"));
    assert_eq!(login(&mut client, "alice", PASSWORD), AUTHENTICATED);
    client.quit();
    let mut client = at(2);
    assert_eq!(offered(&mut client), None);
    client.expect("AUTH NTLM", "502 5.5.1 Command not implemented");
    client.starttls(&ClientTls::default());
    assert_eq!(offered(&mut client), None);
    client.quit();

    // Only what some user can be verified by is offered.
    site.change_users(|users| users.add(&["alice"], PASSWORD));
    let mut client = at(0);
    assert_eq!(offered(&mut client), None);
    client.expect("AUTH NTLM", UNRECOGNIZED);
    client.starttls(&ClientTls::default());
    assert_eq!(offered(&mut client).as_deref(), Some("LOGIN PLAIN"));
    client.quit();
    site.change_users(|users| users.remove("alice"));
    let mut client = at(1);
    assert_eq!(offered(&mut client), None);
    client.expect("AUTH NTLM", "502 5.5.1 Command not implemented");
}

#[test]
fn every_mechanism_logs_in_and_lets_relay() {
    let site = Site::new(&["--listen=127.0.0.1:0,plaintext-auth"]);
    for (number, (mechanism, log_in)) in MECHANISMS.into_iter().enumerate() {
        for (is_secure, protocol) in [(false, "ESMTPA"), (true, "ESMTPSA")] {
            let mut client = if is_secure { site.secure_session() } else { site.gateway.session() };
            client.expect(MAIL, ACCEPTED);
            client.expect("RCPT TO:<x@elsewhere.example>", "550 5.7.1 Unable to relay");
            client.expect(&format!("AUTH {mechanism}"), BAD_SEQUENCE);
            client.expect("RSET", "250 2.0.0 Resetting");
            // Names are compared without case; a domain may stand before them.
            let name = ["alice", "ALICE", "EXAMPLE\\alice"][number];
            assert_eq!(log_in(&mut client, name, PASSWORD), AUTHENTICATED, "{mechanism}");
            client.expect(&format!("AUTH {mechanism}"), BAD_SEQUENCE);
            client.expect("STARTTLS", BAD_SEQUENCE);
            let id = client.deliver("a@b.example", &["x@elsewhere.example"], b"Subject: x\r\n\r\nbody\r\n");
            let (field, content) = cat(&site.gateway.spool, &id);
            assert!(field.contains(&format!(" with {protocol} id ")), "{field}");
            // RFC 6409 section 8: who submits may leave these to us.
            let content = String::from_utf8(content).expect("ASCII");
            assert!(content.contains("Date: ") && content.contains("Message-ID: <"), "{content}");
            // It stays: after a hello, and for the null sender.
            client.ehlo();
            client.deliver("", &["x@elsewhere.example"], b"x\r\n");
            client.quit();
        }
        assert_eq!(site.logons(mechanism, "accepted"), 2.0, "{mechanism}");
    }
    // Who has not logged in still cannot relay.
    let mut client = site.gateway.session();
    client.expect(MAIL, ACCEPTED);
    client.expect("RCPT TO:<x@elsewhere.example>", "550 5.7.1 Unable to relay");
    client.quit();
    assert_eq!(site.gateway.metric(LOGONS), 6.0);
    site.gateway.stop();
}

#[test]
fn dialogues() {
    let site = Site::new(&["--listen=127.0.0.1:0,plaintext-auth", "--max-protocol-errors=0"]);
    let mut client = site.gateway.session();
    // Cancelled, in each state.
    for lines in [
        &["AUTH PLAIN"][..],
        &["AUTH LOGIN"],
        &["AUTH LOGIN", "YWxpY2U="],
        &["auth login YWxpY2U="],
        &["AUTH NTLM"],
        &["Auth Ntlm TlRMTVNTUAABAAAABzIAAAAAAAAAAAAAAAAAAAAAAAA="],
    ] {
        for line in lines {
            assert!(client.command(line).starts_with("334 "), "{line}");
        }
        client.expect("*", "501 5.7.0 Authentication cancelled");
        client.expect("NOOP", "250 2.0.0 OK");
    }
    let cannot_decode = "501 5.5.2 Cannot decode response";
    for line in ["AUTH PLAIN !", "AUTH PLAIN YQ", "AUTH LOGIN a", "AUTH NTLM *"] {
        client.expect(line, cannot_decode);
    }
    for command in ["AUTH PLAIN", "AUTH LOGIN", "AUTH NTLM"] {
        assert!(client.command(command).starts_with("334 "));
        client.expect("no base64", cannot_decode);
    }
    client.expect("AUTH", "501 5.5.4 Invalid arguments");
    client.expect("AUTH PLAIN a b", "501 5.5.4 Invalid arguments");
    client.expect("AUTH LOGIN", "334 VXNlcm5hbWU6");
    client.expect(&"A".repeat(13_000), "500 5.5.6 Line too long");
    client.expect("NOOP", "250 2.0.0 OK");
    // None of these was a proof.
    assert_eq!(site.gateway.metric(LOGONS), 0.0);
    // The other ways that are right.
    client.expect("AUTH PLAIN", "334 ");
    client.expect(&plain_response("alice", PASSWORD), AUTHENTICATED);
    client.quit();
    let mut client = site.gateway.session();
    client.expect(&format!("AUTH LOGIN {}", base64("alice")), "334 UGFzc3dvcmQ6");
    client.expect(&base64(PASSWORD), AUTHENTICATED);
    client.quit();
    // All in one segment, and what follows is a command again.
    let mut client = site.gateway.session();
    client.send(format!("AUTH LOGIN\r\n{}\r\n{}\r\nNOOP\r\n", base64("alice"), base64(PASSWORD)));
    for reply in ["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", AUTHENTICATED, "250 2.0.0 OK"] {
        assert_eq!(client.reply(), reply);
    }
    client.quit();
}

#[test]
fn wrong_proofs_are_all_refused_alike() {
    let site = Site::new(&["--listen=127.0.0.1:0,plaintext-auth", "--max-logon-failures=0"]);
    site.change_users(|users| users.add(&["bob"], PASSWORD));
    let mut client = site.gateway.session();
    for (mechanism, log_in) in MECHANISMS {
        for (name, password) in [("alice", WRONG), ("nobody", PASSWORD), ("alice", ""), ("", PASSWORD), ("", "")] {
            assert_eq!(log_in(&mut client, name, password), FAILED, "{mechanism} {name:?}");
        }
        assert_eq!(site.logons(mechanism, "refused"), 5.0, "{mechanism}");
    }
    // Users that have no such hash.
    assert_eq!(ntlm(&mut client, "bob", PASSWORD), FAILED);
    // To act for another is nobody's right (RFC 4616).
    client.expect(&format!("AUTH PLAIN {}", base64(format!("bob\0alice\0{PASSWORD}"))), FAILED);
    client.expect("AUTH PLAIN =", FAILED);
    client.expect(&format!("AUTH NTLM {}", base64("no NEGOTIATE")), FAILED);
    // An answer to another challenge, and half of one.
    client.expect("AUTH NTLM", "334 NTLM supported");
    let response = ntlm_response(&mut client, "alice", PASSWORD);
    client.expect("*", "501 5.7.0 Authentication cancelled");
    client.expect("AUTH NTLM", "334 NTLM supported");
    let _ = ntlm_response(&mut client, "alice", PASSWORD);
    client.expect(&response, FAILED);
    client.expect("AUTH NTLM", "334 NTLM supported");
    let response = ntlm_response(&mut client, "alice", PASSWORD);
    client.expect(&response[..response.len() / 8 * 4], FAILED);
    // It has not logged in, and still can.
    client.expect(MAIL, ACCEPTED);
    client.expect("RCPT TO:<x@elsewhere.example>", "550 5.7.1 Unable to relay");
    client.expect("RSET", "250 2.0.0 Resetting");
    assert_eq!(ntlm(&mut client, "alice", PASSWORD), AUTHENTICATED);
    client.quit();
    assert_eq!((site.logons("NTLM", "accepted"), site.gateway.metric(LOGONS)), (1.0, 22.0));
}

#[test]
fn the_fourth_failure_ends_the_session() {
    let site = Site::new(&[]);
    let mut client = site.gateway.session();
    assert_eq!(ntlm(&mut client, "alice", WRONG), FAILED);
    // Nor does TLS make up for it.
    client.starttls(&ClientTls::default());
    assert_eq!(plain(&mut client, "alice", WRONG), FAILED);
    assert_eq!(login(&mut client, "nobody", WRONG), FAILED);
    client.expect("AUTH LOGIN", "334 VXNlcm5hbWU6");
    client.expect("*", "501 5.7.0 Authentication cancelled");
    assert_eq!(plain(&mut client, "alice", WRONG), TOO_MANY_ERRORS);
    client.assert_ended();

    let mut client = site.secure_session();
    for _ in 0..3 {
        assert_eq!(ntlm(&mut client, "alice", WRONG), FAILED);
    }
    assert_eq!(ntlm(&mut client, "alice", PASSWORD), AUTHENTICATED);
    client.quit();
}

#[test]
fn a_user_of_another_binding_is_told_to_go() {
    let site = Site::new(&["--listen=127.0.0.1:0,plaintext-auth", "--listen=127.0.0.1:0,plaintext-auth"]);
    let [one, two] = site.gateway.listening[..] else { panic!("two listeners") };
    let port = two.port().to_string();
    for binding in [two.to_string(), port] {
        site.change_users(|users| users.add(&["carol", "--ntlm", &format!("--binding={binding}")], PASSWORD));
        for (_, log_in) in MECHANISMS {
            let mut client = Client::connect(one, None);
            client.hello();
            assert_eq!(log_in(&mut client, "carol", PASSWORD), NOT_CONFIGURED);
            client.assert_ended();
            let mut client = Client::connect(two, None);
            client.hello();
            assert_eq!(log_in(&mut client, "carol", PASSWORD), AUTHENTICATED);
            client.quit();
        }
    }
    for (mechanism, _) in MECHANISMS {
        assert_eq!((site.logons(mechanism, "not_here"), site.logons(mechanism, "accepted")), (2.0, 2.0));
    }
    // With a wrong password, that it exists elsewhere is nobody's business.
    let mut client = Client::connect(one, None);
    client.hello();
    assert_eq!(ntlm(&mut client, "carol", WRONG), FAILED);
}

#[test]
fn a_user_gives_the_senders_it_may() {
    let site = Site::new(&["--default-domain=own.example"]);
    site.change_users(|users| {
        let senders =
            ["--sender=dan@one.example", "--sender=two.example", "--sender=.three.example", "--sender=dan@own.example"];
        users.add(&[&["dan", "--ntlm"][..], &senders].concat(), PASSWORD);
    });
    site.change_users(|users| users.add(&["daemon", "--ntlm", "--sender=<>"], PASSWORD));
    let mut client = site.gateway.session();
    assert_eq!(ntlm(&mut client, "dan", PASSWORD), AUTHENTICATED);
    for (sender, is_permitted) in [
        ("dan@one.example", true),
        ("DAN@One.Example", true),
        ("other@one.example", false),
        ("any@two.example", true),
        ("any@sub.two.example", false),
        ("any@a.three.example", true),
        ("any@three.example", false),
        ("dan", true),
        ("other", false),
        ("", false),
    ] {
        let reply = if is_permitted { ACCEPTED } else { SENDER_NOT_PERMITTED };
        client.expect(&format!("MAIL FROM:<{sender}>"), reply);
        client.expect("RSET", "250 2.0.0 Resetting");
    }
    client.quit();
    let mut client = site.gateway.session();
    assert_eq!(ntlm(&mut client, "daemon", PASSWORD), AUTHENTICATED);
    client.expect("MAIL FROM:<daemon@own.example>", SENDER_NOT_PERMITTED);
    client.deliver("", &["x@elsewhere.example"], b"x\r\n");
    client.quit();
}

#[test]
fn required_logons_come_before_mail() {
    let site = Site::new(&["--listen=127.0.0.1:0,auth=required", "--listen=127.0.0.1:0,auth=required,tls=required"]);
    let not_authenticated = "530 5.7.1 Client was not authenticated";
    let mut client = site.gateway.session();
    client.expect(MAIL, not_authenticated);
    assert_eq!(ntlm(&mut client, "alice", WRONG), FAILED);
    client.expect(MAIL, not_authenticated);
    assert_eq!(ntlm(&mut client, "alice", PASSWORD), AUTHENTICATED);
    client.deliver("a@b.example", &["x@elsewhere.example"], b"x\r\n");
    client.quit();

    let must = "451 5.7.3 Must issue a STARTTLS command first";
    let mut client = Client::connect(site.gateway.listening[1], None);
    client.hello();
    assert_eq!(offered(&mut client), None);
    client.expect(MAIL, must);
    client.expect("AUTH NTLM", must);
    assert_eq!(plain(&mut client, "alice", PASSWORD), must);
    client.starttls(&ClientTls::default());
    client.expect(MAIL, not_authenticated);
    assert_eq!(plain(&mut client, "alice", PASSWORD), AUTHENTICATED);
    client.deliver("a@b.example", &["x@elsewhere.example"], b"x\r\n");
    client.quit();
}

//= CONFORMANCE G7
#[test]
fn a_relay_takes_xexch50_from_users_only() {
    let site = Site::new(&["--listen=127.0.0.1:0,role=relay"]);
    let mut client = site.gateway.session();
    // Nothing is consumed: what follows is a command.
    client.send("XEXCH50 6 2\r\nNOOP\r\n");
    assert_eq!(client.reply(), "504 5.7.4 Need to authenticate first");
    assert_eq!(client.reply(), "250 2.0.0 OK");
    assert_eq!(ntlm(&mut client, "alice", PASSWORD), AUTHENTICATED);
    client.expect(MAIL, ACCEPTED);
    client.expect("RCPT TO:<x@elsewhere.example>", "250 2.1.5 Recipient OK");
    client.expect("XEXCH50 6 2", "354 Send binary data");
    client.send("NOOP\r\nNOOP\r\n");
    assert_eq!(client.reply(), "250 2.0.0 XEXCH50 OK");
    assert_eq!(client.reply(), "250 2.0.0 OK");
    client.expect("RCPT TO:<y@elsewhere.example>", BAD_SEQUENCE);
    client.data(b"x\r\n");
    client.quit();
}

#[test]
fn users_change_while_sessions_go_on() {
    let site = Site::new(&[]);
    let mut known = site.gateway.session();
    assert_eq!(ntlm(&mut known, "alice", PASSWORD), AUTHENTICATED);
    let mut waiting = site.gateway.session();
    waiting.expect("AUTH NTLM", "334 NTLM supported");
    let response = ntlm_response(&mut waiting, "alice", PASSWORD);
    site.change_users(|users| users.add(&["alice", "--ntlm"], "another password"));
    // What is judged from now on is judged by the new file.
    waiting.expect(&response, FAILED);
    assert_eq!(ntlm(&mut waiting, "alice", "another password"), AUTHENTICATED);
    site.change_users(|users| users.remove("alice"));
    // Who has logged in stays so until it goes.
    for mut client in [known, waiting] {
        client.deliver("a@b.example", &["x@elsewhere.example"], b"x\r\n");
        client.quit();
    }
    let mut client = site.gateway.session();
    client.expect("AUTH NTLM", "502 5.5.1 Command not implemented");
}

/// What is written in every file below `directory`; not the room that is kept behind it.
fn contents(directory: &Path, into: &mut Vec<Vec<u8>>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => contents(&path, into),
            Ok(metadata) if metadata.is_file() => {
                let mut octets = fs::read(&path).expect("ours");
                let room = octets.rchunks(ZEROS.len()).take_while(|chunk| **chunk == ZEROS[..chunk.len()]).count();
                octets.truncate(octets.len().saturating_sub(room * ZEROS.len()));
                into.push(octets);
            }
            _ => {}
        }
    }
}

#[test]
fn no_password_is_told_anywhere() {
    let site = Site::new(&["--listen=127.0.0.1:0,plaintext-auth", "--max-protocol-errors=0", "--max-logon-failures=0"]);
    for password in [PASSWORD, WRONG] {
        for (_, log_in) in MECHANISMS {
            let mut client = site.secure_session();
            log_in(&mut client, "alice", password);
            client.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
            client.quit();
        }
        // Where no password belongs: behind a refusal, in commands, half a line at the end.
        let mut client = site.gateway.session();
        client.command("AUTH CRAM-MD5");
        for word in [password.to_owned(), base64(password), plain_response("alice", password)] {
            client.command(&word);
            client.command(&format!("AUTH {word}"));
            client.command(&format!("AUTH LOGIN {word} {word}"));
            client.command(&format!("MAIL FROM:<a@b.example> AUTH={word}"));
            client.command("RSET");
        }
        client.expect("AUTH PLAIN", "334 ");
        client.send(plain_response("alice", password));
        client.half_close();
        assert!(client.try_line().is_err());
    }
    // A file that is broken just there.
    let text = fs::read_to_string(site.users.path()).expect("text");
    fs::write(site.users.path(), text.replace("password=$argon2id", &format!("password={PASSWORD} $argon2id")))
        .expect("ours");
    crate::harness::until("it is told", || site.gateway.stderr().contains("the users that were loaded before stay"));
    assert_eq!(list(&site.gateway.spool).len(), 6);
    let mut told = Vec::new();
    contents(&site.gateway.spool, &mut told);
    assert!(told.len() >= 2, "the spool's files");
    told.push(site.gateway.scrape().into_bytes());
    told.push(site.gateway.stderr().into_bytes());
    let mut gateway = site.gateway;
    gateway.signal(rustix::process::Signal::TERM);
    let (code, stderr) = gateway.wait();
    assert_eq!(code, Some(0), "{stderr}");
    told.push(stderr.into_bytes());
    told.push([gateway.started.clone(), gateway.output()].concat().join("\n").into_bytes());
    for password in [PASSWORD, WRONG] {
        for secret in [password.to_owned(), base64(password), plain_response("alice", password)] {
            for octets in &told {
                let found = memchr::memmem::find(octets, secret.as_bytes());
                assert_eq!(found, None, "{}", String::from_utf8_lossy(&octets[found.unwrap_or(0)..]));
            }
        }
    }
}
