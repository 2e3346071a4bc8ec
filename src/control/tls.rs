//! TLS as a server: certificates and keys from their files to one configuration for all shards.
//!
//! One configuration serves all shards, and the keys of its tickets outlive a reload, so that a
//! session begun anywhere is resumed anywhere (RFC 8446 section 2.2, RFC 5077). On failure: a file that
//! cannot be used is an error that names it and the remedy; what was loaded before stays.

use super::preflight::{ExitCode, Failure};
use super::watched::{Prepared, Watched};
use crate::config::CertificateFiles;
use crate::shard::Shared;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, ServerConfig};
use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use webpki::EndEntityCert;
use zeroize::Zeroizing;

/// The only protocol that is spoken here, for clients that name theirs (RFC 7301): one that was
/// lured here by another protocol's attacker is refused.
const ALPN: &[u8] = b"smtp";

/// What is wrong with these files, if anything is: nothing is kept of them.
pub fn check(files: &CertificateFiles) -> Result<(), Failure> {
    let loaded = TlsLoader::new()?.load(std::slice::from_ref(files));
    loaded.map(drop).map_err(|error| Failure::new(ExitCode::Config, error))
}

/// What TLS configurations are made of, whatever their certificates.
#[derive(Clone)]
pub struct TlsLoader {
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
}

impl TlsLoader {
    /// With new keys of tickets.
    pub fn new() -> Result<Self, Failure> {
        let failed = |error| Failure::new(ExitCode::OsError, format!("keys of TLS tickets: {error}"));
        let tickets = aws_lc_rs::Ticketer::new().map_err(failed)?;
        Ok(TlsLoader { provider: Arc::new(aws_lc_rs::default_provider()), tickets })
    }

    /// Reads the certificates for handshakes from now on, and when their files change.
    pub fn prepare(&self, files: &[CertificateFiles], shared: &Arc<Shared>) -> Result<Prepared, Failure> {
        let paths = files.iter().flat_map(|files| [files.certificate.clone(), files.key.clone()]).collect();
        let again = (self.clone(), files.to_vec(), shared.clone());
        // Before they are read for the first time: no change is missed.
        let watched = Watched::new(paths, move || {
            let kept = |error| format!("{error}; the certificates that were loaded before stay");
            let (config, line) = again.0.load(&again.1).map_err(kept)?;
            again.2.set_tls(config);
            Ok(line)
        });
        let (config, line) = self.load(files).map_err(|error| Failure::new(ExitCode::Config, error))?;
        let shared = shared.clone();
        Ok(Prepared::new(watched, line, move || shared.set_tls(config)))
    }

    /// Reads the files. The line says what was loaded.
    fn load(&self, all: &[CertificateFiles]) -> Result<(Arc<ServerConfig>, String), String> {
        let mut certificates = Certificates::default();
        for files in all {
            certificates.add(Arc::new(self.certified_key(files)?), &files.certificate)?;
        }
        let builder = ServerConfig::builder_with_provider(self.provider.clone());
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(certificates));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.ignore_client_order = true;
        config.ticketer = self.tickets.clone();
        let names: Vec<_> = all.iter().map(|files| files.certificate.display().to_string()).collect();
        Ok((Arc::new(config), format!("certificates loaded from {}", names.join(", "))))
    }

    fn certified_key(&self, CertificateFiles { certificate, key }: &CertificateFiles) -> Result<CertifiedKey, String> {
        let (certificate_path, key_path) = (certificate.display(), key.display());
        let no_certificate = || {
            format!(
                "--tls-cert {certificate_path}: no certificate in it that can be read; write it in PEM, whole (BEGIN CERTIFICATE to END CERTIFICATE)"
            )
        };
        let no_key = || {
            format!(
                "--tls-key {key_path}: no private key in it that can be read; write it in PEM without a passphrase (BEGIN PRIVATE KEY)"
            )
        };
        let text = read("--tls-cert", certificate)?;
        let chain: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(no_certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&read("--tls-key", key)?).map_err(|_| no_key())?;
        CertifiedKey::from_der(chain, key, &self.provider).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => format!(
                "--tls-key {key_path} is not the key of the certificate in {certificate_path}; give both in the same order"
            ),
            Error::InvalidCertificate(_) => no_certificate(),
            error => format!("{} ({error})", no_key()),
        })
    }
}

/// Reads the file of an option; what it holds may be a secret.
fn read(option: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let remedy = "give a file in PEM that this process may read";
    fs::read(path).map(Zeroizing::new).map_err(|error| format!("{option} {}: {error}; {remedy}", path.display()))
}

impl fmt::Debug for TlsLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsLoader").finish_non_exhaustive()
    }
}

/// Certificates by the names they are for. Several may be for one name: with keys of several kinds.
#[derive(Debug, Default)]
struct Certificates {
    /// In the order of the options; the first serves whom no other fits.
    all: Vec<Arc<CertifiedKey>>,
    /// By name in lower case; `*.` stands for any one label (RFC 6125 section 6.4.3).
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
}

impl Certificates {
    fn add(&mut self, key: Arc<CertifiedKey>, path: &Path) -> Result<(), String> {
        let failed = |error: &dyn fmt::Display| format!("--tls-cert {}: {error}", path.display());
        let certificate = key.end_entity_cert().map_err(|error| failed(&error))?;
        let certificate = EndEntityCert::try_from(certificate).map_err(|error| failed(&error))?;
        for name in certificate.valid_dns_names() {
            self.by_name.entry(name.to_ascii_lowercase()).or_default().push(key.clone());
        }
        self.all.push(key);
        Ok(())
    }

    fn for_name(&self, name: &str) -> Option<&[Arc<CertifiedKey>]> {
        let name = name.to_ascii_lowercase();
        let keys = self.by_name.get(&name).or_else(|| {
            let (_, parent) = name.split_once('.')?;
            self.by_name.get(&format!("*.{parent}"))
        });
        keys.map(Vec::as_slice)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let keys = hello.server_name().and_then(|name| self.for_name(name)).unwrap_or(&self.all);
        let schemes = hello.signature_schemes();
        keys.iter().find(|key| key.key.choose_scheme(schemes).is_some()).or(keys.first()).cloned()
    }
}
