//! Certificates: which one a client is shown, what is resumed, how they are loaded, and what is told
//! of those that cannot be.

use crate::harness::tls_client::{ClientTls, ECDSA, Kind, Pair, RSA, put};
use crate::harness::{BANNER, Client, Gateway, Scratch, Setup, assert_stored, queue_id, until};
use gatepost::limits::SHARDS_MAX;
use gatepost::smtp::QueueId;
use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, HandshakeKind};
use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// A gateway with these certificates, in this order: TLS first.
fn serve(scratch: &Scratch, pairs: &[&Pair], options: &[&str]) -> Gateway {
    let own: Vec<String> = pairs.iter().flat_map(|pair| pair.options()).collect();
    let mut all: Vec<&str> = own.iter().map(String::as_str).collect();
    all.push("--listen=127.0.0.1:0,tls=implicit");
    all.extend(options);
    let gateway = Setup::new(&scratch.join("spool"), &all).start();
    assert_eq!(gateway.line(), loaded(pairs));
    gateway
}

/// The line that tells what was loaded.
fn loaded(pairs: &[&Pair]) -> String {
    let names: Vec<String> = pairs.iter().map(|pair| pair.certificate.display().to_string()).collect();
    format!("certificates loaded from {}", names.join(", "))
}

#[track_caller]
fn connect(gateway: &Gateway, tls: &ClientTls) -> Client {
    let mut client = Client::connect(gateway.address(), None);
    client.secure(tls);
    client.hello();
    client
}

/// The certificate that a client is shown.
#[track_caller]
fn shown(gateway: &Gateway, tls: &ClientTls) -> CertificateDer<'static> {
    let client = connect(gateway, tls);
    let certificate = client.tls().peer_certificates().expect("a handshake")[0].clone().into_owned();
    client.quit();
    certificate
}

#[test]
fn the_name_asked_for_picks_the_certificate() {
    let scratch = Scratch::new();
    let first = Pair::make(scratch.path(), "first", Kind::Ecdsa, &["mx.test.example", "smtp.test.example"]);
    let second = Pair::make(scratch.path(), "second", Kind::Ecdsa, &["Mail.Other.example", "*.wild.example"]);
    let gateway = serve(&scratch, &[&first, &second], &[]);
    for (name, pair) in [
        ("mx.test.example", &first),
        ("smtp.test.example", &first),
        ("mail.other.example", &second),
        ("MAIL.other.EXAMPLE", &second),
        ("a.wild.example", &second),
        ("A.Wild.Example", &second),
        // A star stands for one label.
        ("a.b.wild.example", &first),
        ("wild.example", &first),
        ("unknown.example", &first),
        ("localhost", &first),
        // Addresses are no names (RFC 6066 section 3).
        ("127.0.0.1", &first),
    ] {
        for version in [&TLS12, &TLS13] {
            let tls = ClientTls::of(&[version]).asking_for(name);
            assert_eq!(shown(&gateway, &tls), pair.der, "{name}");
        }
    }
    assert_eq!(shown(&gateway, &ClientTls::default().asking_for("mail.other.example").nameless()), first.der);
}

#[test]
fn the_clients_signatures_pick_the_key() {
    let scratch = Scratch::new();
    let rsa = Pair::make(scratch.path(), "rsa", Kind::Rsa, &["mx.test.example"]);
    let ecdsa = Pair::make(scratch.path(), "ecdsa", Kind::Ecdsa, &["mx.test.example"]);
    for order in [[&rsa, &ecdsa], [&ecdsa, &rsa]] {
        let gateway = serve(&scratch, &order, &[]);
        for version in [&TLS12, &TLS13] {
            for name in ["mx.test.example", "unknown.example"] {
                let tls = || ClientTls::of(&[version]).asking_for(name);
                assert_eq!(shown(&gateway, &tls().verifying(RSA)), rsa.der);
                assert_eq!(shown(&gateway, &tls().verifying(ECDSA)), ecdsa.der);
                assert_eq!(shown(&gateway, &tls()), order[0].der, "the first of those that fit");
            }
        }
        gateway.stop();
    }
    // None that fits: the handshake fails, whichever was shown.
    let gateway = serve(&scratch, &[&ecdsa], &[]);
    let mut client = Client::connect(gateway.address(), None);
    client.try_secure(&ClientTls::default().verifying(RSA), b"").expect_err("no signature in common");
    gateway.until_empty();
    assert_eq!(gateway.metric_with("gatepost_tls_handshakes_total", "result", "failed"), 1.0);
}

//= RFC 7301 section 3.2
#[test]
fn a_protocol_that_is_named_must_be_smtp() {
    let scratch = Scratch::new();
    let pair = Pair::make(scratch.path(), "mx", Kind::Ecdsa, &["mx.test.example"]);
    let gateway = serve(&scratch, &[&pair], &[]);
    for version in [&TLS12, &TLS13] {
        for (named, agreed) in [(&[][..], None), (&["smtp"], Some(&b"smtp"[..])), (&["h2", "smtp"], Some(b"smtp"))] {
            let client = connect(&gateway, &ClientTls::of(&[version]).speaking(named));
            assert_eq!(client.tls().alpn_protocol(), agreed);
            client.quit();
        }
        let mut client = Client::connect(gateway.address(), None);
        let error = client.try_secure(&ClientTls::of(&[version]).speaking(&["h2"]), b"").expect_err("another protocol");
        let error = error.downcast::<rustls::Error>().expect("told by an alert");
        assert_eq!(error, rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol));
    }
}

