//! The connections to one host of ClickHouse: the official client, which is async, and the
//! current-thread runtime that turns only while a call waits.

use std::future::Future;
use std::time::{Duration, Instant};

use clickhouse::{Client as Official, Compression};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::runtime::Runtime;

use super::params::Params;
use crate::error::{Error, ErrorKind, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// Below ClickHouse's `keep_alive_timeout`: 3 s before 23.11, then 10, now 30.
const IDLE_DEFAULT: Duration = Duration::from_millis(2500);

/// The runtime and the connections that live in it. Thrown away as a whole when an outcome is
/// unknown, so that no half-sent request stays open on the server.
pub struct Transport {
    /// `None` only while it is being dropped.
    runtime: Option<Runtime>,
    pub queries: Official,
    pub inserts: Official,
}

/// Why a request ended without success.
pub enum Failure {
    Late,
    Client(clickhouse::error::Error),
}

impl Transport {
    /// To `endpoint`, one of the hosts of `params`; nothing is sent yet.
    pub fn new(params: &Params, endpoint: &str) -> Result<Transport> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Names are looked up there; it is the only blocking work.
            .max_blocking_threads(1)
            .build()
            .map_err(|e| Error::new(ErrorKind::Unreachable, "start the http client").because(e))?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_keepalive(Some(TCP_KEEPALIVE));
        // Where there are other hosts, time is left for them.
        let patience =
            params.request_timeout / u32::from(1 < params.hosts.count()).saturating_add(1);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT.min(patience)));
        let mut builder = Http::builder(TokioExecutor::new());
        if params.keep_alive {
            builder.pool_idle_timeout(params.keep_alive_idle.unwrap_or(IDLE_DEFAULT));
            builder.pool_max_idle_per_host(params.connections_max.max(1));
        } else {
            builder.pool_max_idle_per_host(0);
        }
        let official = if endpoint.starts_with("https://") {
            let tls = hyper_rustls::HttpsConnectorBuilder::new()
                .with_tls_config(tls_config()?)
                .https_only()
                .enable_http1()
                .wrap_connector(connector);
            Official::with_http_client(builder.build(tls))
        } else {
            Official::with_http_client(builder.build(connector))
        };
        let mut official =
            official.with_url(endpoint).with_product_info("walhouse", env!("CARGO_PKG_VERSION"));
        if !params.user.is_empty() {
            official = official.with_user(&params.user);
        }
        if !params.password.expose().is_empty() {
            official = official.with_password(params.password.expose());
        }
        if !params.keep_alive {
            official = official.with_header("Connection", "close");
        }
        Ok(Transport {
            runtime: Some(runtime),
            queries: official.clone().with_compression(Compression::None),
            inserts: official.with_compression(match params.compress {
                true => Compression::Lz4,
                false => Compression::None,
            }),
        })
    }

    pub fn wait<T>(
        &self,
        request: impl Future<Output = clickhouse::error::Result<T>>,
        deadline: Instant,
    ) -> std::result::Result<T, Failure> {
        let runtime = self.runtime.as_ref().expect("runtime lives as long as the transport");
        runtime.block_on(async {
            // The runtime stood still since the last call: one turn to hear of connections that
            // were closed meanwhile, and one to take them out of the pool.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            let result = tokio::time::timeout_at(deadline.into(), request).await;
            // The connection goes back to the pool in a task of its own; let it.
            tokio::task::yield_now().await;
            match result {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(cause)) => Err(Failure::Client(cause)),
                Err(_) => Err(Failure::Late),
            }
        })
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not the plain drop: it would wait for a name lookup that hangs.
            runtime.shutdown_background();
        }
    }
}

const ROOTS_HINT: &str = "Set SSL_CERT_FILE (or SSL_CERT_DIR) to the certificates of the authority \
                          that signed ClickHouse's certificate; it replaces the system's.";

/// What mends a certificate that was refused.
pub fn certificate_hint(cause: &str) -> Option<&'static str> {
    let (_, cause) = cause.split_once("invalid peer certificate")?;
    Some(if cause.contains("not valid for name") {
        "Let *_REPLICATION_CLICKHOUSE_URL name the host as ClickHouse's certificate does."
    } else if cause.contains("xpired") {
        "Renew ClickHouse's certificate, and look at the clock of this host."
    } else {
        ROOTS_HINT
    })
}

fn tls_config() -> Result<rustls::ClientConfig> {
    let doing = "read the trusted certificates for ClickHouse";
    let found = rustls_native_certs::load_native_certs();
    let mut roots = rustls::RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let cause = found.errors.first().map_or("there are none".to_owned(), ToString::to_string);
        return Err(Error::new(ErrorKind::Setup, doing).because(cause).hint(ROOTS_HINT));
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(ErrorKind::Setup, doing).because(e))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
