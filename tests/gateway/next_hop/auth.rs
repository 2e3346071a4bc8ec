//! AUTH at next hops (CONFORMANCE F8, H2): who logs on by what, what keeps mail in the queue, and that
//! nobody is shown a password.

use super::secure::{Authority, Behaviour, Secure, Tls};
use crate::harness::{Gateway, Scratch, Setup, start, until};
use crate::sasl_client::{AUTHENTICATED, UsersFile, plain};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

const FROM: &str = "sender@client.example";
const TO: &str = "rcpt@test.example";
const CONTENT: &[u8] = b"Subject: test\r\n\r\nnothing for others\r\n";
const PASSWORD: &str = "tanstaaftanstaaf";
/// `\0tim\0tanstaaftanstaaf`, of which this is in each of its forms.
const ENCODED: &str = "dGFuc3RhYWZ0YW5zdGFhZg";

/// A file with name and password.
fn auth_file(scratch: &Scratch, content: &str) -> PathBuf {
    let path = scratch.join("auth");
    fs::write(&path, content).expect("space");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("ours");
    path
}

fn next_hop(tls: Tls, auth: &'static str) -> Secure {
    let user = ("", "tim", PASSWORD);
    let refusal = "535 5.7.3 Authentication unsuccessful";
    Secure::start(Behaviour { tls, auth, user, refusal, is_curt: false })
}

/// A gateway with one shard that logs on there, and was given a message.
fn sending(scratch: &Scratch, next_hop: &Secure, attributes: &str, content: &str) -> Gateway {
    let file = auth_file(scratch, content);
    let option = format!("--next-hop={}{attributes},auth-file={}", next_hop.address, file.display());
    let options = [&option, "--ack-delay=0", "--retry-min=200ms", "--retry-max=1s", "--shards=1"];
    let gateway = start(&scratch.join("spool"), &options);
    gateway.session().deliver(FROM, &[TO], CONTENT);
    gateway
}

/// Ends the gateway, which must not have shown the password anywhere.
#[track_caller]
fn assert_silent(gateway: Gateway) {
    let (started, scrape, stderr) = (gateway.started.join("\n"), gateway.scrape(), gateway.stderr());
    let rest = gateway.stop().join("\n");
    for said in [started, scrape, stderr, rest] {
        assert!(!said.contains(PASSWORD) && !said.contains(ENCODED) && !said.contains("wrong"), "{said}");
    }
}

fn logons(gateway: &Gateway, mechanism: &str, result: &str) -> bool {
    let sample = format!("gatepost_next_hop_logons_total{{mechanism=\"{mechanism}\",result=\"{result}\"}} ");
    gateway.scrape().lines().any(|line| line.strip_prefix(&sample).is_some_and(|count| count != "0"))
}