#[test]
fn sessions_are_resumed_on_every_shard_and_after_a_reload() {
    let scratch = Scratch::new();
    let pair = Pair::make(scratch.path(), "mx", Kind::Ecdsa, &["mx.test.example"]);
    let gateway = serve(&scratch, &[&pair], &["--shards=3", "--message-rate=0"]);
    let clients = [&TLS12, &TLS13].map(|version| ClientTls::of(&[version]));
    let reconnect = |tls: &ClientTls| {
        let mut client = connect(&gateway, tls);
        let id = client.deliver("a@b.example", &["rcpt@test.example"], b"x\r\n");
        let kind = client.tls().handshake_kind().expect("a handshake");
        client.quit();
        let shard = QueueId::parse(&id).expect("an id").number() % SHARDS_MAX as u64;
        (shard, kind)
    };
    for tls in &clients {
        assert_ne!(reconnect(tls).1, HandshakeKind::Resumed);
    }
    for is_reloaded in [false, true] {
        if is_reloaded {
            Pair::make(scratch.path(), "mx", Kind::Ecdsa, &["mx.test.example"]);
            gateway.signal(Signal::HUP);
            until("it is loaded", || gateway.line() == loaded(&[&pair]));
        }
        for tls in &clients {
            let reconnections: Vec<_> = (0..40).map(|_| reconnect(tls)).collect();
            let shards: HashSet<u64> = reconnections.iter().map(|(shard, _)| *shard).collect();
            assert!(shards.len() > 1, "all on one shard: {shards:?}");
            let resumed = reconnections.iter().filter(|(_, kind)| *kind == HandshakeKind::Resumed);
            assert_eq!(resumed.count(), reconnections.len());
        }
    }
}

#[test]
fn new_certificates_are_for_new_handshakes() {
    let scratch = Scratch::new();
    let make = || Pair::make(scratch.path(), "mx", Kind::Ecdsa, &["mx.test.example"]);
    let old = make();
    let gateway = serve(&scratch, &[&old], &["--listen=127.0.0.1:0"]);
    let mut idle = connect(&gateway, &ClientTls::default());
    let mut sending = connect(&gateway, &ClientTls::default());
    let mut in_clear = Client::connect(gateway.listening[1], None);
    in_clear.hello();
    sending.expect("MAIL FROM:<a@b.example>", "250 2.1.0 Sender OK");
    sending.expect("RCPT TO:<rcpt@test.example>", "250 2.1.5 Recipient OK");
    sending.expect("DATA", "354 Start mail input; end with <CRLF>.<CRLF>");
    sending.send("first half\r\n");

    // Asked for.
    let asked = make();
    gateway.tell(&["reload"]);
    until("it is loaded", || gateway.line() == loaded(&[&asked]));
    assert_eq!(shown(&gateway, &ClientTls::default()), asked.der);
    // Seen, when both files are new. A look between the two finds a key of another certificate.
    let seen = make();
    until("it is loaded", || gateway.line() == loaded(&[&seen]));
    assert_eq!(shown(&gateway, &ClientTls::default()), seen.der);

    in_clear.starttls(&ClientTls::default());
    assert_eq!(in_clear.tls().peer_certificates().expect("a handshake")[0], seen.der);
    sending.send("second half\r\n.\r\n");
    let id = queue_id(&sending.reply());
    assert_stored(&gateway.spool, &id, b"first half\r\nsecond half\r\n");
    idle.expect("NOOP", "250 2.0.0 OK");
    for client in [idle, sending, in_clear] {
        assert!(client.tls().handshake_kind().is_some());
        client.quit();
    }
}

#[test]
fn files_that_break_change_nothing_and_are_told_once() {
    let scratch = Scratch::new();
    let pair = Pair::make(scratch.path(), "mx", Kind::Ecdsa, &["mx.test.example"]);
    let gateway = serve(&scratch, &[&pair], &[]);
    let text = fs::read_to_string(&pair.certificate).expect("text");
    let told = || gateway.stderr().matches("the certificates that were loaded before stay").count();
    put(&pair.certificate, "no certificate\n");
    until("it is told", || told() == 1);
    assert!(gateway.stderr().contains(&pair.certificate.display().to_string()), "{}", gateway.stderr());
    assert_eq!(shown(&gateway, &ClientTls::default()), pair.der);
    // Told again when somebody asks, and not by itself: looks of the watch have passed since.
    gateway.signal(Signal::HUP);
    until("it is told", || gateway.stderr().contains("reload: nothing has changed"));
    assert_eq!(told(), 1);
    fs::remove_file(&pair.certificate).expect("ours");
    until("it is told", || told() == 2);
    assert_eq!(shown(&gateway, &ClientTls::default()), pair.der);
    let other = Pair::make(scratch.path(), "other", Kind::Ecdsa, &["mx.test.example"]);
    put(&pair.certificate, &fs::read_to_string(&other.certificate).expect("text"));
    until("it is told", || told() == 3);
    assert!(gateway.stderr().contains("is not the key of the certificate"), "{}", gateway.stderr());
    put(&pair.certificate, &text);
    assert_eq!(gateway.line(), loaded(&[&pair]));
    assert_eq!(shown(&gateway, &ClientTls::default()), pair.der);
    assert_eq!((told(), gateway.stderr().lines().count()), (3, 5));
}

