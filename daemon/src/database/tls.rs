//! TLS for the database, as strict as `sslmode` asks: libpq documentation, section SSL Support.

use super::DatabaseError;
use super::address::{Address, Tls};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::sync::Arc;
use tokio_postgres_rustls::MakeRustlsConnect;

/// Returns what makes connections private, or `None` where they need not be.
///
/// # Errors
/// [`DatabaseError::Tls`] where the trusted certificates cannot be read.
pub(super) fn connector(address: &Address) -> Result<Option<MakeRustlsConnect>, DatabaseError> {
    let error = |why: String| DatabaseError::Tls { place: address.place.clone(), why };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = match address.tls {
        Tls::Off => return Ok(None),
        Tls::Preferred | Tls::Encrypted => Checks { provider: Arc::clone(&provider), authority: None, host: false },
        Tls::VerifiedAuthority | Tls::VerifiedHost => {
            let roots = Arc::new(roots(address).map_err(error)?);
            let authority = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                .build()
                .map_err(|problem| error(problem.to_string()))?;
            Checks {
                provider: Arc::clone(&provider),
                authority: Some(authority),
                host: address.tls == Tls::VerifiedHost,
            }
        }
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|problem| error(problem.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Some(MakeRustlsConnect::new(config)))
}

fn roots(address: &Address) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match &address.root_certificate {
        Some(path) if path.as_os_str() != "system" => {
            let unreadable = |error: &dyn std::fmt::Display| format!("`{}`: {error}", path.display());
            let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| unreadable(&error))?;
                roots.add(certificate).map_err(|error| unreadable(&error))?;
            }
        }
        _ => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() { Err("no trusted certificate was found".to_owned()) } else { Ok(roots) }
}

/// The checks of one `sslmode`. Without an authority the connection is private from listeners only, which is
/// what `require` means.
#[derive(Debug)]
struct Checks {
    provider: Arc<CryptoProvider>,
    authority: Option<Arc<WebPkiServerVerifier>>,
    host: bool,
}

impl ServerCertVerifier for Checks {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        match authority.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The name is checked last: everything else held.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.host => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
