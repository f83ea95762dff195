//! The connections to one host of ClickHouse: an HTTP client, which is async, and the
//! current-thread runtime that turns only while a call waits.

use std::convert::Infallible;
use std::future::Future;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_ENCODING, TRANSFER_ENCODING, USER_AGENT};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client as Http, ResponseFuture};
use hyper_util::rt::TokioExecutor;
use tokio::runtime::Runtime;
use url::Url;

use super::answer::Answer;
use super::params::ClickHouseParams;
use crate::error::{Error, ErrorKind, Result};
use crate::halt::Halt;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// Below ClickHouse's `keep_alive_timeout`: 3 s before 23.11, then 10, now 30.
const IDLE_DEFAULT: Duration = Duration::from_millis(2500);
/// Limit for an answer without rows: a text of ClickHouse, or some other server's page.
const TEXT_BYTES_MAX: usize = 1 << 20;

type Outgoing = Either<Full<Bytes>, Channel<Bytes, Infallible>>;

/// The runtime and the connections that live in it. Discarded as a whole when an outcome is
/// unknown, so that no half-sent request stays open on the server.
pub struct Transport {
    /// `None` only while it is being dropped.
    runtime: Option<Runtime>,
    http: Kind,
    url: Url,
    headers: Vec<(&'static str, String)>,
    pub halt: Halt,
}

enum Kind {
    Plain(Http<HttpConnector, Outgoing>),
    Tls(Http<HttpsConnector<HttpConnector>, Outgoing>),
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    Late,
    /// The caller was halted.
    Halted,
    /// No server was reached: nothing was sent.
    Connect(String),
    /// The connection ended amid a request or an answer.
    Lost(String),
    /// No request can be made of this.
    Invalid(String),
}

impl Transport {
    /// To `endpoint`, one of the hosts of `params`; nothing is sent yet.
    pub fn new(params: &ClickHouseParams, endpoint: &str) -> Result<Transport> {
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
        let http = if endpoint.starts_with("https://") {
            let tls = hyper_rustls::HttpsConnectorBuilder::new()
                .with_tls_config(tls_config()?)
                .https_only()
                .enable_http1()
                .wrap_connector(connector);
            Kind::Tls(builder.build(tls))
        } else {
            Kind::Plain(builder.build(connector))
        };
        let url = Url::parse(endpoint).map_err(|e| {
            Error::new(ErrorKind::Setup, format!("read the address `{endpoint}`")).because(e)
        })?;
        let agent = concat!("walhouse/", env!("CARGO_PKG_VERSION")).to_owned();
        let mut headers = vec![(USER_AGENT.as_str(), agent)];
        if !params.user.is_empty() {
            headers.push(("X-ClickHouse-User", params.user.clone()));
        }
        if !params.password.expose().is_empty() {
            headers.push(("X-ClickHouse-Key", params.password.expose().to_owned()));
        }
        if !params.keep_alive {
            headers.push((CONNECTION.as_str(), "close".to_owned()));
        }
        Ok(Transport { runtime: Some(runtime), http, url, headers, halt: params.halt.clone() })
    }

    /// Sends a statement.
    pub fn ask(
        &self,
        sql: &str,
        parameters: &[(&str, &str)],
        deadline: Instant,
    ) -> std::result::Result<Answer, Failure> {
        let body = Either::Left(Full::from(sql.to_owned()));
        let response = self.request(parameters, body)?;
        self.wait(answer(response, true), deadline)
    }

    /// Sends a statement that stands among the parameters, and behind it `pieces`, each of which is
    /// made when there is room for it.
    pub fn send(
        &self,
        parameters: &[(&str, &str)],
        pieces: impl Iterator<Item = Bytes>,
        deadline: Instant,
    ) -> std::result::Result<Answer, Failure> {
        let (mut sender, body): (Sender<Bytes>, _) = Channel::new(1);
        let response = self.request(parameters, Either::Right(body))?;
        let exchange = async move {
            // Answers may come before all is sent, so it is listened for meanwhile.
            let answered = tokio::spawn(answer(response, false));
            for piece in pieces {
                if sender.send_data(piece).await.is_err() {
                    // The server stopped reading: the answer says why.
                    break;
                }
            }
            drop(sender);
            answered.await.unwrap_or_else(|stopped| Err(Failure::Lost(stopped.to_string())))
        };
        self.wait(exchange, deadline)
    }

