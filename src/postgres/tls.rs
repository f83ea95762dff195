//! TLS as libpq's `sslmode`, `sslrootcert`, `sslcert` and `sslkey` mean it, on rustls.
//!
//! rustls is stricter than libpq's OpenSSL in places that real servers hit; each leniency below
//! says which. Not done: revocation lists, `ssl_min_protocol_version`, names in the common name
//! only, and X.509 version 1 certificates where the chain is verified.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
};

use super::params::{PostgresParams, SslMode};
use crate::error::{Error, ErrorKind, Result};

/// The requirements for a TLS connection to this server. `disable` has none, which is an error.
pub fn client_config(params: &PostgresParams) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let verifier = verifier(params, &provider)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Bug, "set up TLS").because(error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match (&params.ssl_cert, &params.ssl_key) {
        (None, None) => config.with_no_client_auth(),
        (Some(cert), Some(key)) => {
            let chain = read_certificates("sslcert", cert)?;
            let doing = || format!("read private key `{}` (sslkey)", key.display());
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| {
                Error::new(ErrorKind::Setup, doing())
                    .because(error)
                    .hint("sslkey must be an unencrypted PEM key (PKCS#8, PKCS#1 or SEC1).")
            })?;
            config.with_client_auth_cert(chain, key).map_err(|error| {
                Error::new(ErrorKind::Setup, "use the client certificate (sslcert, sslkey)")
                    .because(error)
            })?
        }
        _ => {
            return Err(Error::new(ErrorKind::Setup, "set up TLS: half a client certificate")
                .hint("Set both sslcert and sslkey in the database URL, or neither."));
        }
    };
    Ok(Arc::new(config))
}

fn verifier(params: &PostgresParams, provider: &CryptoProvider) -> Result<Verifier> {
    let algorithms = provider.signature_verification_algorithms;
    let checks_name = params.ssl_mode == SslMode::VerifyFull;
    let trust = match (params.ssl_mode, params.ssl_root_cert.as_deref()) {
        (SslMode::Disable, _) => {
            return Err(Error::new(ErrorKind::Bug, "set up TLS: sslmode is `disable`"));
        }
        (SslMode::VerifyFull, None) => Trust::roots_of_the_system()?,
        (SslMode::VerifyFull, Some(path)) if is_system(path) => Trust::roots_of_the_system()?,
        // Everybody can get a certificate of a public authority, so without the name it says
        // nothing.
        (_, Some(path)) if is_system(path) => {
            return Err(Error::new(
                ErrorKind::Setup,
                "set up TLS: sslrootcert `system` without verify-full",
            )
            .hint("Set sslmode=verify-full in the database URL."));
        }
        (SslMode::VerifyCa, None) => {
            return Err(Error::new(ErrorKind::Setup, "set up TLS: verify-ca without sslrootcert")
                .hint("Set sslrootcert in the database URL to the file of the server's CA."));
        }
        (SslMode::Prefer | SslMode::Require, None) => Trust::Anyone,
        // libpq's rule: a root file that is there is used, whatever the mode.
        (SslMode::Prefer | SslMode::Require, Some(path)) if !path.exists() => Trust::Anyone,
        (_, Some(path)) => Trust::roots_of_file(path, checks_name)?,
    };
    Ok(Verifier { trust, algorithms })
}

fn is_system(path: &Path) -> bool {
    path.as_os_str() == "system"
}

fn read_certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let doing = || format!("read certificates of `{}` ({setting})", path.display());
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect::<std::result::Result<Vec<_>, _>>())
        .map_err(|error| Error::new(ErrorKind::Setup, doing()).because(error))?;
    if certificates.is_empty() {
        return Err(Error::new(ErrorKind::Setup, doing()).because("no certificate in PEM form"));
    }
    Ok(certificates)
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
enum Trust {
    /// Encryption against passive listeners only.
    Anyone,
    Roots {
        roots: RootCertStore,
        /// The certificates of the root file as they are.
        pinned: Vec<CertificateDer<'static>>,
        checks_name: bool,
    },
}

impl Trust {
    fn roots_of_file(path: &Path, checks_name: bool) -> Result<Trust> {
        let pinned = read_certificates("sslrootcert", path)?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(pinned.iter().cloned());
        if roots.is_empty() {
            return Err(Error::new(
                ErrorKind::Setup,
                format!("read certificates of `{}` (sslrootcert)", path.display()),
            )
            .because("no certificate in it can serve as a root"));
        }
        Ok(Trust::Roots { roots, pinned, checks_name })
    }