#[test]
fn each_mechanism_logs_on() {
    let authority = Authority::new();
    let files = Scratch::new();
    fs::write(files.join("ca.pem"), &authority.pem).expect("space");
    let required = format!(",tls=required,ca={}", files.join("ca.pem").display());
    let works = || Tls::Works(authority.server(&["127.0.0.1"]));
    let clear = || Tls::None;
    let cases: [(Tls, &str, &'static str, &str); 9] = [
        (works(), &required, "NTLM LOGIN PLAIN", "PLAIN"),
        (works(), &required, "NTLM LOGIN", "LOGIN"),
        (works(), &required, "NTLM", "NTLM"),
        (works(), "", "PLAIN LOGIN NTLM", "NTLM"),
        (works(), "", "PLAIN LOGIN", "PLAIN"),
        (clear(), "", "PLAIN LOGIN NTLM", "NTLM"),
        (Tls::Broken, "", "PLAIN LOGIN NTLM", "NTLM"),
        (clear(), ",tls=off", "PLAIN LOGIN NTLM", "PLAIN"),
        (clear(), ",tls=off", "LOGIN", "LOGIN"),
    ];
    for (tls, attributes, auth, mechanism) in cases {
        let is_tls = matches!(tls, Tls::Works(_));
        let next_hop = next_hop(tls, auth);
        let scratch = Scratch::new();
        let gateway = sending(&scratch, &next_hop, attributes, "tim:tanstaaftanstaaf\n");
        let messages = next_hop.wait(1);
        assert_eq!(messages[0].0, is_tls);
        let said = next_hop.lines();
        let channel = if is_tls { "tls" } else { "clear" };
        let said_first = said.iter().position(|line| line.starts_with(&format!("{channel} AUTH {mechanism}")));
        assert!(said_first < said.iter().position(|line| line.contains("MAIL FROM")), "{said:?}");
        assert!(said_first.is_some() && said.iter().filter(|line| line.contains(" AUTH ")).count() == 1, "{said:?}");
        assert!(logons(&gateway, mechanism, "ok") && !logons(&gateway, mechanism, "failed"));
        let warned = gateway.stderr().contains("tls=off with auth-file");
        assert_eq!(warned, attributes == ",tls=off", "{}", gateway.stderr());
        gateway.until_delivered();
        assert_silent(gateway);
    }
}

/// F7: who has submitted is told where this server has authenticated, and only what is known.
#[test]
fn auth_of_mail_is_passed_on_to_where_it_has_logged_on() {
    for auth in ["PLAIN", ""] {
        let next_hop = next_hop(Tls::None, auth);
        let scratch = Scratch::new();
        let users = UsersFile::new(scratch.join("users.txt"));
        users.add(&["alice"], PASSWORD);
        let logs_on = !auth.is_empty();
        let file = auth_file(&scratch, "tim:tanstaaftanstaaf\n");
        let auth_file = if logs_on { format!(",auth-file={}", file.display()) } else { String::new() };
        let option = format!("--next-hop={},tls=off{auth_file}", next_hop.address);
        let options = [&option, "--listen=127.0.0.1:0,plaintext-auth", &users.option(), "--ack-delay=0", "--shards=1"];
        let gateway = Setup::new(&scratch.join("spool"), &options).start();
        let mut client = gateway.session();
        for (number, (given, authenticated, told)) in
            [("<>", false, "<>"), ("a@b.example", false, "<>"), ("a@b.example", true, "a@b.example")]
                .into_iter()
                .enumerate()
        {
            if authenticated {
                assert_eq!(plain(&mut client, "alice", PASSWORD), AUTHENTICATED);
            }
            client.expect(&format!("MAIL FROM:<{FROM}> AUTH={given}"), "250 2.1.0 Sender OK");
            client.expect(&format!("RCPT TO:<{TO}>"), "250 2.1.5 Recipient OK");
            client.command("DATA");
            client.command("\r\n.");
            next_hop.wait(number + 1);
            let said = next_hop.lines();
            let mail = said.iter().rfind(|line| line.contains("MAIL FROM")).expect("a transaction");
            assert_eq!(mail.contains(&format!(" AUTH={told}")), logs_on, "{mail}");
            assert_eq!(mail.contains("AUTH="), logs_on, "{mail}");
        }
    }
}

#[test]
fn a_domain_is_ntlms_and_part_of_the_name_elsewhere() {
    for (auth, attributes) in [("NTLM", ""), ("PLAIN", ",tls=off"), ("LOGIN", ",tls=off")] {
        let user = ("EXAMPLE", "tim", PASSWORD);
        let next_hop = Secure::start(Behaviour { auth, user, refusal: "535 no", ..Behaviour::default() });
        let scratch = Scratch::new();
        let gateway = sending(&scratch, &next_hop, attributes, "EXAMPLE\\tim\ntanstaaftanstaaf\n");
        next_hop.wait(1);
        assert_silent(gateway);
    }
}

#[test]
fn a_wrong_password_keeps_the_mail() {
    for auth in ["PLAIN", "LOGIN", "NTLM"] {
        let next_hop = next_hop(Tls::None, auth);
        let scratch = Scratch::new();
        let gateway = sending(&scratch, &next_hop, ",tls=off", "tim:wrong");
        let reason = format!("cannot be reached: refused at AUTH {auth}: 535 5.7.3 Authentication unsuccessful");
        until(&reason, || gateway.stderr().contains(&reason));
        until("a probe", || next_hop.count("clear EHLO mx.test.example") >= 2);
        assert!(!next_hop.lines().iter().any(|line| line.contains("MAIL")), "{:?}", next_hop.lines());
        assert_eq!(gateway.metric("gatepost_queue_messages"), 1.0);
        assert!(logons(&gateway, auth, "failed") && !logons(&gateway, auth, "ok"));
        assert_silent(gateway);
    }
}

#[test]
fn where_tls_is_missing_no_password_is_sent() {
    for tls in [Tls::None, Tls::Broken] {
        let next_hop = next_hop(tls, "PLAIN LOGIN");
        let scratch = Scratch::new();
        let gateway = sending(&scratch, &next_hop, "", "tim:tanstaaftanstaaf");
        let reason = "no mechanism of AUTH is offered that may be used";
        until(reason, || gateway.stderr().contains(reason));
        assert!(!next_hop.lines().iter().any(|line| line.contains("AUTH") || line.contains("MAIL")));
        assert_eq!(gateway.metric("gatepost_queue_messages"), 1.0);
        assert_silent(gateway);
    }
}

/// Next hops repeat what they do not understand.
#[test]
fn a_password_that_comes_back_is_not_shown() {
    for auth in ["PLAIN", "LOGIN"] {
        let user = ("", "ursel", "x");
        let refusal = "535 5.7.3 What is %?";
        let next_hop = Secure::start(Behaviour { auth, user, refusal, ..Behaviour::default() });
        let scratch = Scratch::new();
        let gateway = sending(&scratch, &next_hop, ",tls=off", "tim:tanstaaftanstaaf");
        let reason = format!("refused at AUTH {auth}: 535 (it repeats what was sent)");
        until(&reason, || gateway.stderr().contains(&reason));
        assert_silent(gateway);
    }
}

#[test]
fn a_file_that_others_may_read_prevents_the_start() {
    let scratch = Scratch::new();
    let file = auth_file(&scratch, "tim:tanstaaftanstaaf\n");
    let path = file.display().to_string();
    let option = format!("--next-hop=mx.example:25,auth-file={path}");
    let fails = |words: &[&str]| {
        let ended = Setup::new(&scratch.join("spool"), &[&option]).fail();
        assert_eq!(ended.code, Some(78), "{}", ended.stderr);
        let named = ["next hop mx.example:25: auth-file=", &path];
        assert!(named.iter().chain(words).all(|word| ended.stderr.contains(word)), "{}", ended.stderr);
        assert!(!ended.stderr.contains("tanstaaf"), "{}", ended.stderr);
    };
    fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("ours");
    fails(&["0644", &format!("chmod 600 {path}")]);
    fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("ours");
    fs::write(&file, "tanstaaftanstaaf\n").expect("space");
    fails(&["NAME:PASSWORD"]);
    fs::remove_file(&file).expect("ours");
    fails(&["No such file"]);
}
