//! Proves to the server who we are: trust, password, md5, SCRAM-SHA-256 with and without channel
//! binding. Not supported: GSSAPI and SSPI. (TLS handles client certificates.)

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::{backend, frontend};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256, Sha384, Sha512};

use super::params::PostgresParams;
use super::tls;
use crate::error::{Error, ErrorKind, Result};
use crate::wal::wire::Wire;

/// The messages to and from the server while it does not know us yet.
pub(super) trait Dialogue {
    /// The next message; an ErrorResponse comes as the error it is.
    fn receive(&mut self) -> Result<(u8, Vec<u8>)>;
    fn send(&mut self, message: &[u8]) -> Result<()>;
    fn server_certificate(&self) -> Option<&CertificateDer<'static>>;
    fn doing(&self) -> &str;
}

const OK: i32 = 0;
const CLEARTEXT: i32 = 3;
const MD5: i32 = 5;
const SASL: i32 = 10;
const SASL_CONTINUE: i32 = 11;
const SASL_FINAL: i32 = 12;

/// Returns once the server has said AuthenticationOk.
pub(super) fn authenticate(dialogue: &mut impl Dialogue, params: &PostgresParams) -> Result<()> {
    loop {
        let (code, body) = receive_request(dialogue)?;
        match code {
            OK => return Ok(()),
            CLEARTEXT => send_password(dialogue, password(dialogue, params)?.as_bytes())?,
            MD5 => {
                let Ok(salt) = <[u8; 4]>::try_from(body.as_slice()) else {
                    return Err(protocol(dialogue, "malformed salt of md5 authentication"));
                };
                let password = password(dialogue, params)?;
                let hash = md5_hash(params.user.as_bytes(), password.as_bytes(), salt);
                send_password(dialogue, hash.as_bytes())?;
            }
            SASL => scram(dialogue, params, &body)?,
            code => {
                return Err(Error::new(ErrorKind::Setup, dialogue.doing())
                    .because(format!("server asks for authentication method {code}"))
                    .hint("Set the method of this role in pg_hba.conf to scram-sha-256."));
            }
        }
    }
}

/// The code of the server's next request and what follows it.
fn receive_request(dialogue: &mut impl Dialogue) -> Result<(i32, Vec<u8>)> {
    let (tag, body) = dialogue.receive()?;
    if tag != backend::AUTHENTICATION_TAG {
        return Err(protocol(dialogue, format!("expected authentication, got tag 0x{tag:02x}")));
    }
    let mut wire = Wire::new(&body);
    let code = wire.take_i32("authentication code").map_err(|error| protocol(dialogue, error))?;
    Ok((code, wire.rest().to_vec()))
}

fn scram(dialogue: &mut impl Dialogue, params: &PostgresParams, mechanisms: &[u8]) -> Result<()> {
    let mechanisms: Vec<&[u8]> = mechanisms.split(|&byte| byte == 0).collect();
    let offers = |name: &str| mechanisms.contains(&name.as_bytes());
    let hash = dialogue.server_certificate().and_then(end_point_hash);
    let (mechanism, binding) = match (offers(SCRAM_SHA_256_PLUS), offers(SCRAM_SHA_256), hash) {
        (true, _, Some(hash)) => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)),
        // "I could, you could not": the server notices if somebody in between removed the offer.
        (false, true, Some(_)) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        (_, true, None) => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        _ => {
            return Err(Error::new(ErrorKind::Setup, dialogue.doing())
                .because("server offers no SASL mechanism that walhouse knows")
                .hint("Set the method of this role in pg_hba.conf to scram-sha-256."));
        }
    };
    let mut scram = ScramSha256::new(password(dialogue, params)?.as_bytes(), binding);

    let mut message = bytes::BytesMut::new();
    frontend::sasl_initial_response(mechanism, scram.message(), &mut message)
        .map_err(|error| protocol(dialogue, error))?;
    dialogue.send(&message)?;

    let body = expect(dialogue, SASL_CONTINUE)?;
    scram.update(&body).map_err(|error| protocol(dialogue, error))?;
    message.clear();
    frontend::sasl_response(scram.message(), &mut message)
        .map_err(|error| protocol(dialogue, error))?;
    dialogue.send(&message)?;

    // The server proves that it knows the password too; one that skips this is an impostor.
    let body = expect(dialogue, SASL_FINAL)?;
    scram.finish(&body).map_err(|error| protocol(dialogue, error))
}

fn expect(dialogue: &mut impl Dialogue, expected: i32) -> Result<Vec<u8>> {
    match receive_request(dialogue)? {
        (code, body) if code == expected => Ok(body),
        (code, _) => {
            Err(protocol(dialogue, format!("expected authentication code {expected}, got {code}")))
        }
    }
}

