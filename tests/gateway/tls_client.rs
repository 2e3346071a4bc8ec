//! TLS as clients speak it, and certificates for the server.

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, SupportedProtocolVersion};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What RSA keys sign, and what ECDSA keys do.
pub const RSA: &[SignatureScheme] = &[SignatureScheme::RSA_PSS_SHA256, SignatureScheme::RSA_PKCS1_SHA256];
pub const ECDSA: &[SignatureScheme] = &[SignatureScheme::ECDSA_NISTP256_SHA256];

/// How a client speaks TLS. It resumes what it began with the same, and trusts every certificate
/// whose key the server has.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Default for ClientTls {
    fn default() -> Self {
        Self::of(&[&TLS13, &TLS12])
    }
}

impl ClientTls {
    /// Of these versions only; asks for mx.test.example.
    pub fn of(versions: &[&'static SupportedProtocolVersion]) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions);
        let verifier = Arc::new(Trusting([RSA, ECDSA].concat()));
        let config = builder.expect("versions").dangerous().with_custom_certificate_verifier(verifier);
        ClientTls { config: Arc::new(config.with_no_client_auth()), name: name("mx.test.example") }
    }

    /// Asks for this name.
    pub fn asking_for(self, asked: &str) -> Self {
        ClientTls { name: name(asked), ..self }
    }

    /// Asks for no name.
    pub fn nameless(mut self) -> Self {
        Arc::make_mut(&mut self.config).enable_sni = false;
        self
    }

    /// Names the protocols it speaks (ALPN).
    pub fn speaking(mut self, protocols: &[&str]) -> Self {
        let protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec());
        Arc::make_mut(&mut self.config).alpn_protocols = protocols.collect();
        self
    }

    /// Knows these signatures only.
    pub fn verifying(mut self, schemes: &[SignatureScheme]) -> Self {
        let verifier = Arc::new(Trusting(schemes.to_vec()));
        Arc::make_mut(&mut self.config).dangerous().set_certificate_verifier(verifier);
        self
    }

    pub fn begin(&self) -> ClientConnection {
        ClientConnection::new(self.config.clone(), self.name.clone()).expect("a configuration")
    }
}

fn name(name: &str) -> ServerName<'static> {
    ServerName::try_from(name.to_owned()).expect("a name")
}

/// Trusts every certificate, if the server has its key.
#[derive(Debug)]
struct Trusting(Vec<SignatureScheme>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

/// The kind of a certificate's key.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Rsa,
    Ecdsa,
}

/// A certificate and its key, in files.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub der: CertificateDer<'static>,
}

impl Pair {
    /// Makes one for these names, written to `NAME.crt` and `NAME.key` in place of what was there.
    pub fn make(directory: &Path, file: &str, kind: Kind, names: &[&str]) -> Self {
        let algorithm = match kind {
            Kind::Rsa => &PKCS_RSA_SHA256,
            Kind::Ecdsa => &PKCS_ECDSA_P256_SHA256,
        };
        let key = KeyPair::generate_for(algorithm).expect("random numbers");
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let certificate = CertificateParams::new(names).and_then(|params| params.self_signed(&key)).expect("names");
        let [certificate_path, key_path] =
            ["crt", "key"].map(|extension| directory.join(file).with_extension(extension));
        put(&certificate_path, &certificate.pem());
        put(&key_path, &key.serialize_pem());
        Pair { certificate: certificate_path, key: key_path, der: certificate.der().clone() }
    }

    /// The options of `serve` that name it.
    pub fn options(&self) -> [String; 2] {
        [format!("--tls-cert={}", self.certificate.display()), format!("--tls-key={}", self.key.display())]
    }
}

/// Puts a file in the place of `path`, at once.
pub fn put(path: &Path, text: &str) {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, text).and_then(|()| fs::rename(&new, path)).expect("a writable directory");
}
