//! What a TLS handshake costs the server, in memory: the floor under what the gateway pays for one
//! over a socket. Only the server's part is timed; P-256 certificate, X25519, TLS 1.3 and 1.2, full
//! and resumed.

use criterion::{Criterion, criterion_group, criterion_main};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
    SupportedProtocolVersion,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

const NAME: &str = "mx.example.org";

struct Configs {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

fn configs(version: &'static SupportedProtocolVersion, resumption: Resumption) -> Configs {
    let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
    let issued = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).expect("a certificate");
    let certificate: CertificateDer<'static> = issued.cert.der().clone();
    let key = PrivateKeyDer::try_from(issued.signing_key.serialize_der()).expect("a key");
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("a pair");
    server.ticketer = aws_lc_rs::Ticketer::new().expect("keys");
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = resumption;
    Configs { server: Arc::new(server), client: Arc::new(client) }
}

/// One handshake; the time that the server took.
fn handshake(configs: &Configs, kind: HandshakeKind) -> Duration {
    let name = ServerName::try_from(NAME).expect("a name");
    let mut client = ClientConnection::new(configs.client.clone(), name).expect("a client");
    let began = Instant::now();
    let mut server = ServerConnection::new(configs.server.clone()).expect("a server");
    let mut taken = began.elapsed();
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() || server.wants_write() {
        client_turn(&mut client, &mut wire);
        let began = Instant::now();
        server_turn(&mut server, &mut wire);
        taken += began.elapsed();
        client.read_tls(&mut &*wire).expect("memory");
        client.process_new_packets().expect("a handshake");
        wire.clear();
    }
    assert_eq!(server.handshake_kind(), Some(kind));
    taken
}

fn client_turn(client: &mut ClientConnection, wire: &mut Vec<u8>) {
    while client.wants_write() {
        client.write_tls(wire).expect("memory");
    }
}

fn server_turn(server: &mut ServerConnection, wire: &mut Vec<u8>) {
    let mut input = &**wire;
    while !input.is_empty() {
        server.read_tls(&mut input).expect("memory");
        server.process_new_packets().expect("a handshake");
    }
    wire.clear();
    while server.wants_write() {
        server.write_tls(wire).expect("memory");
    }
}

fn handshakes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tls_handshake_server");
    for (version, name) in [(&TLS13, "1.3"), (&TLS12, "1.2")] {
        let full = configs(version, Resumption::disabled());
        group.bench_function(format!("{name} full"), |bencher| {
            bencher.iter_custom(|count| (0..count).map(|_| handshake(&full, HandshakeKind::Full)).sum());
        });
        let resumed = configs(version, Resumption::default());
        handshake(&resumed, HandshakeKind::Full);
        group.bench_function(format!("{name} resumed"), |bencher| {
            bencher.iter_custom(|count| (0..count).map(|_| handshake(&resumed, HandshakeKind::Resumed)).sum());
        });
    }
    group.finish();
}

criterion_group!(benches, handshakes);
criterion_main!(benches);
