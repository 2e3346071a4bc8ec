//! TLS as a client: whom to trust.

use crate::config::{NextHopConfig, TlsUse};
use crate::shard::ClientTls;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::Path;
use std::sync::Arc;

/// The provider, and the system's roots once they are needed.
pub struct Trust {
    provider: Arc<CryptoProvider>,
    native: Option<Arc<RootCertStore>>,
}

impl Default for Trust {
    fn default() -> Self {
        Trust { provider: Arc::new(aws_lc_rs::default_provider()), native: None }
    }
}

impl Trust {
    fn native(&mut self) -> Result<Arc<RootCertStore>, String> {
        if let Some(roots) = &self.native {
            return Ok(roots.clone());
        }
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // Systems carry some that are too old to be read.
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let reason = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
            return Err(format!(
                "tls=required, and this system has no CA certificates{reason}: install ca-certificates, or give ca=FILE"
            ));
        }
        Ok(self.native.insert(Arc::new(roots)).clone())
    }
}

/// TLS for connections to a next hop, if they may use it.
pub fn client(next_hop: &NextHopConfig, trust: &mut Trust) -> Result<Option<ClientTls>, String> {
    let roots = match &next_hop.tls {
        TlsUse::Off => return Ok(None),
        TlsUse::Optional => None,
        TlsUse::Required { ca: Some(path) } => Some(Arc::new(read_roots(path)?)),
        TlsUse::Required { ca: None } => Some(trust.native()?),
    };
    let provider = trust.provider.clone();
    let algorithms = provider.signature_verification_algorithms;
    // TLS 1.2 and 1.3.
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    let is_required = roots.is_some();
    let builder = match roots {
        Some(roots) => builder.with_root_certificates(roots),
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(algorithms))),
    };
    let config = Arc::new(builder.with_no_client_auth());
    Ok(Some(ClientTls { config, name: next_hop.tls_name.clone(), is_required }))
}

/// The certificates of a PEM file.
fn read_roots(path: &Path) -> Result<RootCertStore, String> {
    let file = path.display();
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| format!("ca={file}: {error}"))? {
        let added = certificate.map_err(|error| error.to_string());
        let added = added.and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
        added.map_err(|error| format!("ca={file}: {error}"))?;
    }
    if roots.is_empty() {
        return Err(format!("ca={file}: there is no certificate in it; expected PEM (BEGIN CERTIFICATE)"));
    }
    Ok(roots)
}

/// Accepts every certificate: encryption with somebody is more than none (RFC 7435). That somebody
/// has the certificate's key is verified all the same.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn files_of_certificates() {
        let directory = std::env::temp_dir().join(format!("gatepost-ca-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a temporary directory");
        let path = directory.join("ca.pem");
        let read = |content: &str| {
            fs::write(&path, content).expect("space");
            read_roots(&path).map(|roots| roots.len())
        };
        let one = rcgen::generate_simple_self_signed(["a.example".to_owned()]).expect("a certificate").cert.pem();
        let broken = one.replace("MII", "M!!");
        let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(read(&one), Ok(1));
        assert_eq!(read(&format!("a word\n{one}\n{one}")), Ok(2));
        for content in ["", "a word\n", &broken, no_certificate, &format!("{one}{no_certificate}")] {
            let error = read(content).expect_err("no certificate");
            assert!(error.starts_with(&format!("ca={}: ", path.display())), "{error}");
        }
        fs::remove_dir_all(&directory).expect("ours");
        assert!(read_roots(&path).expect_err("it is not there").contains("ca.pem: "));
    }
}