    fn roots_of_the_system() -> Result<Trust> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(Error::new(ErrorKind::Setup, "read the root certificates of the system")
                .because("none found")
                .hint("Install the ca-certificates package, or set sslrootcert to a file."));
        }
        Ok(Trust::Roots { roots, pinned: Vec::new(), checks_name: true })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let Trust::Roots { roots, pinned, checks_name } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        // Servers that send only their own certificate are common, and libpq finds the missing
        // intermediates in the root file.
        let mut chain = intermediates.to_vec();
        chain.extend(pinned.iter().cloned());
        let verdict = verify_server_cert_signed_by_trust_anchor(
            &certificate,
            roots,
            &chain,
            now,
            self.algorithms.all,
        );
        match verdict {
            Ok(()) => {}
            // A self-signed certificate with CA:TRUE, as `openssl req -x509` makes it, is refused
            // as a server's own. Being named itself in the root file is trust enough, in its days.
            Err(error) if pinned.contains(end_entity) && !is_out_of_date(&error) => {}
            Err(error) => return Err(error),
        }
        if *checks_name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        if self.lets_pass_unread(cert) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(message, cert, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        if self.lets_pass_unread(cert) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl Verifier {
    /// A certificate that rustls cannot read (X.509 version 1) has no key to check a signature
    /// with. Without a check of the chain that proves nothing about the server anyway. For all
    /// others the signature is checked in every mode: channel binding rests on it.
    fn lets_pass_unread(&self, certificate: &CertificateDer<'_>) -> bool {
        matches!(self.trust, Trust::Anyone) && !is_readable(certificate)
    }
}

/// Whether the handshake can have proved that the server has the key of this certificate.
pub(super) fn is_readable(certificate: &CertificateDer<'_>) -> bool {
    ParsedCertificate::try_from(certificate).is_ok()
}

fn is_out_of_date(error: &rustls::Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }
        )
    )
}

/// Puts a failure on the level of TLS into our words; `None` for any other failure of the socket.
pub(super) fn explain(error: &std::io::Error, doing: &str) -> Option<Error> {
    let cause = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let ours = Error::new(ErrorKind::Setup, doing).because(cause.clone());
    Some(match hint_of(cause) {
        Some(hint) => ours.hint(hint),
        None => ours,
    })
}

/// What the operator can do about it. libpq's OpenSSL supports more, so psql may still connect.
pub(super) fn hint_of(cause: &rustls::Error) -> Option<&'static str> {
    const TAKEN: &str = "walhouse supports TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305, \
                         TLS 1.3, and keys of RSA from 2048 bits, P-256, P-384 or Ed25519, which \
                         is less than psql: check ssl_cert_file, ssl_ciphers and \
                         ssl_max_protocol_version of the server.";
    let rustls::Error::InvalidCertificate(refusal) = cause else {
        return match cause {
            rustls::Error::AlertReceived(
                AlertDescription::HandshakeFailure
                | AlertDescription::ProtocolVersion
                | AlertDescription::InsufficientSecurity,
            )
            | rustls::Error::PeerIncompatible(_) => Some(TAKEN),
            rustls::Error::AlertReceived(_) => Some(
                "The server ended the TLS connection: check sslcert and sslkey in the database \
                 URL, and the server's ssl_ca_file.",
            ),
            _ => None,
        };
    };
    match refusal {
        CertificateError::UnknownIssuer => {
            Some("Set sslrootcert in the database URL to the CA that signed for the server.")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Some(
                "Connect by a name that the certificate has as a subject alternative name (its \
                 common name is ignored), or set sslmode=verify-ca.",
            )
        }
        _ if is_out_of_date(cause) => Some("Renew the server's certificate (ssl_cert_file)."),
        CertificateError::Other(_) => Some(
            "The server's certificate must be X.509 version 3 and not a CA; reissue it, or name \
             it itself in sslrootcert.",
        ),
        CertificateError::BadSignature
        | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => Some(TAKEN),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_psql_takes_and_we_do_not_is_told_as_that() {
        let alert = rustls::Error::AlertReceived(AlertDescription::HandshakeFailure);
        let version = rustls::Error::PeerIncompatible(
            rustls::PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        );
        let name = rustls::Error::InvalidCertificate(CertificateError::NotValidForName);
        for (cause, words) in [(alert, "P-384"), (version, "TLS 1.3"), (name, "common name")] {
            let hint = hint_of(&cause).unwrap();
            assert!(hint.contains(words), "{cause}: {hint}");
        }
        let bad_key = rustls::Error::AlertReceived(AlertDescription::BadCertificate);
        assert!(hint_of(&bad_key).unwrap().contains("sslcert"));
    }
}