fn password<'a>(dialogue: &impl Dialogue, params: &'a PostgresParams) -> Result<&'a str> {
    match &params.password {
        Some(password) => Ok(password.expose()),
        None => Err(Error::new(ErrorKind::Setup, dialogue.doing())
            .because("server asks for a password, and none is set")
            .hint(format!("Set the password of role `{}` in the database URL.", params.user))),
    }
}

fn send_password(dialogue: &mut impl Dialogue, password: &[u8]) -> Result<()> {
    let mut message = bytes::BytesMut::new();
    frontend::password_message(password, &mut message)
        .map_err(|error| protocol(dialogue, error))?;
    dialogue.send(&message)
}

fn protocol(
    dialogue: &impl Dialogue,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::new(ErrorKind::Protocol, dialogue.doing()).because(cause)
}

/// The hash of the server's certificate as `tls-server-end-point` (RFC 5929) defines it: with the
/// hash of the certificate's own signature, SHA-256 in place of weaker ones. `None` when in doubt,
/// since a wrong one makes the server refuse us.
fn end_point_hash(certificate: &CertificateDer<'static>) -> Option<Vec<u8>> {
    if !tls::is_readable(certificate) {
        return None;
    }
    match signature_algorithm(certificate)? {
        // md5, sha1, sha256 with RSA; sha1, sha256 with ECDSA.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 4 | 5 | 11]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 1]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 3, 2] => Some(Sha256::digest(certificate).to_vec()),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 12]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 3, 3] => Some(Sha384::digest(certificate).to_vec()),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 13]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 3, 4] => Some(Sha512::digest(certificate).to_vec()),
        // RSA-PSS, Ed25519 and what comes after them.
        _ => None,
    }
}

/// The object identifier in `Certificate ::= SEQUENCE { tbs SEQUENCE, SEQUENCE { OID, .. }, .. }`.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (certificate, _) = der_value(certificate, SEQUENCE)?;
    let (_tbs, rest) = der_value(certificate, SEQUENCE)?;
    let (algorithm, _) = der_value(rest, SEQUENCE)?;
    let (identifier, _) = der_value(algorithm, OBJECT_IDENTIFIER)?;
    Some(identifier)
}

/// The content of the DER value at the front, and what follows it.
fn der_value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if found != tag {
        return None;
    }
    if first < 0x80 {
        return rest.split_at_checked(usize::from(first));
    }
    let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
    let mut bytes = 0usize;
    for byte in length {
        bytes = bytes.checked_mul(256)?.checked_add(usize::from(*byte))?;
    }
    rest.split_at_checked(bytes)
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;

    use super::super::params::{SslMode, TargetSession};
    use super::*;
    use crate::secret::Secret;

    /// Signed by ECDSA with SHA-256, and by Ed25519, which has no hash to bind with.
    const ECDSA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBbDCCAROgAwIBAgIUaiQ6LeAcYs6COwNWrQp3SXD+z4YwCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBdDAeFw0yNjExMjMwODU4MjhaFw0yNjExMjUwODU4MjhaMAwx
CjAIBgNVBAMMAXQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATaHQgSukPwG+aF
gPEXSWRY6VRqFXUTD0VrL9HVxSGr+052VOffe8dY4wlDNCRpXqV8b429yNEmjQd+
ywH3dPuQo1MwUTAdBgNVHQ4EFgQUQOeK1z2bSslXAeiAKz5djOaLZsIwHwYDVR0j
BBgwFoAUQOeK1z2bSslXAeiAKz5djOaLZsIwDwYDVR0TAQH/BAUwAwEB/zAKBggq
hkjOPQQDAgNHADBEAiBhvmIdC8APHieCpPZM4FiXfJ98mxg+WXzcpEX4AWko+AIg
SpS11hWH2lMYE03osBokswHYxMrrNNEAsQfK8HsETl4=
-----END CERTIFICATE-----
";
    const ED25519: &str = "\
-----BEGIN CERTIFICATE-----
MIIBLDCB36ADAgECAhQMLz3pGPeDgJOgVnOnQzfCQmA9EzAFBgMrZXAwDDEKMAgG
A1UEAwwBdDAeFw0yNjExMjMwODU4MjhaFw0yNjExMjUwODU4MjhaMAwxCjAIBgNV
BAMMAXQwKjAFBgMrZXADIQCUld0K7tQre0WDS8XATxBlwxMgB+o9RfgCBiR7+xVL
YaNTMFEwHQYDVR0OBBYEFCH4kXxudjVuXMxLexpjhWlyen6hMB8GA1UdIwQYMBaA
FCH4kXxudjVuXMxLexpjhWlyen6hMA8GA1UdEwEB/wQFMAMBAf8wBQYDK2VwA0EA
QpfSAi3g0V0umfiiFeAseQJzBuN6z6sO3EYAik8hICs3vKg1sb3wFwqlUikIv/ax
QL3TM8AjAPQqsXnsRPWLBw==
-----END CERTIFICATE-----
";

    /// A server that asks once and then only listens.
    struct Asks {
        request: Option<Vec<u8>>,
        answer: Vec<u8>,
        certificate: Option<CertificateDer<'static>>,
    }

    impl Dialogue for Asks {
        fn receive(&mut self) -> Result<(u8, Vec<u8>)> {
            match self.request.take() {
                Some(request) => Ok((b'R', request)),
                None => Err(Error::new(ErrorKind::Unreachable, "hung up")),
            }
        }

        fn send(&mut self, message: &[u8]) -> Result<()> {
            self.answer = message.to_vec();
            Ok(())
        }

        fn server_certificate(&self) -> Option<&CertificateDer<'static>> {
            self.certificate.as_ref()
        }

        fn doing(&self) -> &str {
            "log in"
        }
    }

    fn first_answer(request: &[u8], certificate: Option<&str>) -> (Error, String) {
        let params = PostgresParams {
            hosts: Vec::new(),
            user: "u".to_owned(),
            password: Some(Secret::new("p")),
            database: "d".to_owned(),
            ssl_mode: SslMode::Require,
            ssl_root_cert: None,
            ssl_cert: None,
            ssl_key: None,
            connect_timeout: std::time::Duration::ZERO,
            target: TargetSession::Any,
            options: None,
            halt: crate::halt::Halt::default(),
        };
        let certificate =
            certificate.map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
        let mut asks = Asks { request: Some(request.to_vec()), answer: Vec::new(), certificate };
        let error = authenticate(&mut asks, &params).unwrap_err();
        (error, String::from_utf8_lossy(&asks.answer).into_owned())
    }

    #[test]
    fn channel_is_bound_when_both_sides_can() {
        let both = b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
        let plain = b"\0\0\0\x0aSCRAM-SHA-256\0\0";
        let check = |request: &[u8], certificate, mechanism: &str, header: &str| {
            let (_, answer) = first_answer(request, certificate);
            assert!(answer.contains(&format!("{mechanism}\0")), "{answer:?}");
            assert!(answer.contains(header), "{answer:?}");
        };
        check(both, Some(ECDSA), "SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,");
        check(both, Some(ED25519), "SCRAM-SHA-256", "n,,");
        check(both, None, "SCRAM-SHA-256", "n,,");
        check(plain, Some(ECDSA), "SCRAM-SHA-256", "y,,");
        check(plain, None, "SCRAM-SHA-256", "n,,");
    }

    #[test]
    fn requests_that_we_cannot_answer_are_refused() {
        for (request, kind) in [
            (&b"\0\0\0\x07"[..], ErrorKind::Setup),
            (b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0\0", ErrorKind::Setup),
            (b"\0\0\0\x0aOTHER\0\0", ErrorKind::Setup),
            (b"\0\0\0\x0a", ErrorKind::Setup),
            (b"\0\0\0\x05abc", ErrorKind::Protocol),
            (b"\0\0", ErrorKind::Protocol),
        ] {
            assert_eq!(first_answer(request, None).0.kind(), kind, "{request:?}");
        }
    }

    #[test]
    fn signature_algorithm_is_found_behind_a_long_certificate() {
        let tbs = [&[0x30, 0x82, 0x01, 0x00][..], &[7; 256]].concat();
        let algorithm = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];
        let inner = [&tbs[..], &algorithm].concat();
        let length = u16::try_from(inner.len()).unwrap().to_be_bytes();
        let certificate = [&[0x30, 0x82][..], &length, &inner].concat();
        assert_eq!(signature_algorithm(&certificate), Some(&[0x2b, 0x65, 0x70][..]));
        for cut in 0..certificate.len() {
            assert_eq!(signature_algorithm(&certificate[..cut]), None);
        }
    }

    #[test]
    fn lengths_beyond_the_address_space_are_refused() {
        assert_eq!(der_value(&[0x30, 0x89, 1, 0, 0, 0, 0, 0, 0, 0, 0], 0x30), None);
        assert_eq!(der_value(&[0x30, 0xff], 0x30), None);
    }
}