    fn request(
        &self,
        parameters: &[(&str, &str)],
        body: Outgoing,
    ) -> std::result::Result<ResponseFuture, Failure> {
        let mut url = self.url.clone();
        url.query_pairs_mut().clear().extend_pairs(parameters);
        let mut request = hyper::Request::post(url.as_str());
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.body(body).map_err(|e| Failure::Invalid(e.to_string()))?;
        // Every task of a request lives in the runtime.
        let _guard = self.runtime().enter();
        Ok(match &self.http {
            Kind::Plain(http) => http.request(request),
            Kind::Tls(http) => http.request(request),
        })
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("runtime lives as long as the transport")
    }

    fn wait<T>(
        &self,
        request: impl Future<Output = std::result::Result<T, Failure>>,
        deadline: Instant,
    ) -> std::result::Result<T, Failure> {
        self.runtime().block_on(async {
            // The runtime did not run since the last call: one turn to notice connections that were
            // closed meanwhile, and one to remove them from the pool.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            let result = self.until(deadline, request).await;
            // The connection returns to the pool in its own task; let that run.
            tokio::task::yield_now().await;
            result
        })
    }
}

impl Transport {
    /// The answer, by the deadline, unless the caller is halted.
    async fn until<T>(
        &self,
        deadline: Instant,
        request: impl Future<Output = std::result::Result<T, Failure>>,
    ) -> std::result::Result<T, Failure> {
        let mut request = std::pin::pin!(request);
        loop {
            if self.halt.is_due() {
                return Err(Failure::Halted);
            }
            let look_at = deadline.min(Instant::now() + Halt::LOOK_EVERY);
            match tokio::time::timeout_at(look_at.into(), &mut request).await {
                Ok(result) => return result,
                Err(_) if deadline <= Instant::now() => return Err(Failure::Late),
                Err(_) => {}
            }
        }
    }
}

/// Reads an answer to its end; a large one only if the query returns rows and ClickHouse answers.
async fn answer(response: ResponseFuture, has_rows: bool) -> std::result::Result<Answer, Failure> {
    let response = response.await.map_err(|e| match e.is_connect() {
        true => Failure::Connect(chain(&e)),
        false => Failure::Lost(chain(&e)),
    })?;
    let (head, body) = response.into_parts();
    let header = |name: &str| {
        head.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let mut answer = Answer {
        status: head.status.as_u16(),
        query_id: header("X-ClickHouse-Query-Id"),
        exception_code: header("X-ClickHouse-Exception-Code"),
        exception_tag: header("X-ClickHouse-Exception-Tag"),
        has_end: body.size_hint().exact().is_some() || header(TRANSFER_ENCODING.as_str()).is_some(),
        is_encoded: header(CONTENT_ENCODING.as_str()).is_some_and(|name| name != "identity"),
        body: Bytes::new(),
    };
    if has_rows && answer.status == 200 && answer.query_id.is_some() {
        answer.body = body.collect().await.map_err(|e| Failure::Lost(chain(&e)))?.to_bytes();
        return Ok(answer);
    }
    match both_ends(body).await {
        Ok(body) => answer.body = body,
        // The status speaks for itself.
        Err(_) if answer.status != 200 => {}
        Err(cause) => return Err(Failure::Lost(chain(&cause))),
    }
    Ok(answer)
}

/// Keeps the beginning and the end of a text that is too long: ClickHouse may quote the whole
/// document that it refuses, and only then says whether a view did.
async fn both_ends(mut body: Incoming) -> std::result::Result<Bytes, hyper::Error> {
    const END_BYTES: usize = TEXT_BYTES_MAX / 4;
    let mut text = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        text.extend_from_slice(&data);
        if TEXT_BYTES_MAX < text.len() {
            let end = text.split_off(text.len() - END_BYTES);
            text.truncate(TEXT_BYTES_MAX / 2);
            text.unsplit(end);
        }
    }
    Ok(text.freeze())
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
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

/// The hint for a refused certificate.
pub fn certificate_hint(cause: &str) -> Option<&'static str> {
    let (_, cause) = cause.split_once("invalid peer certificate")?;
    Some(if cause.contains("not valid for name") {
        "Use the host name of ClickHouse's certificate in *_REPLICATION_CLICKHOUSE_URL."
    } else if cause.contains("xpired") {
        "Renew ClickHouse's certificate, and check the clock of this host."
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