/// What `serve` says of these options, as one line with exit code 78.
#[track_caller]
fn assert_refused(scratch: &Scratch, options: &[String], words: &[&str]) {
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let ended = Setup::new(&scratch.join("spool"), &options).fail();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(78), ""), "{options:?}: {}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    for word in words {
        assert!(ended.stderr.contains(word), "{options:?}: {word:?} is missing: {}", ended.stderr);
    }
    assert!(!scratch.join("spool").exists(), "nothing is made");
}

#[test]
fn certificates_that_cannot_be_served() {
    let scratch = Scratch::new();
    let pair = Pair::make(scratch.path(), "mx", Kind::Ecdsa, &["mx.test.example"]);
    let other = Pair::make(scratch.path(), "other", Kind::Rsa, &["other.example"]);
    let write = |name: &str, text: &str| {
        let path = scratch.join(name);
        fs::write(&path, text).expect("a writable directory");
        path
    };
    let read = |path: &Path| fs::read_to_string(path).expect("text");
    let options = |certificate: &Path, key: &Path| {
        [format!("--tls-cert={}", certificate.display()), format!("--tls-key={}", key.display())].to_vec()
    };
    let (text, empty, absent) = (write("text", "secret text\n"), write("empty", ""), scratch.join("absent"));
    let cut = write("cut", &read(&pair.certificate)[..200]);
    let garbage = write("garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let no_key = write("no_key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let locked = write("locked", locked);
    for (certificate, key, words) in [
        (&absent, &pair.key, &["--tls-cert", "absent", "No such file", "give a file in PEM"][..]),
        (&pair.certificate, &absent, &["--tls-key", "absent", "No such file"]),
        (&scratch.path().to_owned(), &pair.key, &["--tls-cert", "directory"]),
        (&text, &pair.key, &["--tls-cert", "text", "no certificate in it", "PEM"]),
        (&empty, &pair.key, &["--tls-cert", "empty", "no certificate in it"]),
        (&pair.key, &pair.certificate, &["--tls-cert", "mx.key", "no certificate in it"]),
        (&cut, &pair.key, &["--tls-cert", "cut", "no certificate in it", "END CERTIFICATE"]),
        (&garbage, &pair.key, &["--tls-cert", "garbage", "no certificate in it"]),
        (&pair.certificate, &no_key, &["--tls-key", "no_key", "no private key in it"]),
        (&pair.certificate, &text, &["--tls-key", "text", "no private key in it", "PEM"]),
        (&pair.certificate, &empty, &["--tls-key", "empty", "no private key in it"]),
        (&pair.certificate, &pair.certificate, &["--tls-key", "mx.crt", "no private key in it"]),
        (&pair.certificate, &locked, &["--tls-key", "locked", "passphrase"]),
        (&pair.certificate, &other.key, &["--tls-key", "other.key is not the key of the certificate in", "mx.crt"]),
    ] {
        assert_refused(&scratch, &options(certificate, key), words);
    }
    // The second pair is looked at like the first.
    let second = [pair.options().to_vec(), options(&other.certificate, &pair.key)].concat();
    assert_refused(&scratch, &second, &["mx.key is not the key of the certificate in", "other.crt"]);
}

#[test]
fn options_that_contradict_each_other() {
    let scratch = Scratch::new();
    let pair = Pair::make(scratch.path(), "mx", Kind::Ecdsa, &["mx.test.example"]);
    let [certificate, key] = pair.options();
    for tls in ["optional", "required", "implicit"] {
        let listen = format!("--listen=127.0.0.1:0,tls={tls}");
        let name = format!("tls={tls} needs a certificate");
        assert_refused(&scratch, &[listen], &["--listen", &name, "--tls-cert and --tls-key"]);
    }
    for options in
        [vec![certificate.clone()], vec![key.clone()], vec![certificate.clone(), certificate.clone(), key.clone()]]
    {
        assert_refused(&scratch, &options, &["--tls-cert", "--tls-key", "each certificate needs its key"]);
    }
    let off = ["--disable-extension=STARTTLS", "--listen=127.0.0.1:0,tls=required"].map(str::to_owned);
    assert_refused(
        &scratch,
        &[pair.options(), off].concat(),
        &["--disable-extension", "STARTTLS cannot be off", "tls=required"],
    );
    // A certificate that nobody is shown is no contradiction.
    let options = [certificate.as_str(), &key, "--listen=127.0.0.1:0,tls=off"];
    let gateway = Setup::new(&scratch.join("spool"), &options).start();
    assert_eq!(gateway.connect().reply(), BANNER);
}
