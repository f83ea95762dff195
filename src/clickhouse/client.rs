//! One blocking connection to ClickHouse's HTTP interface; one value per thread.
//!
//! The transport is the official client, which is async: a current-thread runtime hides in here and
//! turns only while a call waits. Each call has a deadline over the whole of it. Nothing here
//! retries what may have reached the server: an answer that did not come is an unknown outcome, and
//! the caller decides. What the bytes of a block mean is not known here either.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clickhouse::insert_formatted::CompressedData;
use clickhouse::{Client as Official, Compression};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::runtime::Runtime;

use super::params::{InsertStrategy, Params};
use super::refusal::{Refusal, Verdict};
use crate::error::{Error, ErrorKind, Result};

/// One row of an answer; `None` is NULL.
pub type TextRow = Vec<Option<String>>;

/// Why an INSERT did not succeed.
#[derive(Debug)]
pub enum InsertError {
    /// ClickHouse was not reached, did not answer, or cannot take any block now. The rows may be in
    /// the table or not; sending the same block again is right.
    Retry(Error),
    /// The rows themselves were refused. The same block will be refused again; a part of it may
    /// not.
    Data(Refusal),
}

/// Raw bytes per compressed frame. ClickHouse writes frames of this size itself.
const FRAME_BYTES: usize = 1 << 20;
/// Of what is not compressed, so that it is still in the cache when it goes to the socket.
const PLAIN_BYTES: usize = 1 << 18;
/// By it a query is known as ours.
pub const QUERY_ID_PREFIX: &str = "walhouse-";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// Below ClickHouse's `keep_alive_timeout`: 3 s before 23.11, then 10, now 30.
const IDLE_DEFAULT: Duration = Duration::from_millis(2500);

/// What every INSERT relies on, said each time: defaults differ between versions (`async_insert`
/// and `input_format_skip_unknown_fields` were turned on in 2026) and profiles can change them.
const INSERT_SETTINGS: &[(&str, &str)] = &[
    // A column that the table lacks is an error, not a loss; so is NULL for a column without it.
    ("input_format_skip_unknown_fields", "0"),
    ("input_format_null_as_default", "0"),
    // String to LowCardinality, DateTime64(6) to DateTime64(3), and so on.
    ("input_format_native_allow_types_conversion", "1"),
    // A batch may touch many months, and the default refuses more than 100 partitions.
    ("max_partitions_per_insert_block", "0"),
    // A block that is sent again is dropped by tables that keep such a log, so that materialized
    // views do not count it twice.
    ("insert_deduplicate", "1"),
    // Into a Distributed table: answer when the shards have the rows, not when they are queued.
    ("insert_distributed_sync", "1"),
    // The status line of the answer speaks for the whole INSERT.
    ("wait_end_of_query", "1"),
];

/// Settings that a server may not know, and without which the INSERT is still right.
const OPTIONAL_SETTINGS: &[(&str, &str)] = &[
    (JSON_TYPE, "1"),
    ("type_json_skip_duplicated_paths", "1"),
    // Strings in documents stay strings: "2024-01-01T10:00:00Z" would come back as another text.
    ("input_format_try_infer_dates", "0"),
    ("input_format_try_infer_datetimes", "0"),
    // `[1, "a"]` keeps its number.
    ("input_format_json_infer_array_of_dynamic_from_array_of_different_types", "1"),
    // Booleans and numbers in documents stay what they are.
    ("input_format_json_read_bools_as_numbers", "0"),
    ("input_format_json_read_bools_as_strings", "0"),
    ("input_format_json_read_numbers_as_strings", "0"),
];

const JSON_TYPE: &str = "enable_json_type";
/// Its name in 24.8, where the type was new.
const JSON_TYPE_OLD: &str = "allow_experimental_json_type";

/// Belongs to one thread: each makes its own.
pub struct Client {
    params: Params,
    transport: Transport,
    /// Optional settings that this server refused as unknown, so that they are not sent again.
    unknown: Vec<&'static str>,
}

/// The runtime and the connections that live in it. Thrown away as a whole when an outcome is
/// unknown, so that no half-sent request stays open on the server.
struct Transport {
    /// `None` only while it is being dropped.
    runtime: Option<Runtime>,
    queries: Official,
    inserts: Official,
}

impl Client {
    /// Builds the client; nothing is sent yet.
    pub fn connect(params: &Params) -> Result<Client> {
        let transport = Transport::new(params)?;
        Ok(Client { params: params.clone(), transport, unknown: Vec::new() })
    }

    /// The database of the target tables and of our own.
    pub fn database(&self) -> &str {
        &self.params.database
    }

    /// `table` in our database, quoted.
    pub fn qualified(&self, table: &str) -> String {
        format!("{}.{}", quote_name(&self.params.database), quote_name(table))
    }

    /// The server's version: it is ClickHouse, it is there, and it lets us in.
    pub fn ping(&mut self, deadline: Instant) -> Result<String> {
        let rows = self.query("SELECT version()", deadline)?;
        match rows.as_slice() {
            [row] => match row.as_slice() {
                [Some(version)] if version.contains('.') => Ok(version.clone()),
                _ => Err(not_clickhouse(&self.params.endpoint)),
            },
            _ => Err(not_clickhouse(&self.params.endpoint)),
        }
    }

    /// A statement without rows: DDL.
    pub fn execute(&mut self, sql: &str, deadline: Instant) -> Result<()> {
        self.select(sql, deadline).map(drop)
    }

    /// A statement with rows, read as text. Meant for small answers: all of it is held in memory.
    pub fn query(&mut self, sql: &str, deadline: Instant) -> Result<Vec<TextRow>> {
        let rows = self.query_bytes(sql, deadline)?;
        let text = |value: Vec<u8>| {
            String::from_utf8(value).map_err(|_| {
                Error::new(ErrorKind::Protocol, "read an answer of ClickHouse")
                    .because("a value is not UTF-8")
            })
        };
        rows.into_iter()
            .map(|row| row.into_iter().map(|value| value.map(text).transpose()).collect())
            .collect()
    }

    /// As [`Client::query`], with values of any bytes.
    pub fn query_bytes(
        &mut self,
        sql: &str,
        deadline: Instant,
    ) -> Result<Vec<Vec<Option<Vec<u8>>>>> {
        let answer = self.select(sql, deadline)?;
        parse_rows(&answer).ok_or_else(|| {
            Error::new(ErrorKind::Protocol, "read an answer of ClickHouse")
                .because("its rows are not what was asked for")
        })
    }

    /// Sends `block`, the bytes of one or more Native blocks holding exactly `columns`, and waits
    /// until ClickHouse has taken it. `settings` are added to ours and win over them. An empty
    /// `block` is nothing to insert.
    ///
    /// The official client shows no headers of an answer to an INSERT, so status 200 is all there
    /// is to believe: [`Client::ping`] first, to know that it is ClickHouse who answers.
    pub fn insert(
        &mut self,
        table: &str,
        columns: &[&str],
        settings: &[(&str, &str)],
        block: &[u8],
        deadline: Instant,
    ) -> std::result::Result<(), InsertError> {
        if block.is_empty() {
            return Ok(());
        }
        let pieces = |bytes| block.chunks(bytes).map(<[u8]>::to_vec);
        self.insert_pieces(table, columns, settings, pieces, deadline)
    }

    /// The same of a block that is made while it is sent: `pieces` is given about how long each is
    /// to be, and is asked for all of them again if the INSERT must be said in another way. There
    /// is at least one.
    pub fn insert_pieces<P: Iterator<Item = Vec<u8>>>(
        &mut self,
        table: &str,
        columns: &[&str],
        settings: &[(&str, &str)],
        pieces: impl Fn(usize) -> P,
        deadline: Instant,
    ) -> std::result::Result<(), InsertError> {
        let names: Vec<String> = columns.iter().map(|name| quote_name(name)).collect();
        let sql =
            format!("INSERT INTO {} ({}) FORMAT Native", self.qualified(table), names.join(", "));
        loop {
            let query_id = new_query_id();
            let doing = format!("insert into `{table}` as query `{query_id}`");
            let mut insert = self
                .transport
                .inserts
                .insert_formatted_with(sql.as_str())
                .with_setting("query_id", query_id);
            for (name, value) in self.insert_settings(settings) {
                insert = insert.with_setting(name, value);
            }
            let compress = self.params.compress;
            let send = async {
                for piece in pieces(if compress { FRAME_BYTES } else { PLAIN_BYTES }) {
                    if !compress {
                        insert.send(Bytes::from(piece)).await?;
                        continue;
                    }
                    // A piece with a large value at its end may be many times as long as asked for.
                    for part in piece.chunks(2 * FRAME_BYTES) {
                        let frame = CompressedData::new(part, Compression::Lz4)?;
                        insert.send_compressed(frame).await?;
                    }
                }
                insert.end().await
            };
            match self.transport.wait(send, deadline) {
                Ok(()) => return Ok(()),
                Err(failure) => {
                    let refusal = self.settle(failure, &doing, columns);
                    let refusal = refusal.map_err(InsertError::Retry)?;
                    if self.drop_setting(&refusal, settings) {
                        continue;
                    }
                    return Err(match refusal.verdict() {
                        Verdict::Data => InsertError::Data(refusal),
                        Verdict::Setup | Verdict::Busy => {
                            InsertError::Retry(refused(doing, refusal))
                        }
                    });
                }
            }
        }
    }

    fn select(&mut self, sql: &str, deadline: Instant) -> Result<Vec<u8>> {
        loop {
            let query_id = new_query_id();
            let doing = format!("run {} as query `{query_id}`", verb_of(sql));
            let mut query = self
                .transport
                .queries
                .query_raw(sql)
                .with_setting("query_id", query_id)
                // The whole answer is ready before its status line is sent.
                .with_setting("wait_end_of_query", "1");
            if sql.starts_with("CREATE TABLE") {
                let name =
                    if self.unknown.contains(&JSON_TYPE) { JSON_TYPE_OLD } else { JSON_TYPE };
                if !self.unknown.contains(&name) {
                    query = query.with_setting(name, "1");
                }
            }
            let fetch = async { query.fetch_bytes("TabSeparated")?.collect().await };
            match self.transport.wait(fetch, deadline) {
                Ok(answer) => return Ok(answer.to_vec()),
                Err(failure) => {
                    let refusal = self.settle(failure, &doing, &[])?;
                    if !self.drop_setting(&refusal, &[]) {
                        return Err(refused(doing, refusal));
                    }
                }
            }
        }
    }

    /// Ours first, then the caller's, so that the caller's win.
    fn insert_settings<'a>(&self, caller: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let strategy: &[(&str, &str)] = match self.params.insert_strategy {
            InsertStrategy::Insert => &[("async_insert", "0")],
            InsertStrategy::InsertAsync => &[
                ("async_insert", "1"),
                // The answer comes after the flush, so it says what became of the rows.
                ("wait_for_async_insert", "1"),
                ("async_insert_max_data_size", "1000000"),
                ("async_insert_busy_timeout_ms", "1000"),
            ],
        };
        let optional = OPTIONAL_SETTINGS.iter().filter(|(name, _)| !self.unknown.contains(name));
        let mut settings: Vec<(&str, &str)> = INSERT_SETTINGS.to_vec();
        settings.extend_from_slice(strategy);
        settings.extend(optional);
        if self.unknown.contains(&JSON_TYPE) && !self.unknown.contains(&JSON_TYPE_OLD) {
            settings.push((JSON_TYPE_OLD, "1"));
        }
        settings.extend_from_slice(caller);
        settings
    }

    /// True if the server refused an optional setting of ours: it is not sent again, and the
    /// request may be. Ends, as each pass takes one of a few settings away.
    fn drop_setting(&mut self, refusal: &Refusal, caller: &[(&str, &str)]) -> bool {
        let Some(refused) = refusal.unknown_setting.as_deref() else {
            return false;
        };
        let names = OPTIONAL_SETTINGS.iter().map(|(name, _)| *name).chain([JSON_TYPE_OLD]);
        let Some(name) = names.into_iter().find(|name| *name == refused) else {
            return false;
        };
        if self.unknown.contains(&name) || caller.iter().any(|(sent, _)| *sent == name) {
            return false;
        }
        log::warn!("clickhouse does not know the setting `{name}`; it is left out from now on");
        self.unknown.push(name);
        true
    }

    /// ClickHouse's own refusal, or the error that stands for everything else. After anything but
    /// an answer, the connections are thrown away.
    fn settle(
        &mut self,
        failure: Failure,
        doing: &str,
        columns: &[&str],
    ) -> std::result::Result<Refusal, Error> {
        use clickhouse::error::Error as E;
        let (kind, cause) = match failure {
            Failure::Late => (ErrorKind::Unreachable, "no answer in time".to_owned()),
            Failure::Client(E::BadResponse(answer)) => {
                if let Some(refusal) = Refusal::read(&answer, columns) {
                    return Ok(refusal);
                }
                (ErrorKind::Unreachable, foreign_answer(&answer))
            }
            Failure::Client(E::TimedOut) => {
                (ErrorKind::Unreachable, "no answer in time".to_owned())
            }
            Failure::Client(E::Network(cause)) => (ErrorKind::Unreachable, chain(cause.as_ref())),
            Failure::Client(E::InvalidParams(cause)) => (ErrorKind::Setup, chain(cause.as_ref())),
            // What is left speaks of the client's own use and of compression, not of rows.
            Failure::Client(other) => (ErrorKind::Protocol, other.to_string()),
        };
        let untrusted = cause.contains("invalid peer certificate");
        let doing = format!("{doing} at `{}`", self.params.endpoint);
        let error = Error::new(kind, doing).because(cause);
        let error = if untrusted { error.hint(ROOTS_HINT) } else { error };
        // A broken connection may still hold half of a request: none of them is used again.
        self.transport = Transport::new(&self.params)?;
        Err(error)
    }
}

/// Why a request ended without success.
enum Failure {
    Late,
    Client(clickhouse::error::Error),
}

impl Transport {
    fn new(params: &Params) -> Result<Transport> {
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
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT.min(params.request_timeout)));
        let mut builder = Http::builder(TokioExecutor::new());
        if params.keep_alive {
            builder.pool_idle_timeout(params.keep_alive_idle.unwrap_or(IDLE_DEFAULT));
            builder.pool_max_idle_per_host(params.connections_max.max(1));
        } else {
            builder.pool_max_idle_per_host(0);
        }
        let official = if params.endpoint.starts_with("https://") {
            let tls = hyper_rustls::HttpsConnectorBuilder::new()
                .with_tls_config(tls_config()?)
                .https_only()
                .enable_http1()
                .wrap_connector(connector);
            Official::with_http_client(builder.build(tls))
        } else {
            Official::with_http_client(builder.build(connector))
        };
        let mut official = official
            .with_url(&params.endpoint)
            .with_product_info("walhouse", env!("CARGO_PKG_VERSION"));
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

    fn wait<T>(
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

/// An identifier in ClickHouse's backticks.
pub fn quote_name(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

/// Any bytes as a string literal, in ASCII.
pub fn quote_bytes(bytes: &[u8]) -> String {
    let mut literal = String::with_capacity(bytes.len() + 2);
    literal.push('\'');
    for &byte in bytes {
        match byte {
            b'\'' | b'\\' => literal.extend(['\\', char::from(byte)]),
            0x20..=0x7e => literal.push(char::from(byte)),
            _ => literal.push_str(&format!("\\x{byte:02X}")),
        }
    }
    literal.push('\'');
    literal
}

fn refused(doing: String, refusal: Refusal) -> Error {
    let kind = match refusal.verdict() {
        Verdict::Data => ErrorKind::DataRefused,
        Verdict::Setup => ErrorKind::Setup,
        Verdict::Busy => ErrorKind::Unreachable,
    };
    let hint = refusal.hint();
    let error = Error::new(kind, doing).because(refusal);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn not_clickhouse(endpoint: &str) -> Error {
    Error::new(ErrorKind::Setup, format!("greet ClickHouse at `{endpoint}`"))
        .because("something else answers there")
        .hint("Give the address of ClickHouse's HTTP interface (port 8123, or 8443 with TLS).")
}

/// A status line is told; a page of text is not.
fn foreign_answer(answer: &str) -> String {
    let status = answer.lines().next().unwrap_or_default();
    let plain = status.chars().all(|c| c.is_ascii_alphanumeric() || " -'<>".contains(c));
    if plain && status.len() <= 48 && status.starts_with(|c: char| c.is_ascii_digit()) {
        format!("the answer was `{status}`, not one of ClickHouse")
    } else {
        format!("the answer, {} bytes of text, was not one of ClickHouse", answer.len())
    }
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

/// What the operator can find in `system.query_log`.
fn new_query_id() -> String {
    format!("{QUERY_ID_PREFIX}{:032x}", fastrand::u128(..))
}

/// `SELECT` of `SELECT ...`: enough to know which statement it was, and nothing of its literals.
fn verb_of(sql: &str) -> String {
    let verb = sql.split_ascii_whitespace().next().unwrap_or("a statement");
    format!("`{}`", verb.chars().take(16).collect::<String>())
}

/// Rows of TabSeparated. `None` if the last line is cut or an escape is unknown.
fn parse_rows(answer: &[u8]) -> Option<Vec<Vec<Option<Vec<u8>>>>> {
    let Some(body) = answer.strip_suffix(b"\n") else {
        return answer.is_empty().then(Vec::new);
    };
    body.split(|byte| *byte == b'\n')
        .map(|line| line.split(|byte| *byte == b'\t').map(parse_value).collect())
        .collect()
}

fn parse_value(text: &[u8]) -> Option<Option<Vec<u8>>> {
    if text == b"\\N" {
        return Some(None);
    }
    let mut value = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        value.push(match byte {
            b'\\' => match bytes.next()? {
                b'b' => 0x08,
                b'f' => 0x0c,
                b'r' => b'\r',
                b'n' => b'\n',
                b't' => b'\t',
                b'0' => 0,
                literal @ (b'\\' | b'\'') => literal,
                _ => return None,
            },
            byte => byte,
        });
    }
    Some(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bytes_cannot_leave_their_quotes() {
        assert_eq!(quote_name("a`b\\c"), "`a\\`b\\\\c`");
        assert_eq!(quote_bytes(b"it's \\ \0\xff\n"), "'it\\'s \\\\ \\x00\\xFF\\x0A'");
    }

    #[test]
    fn rows_are_read_with_escapes_and_nulls() {
        let text = |value: &[u8]| Some(value.to_vec());
        assert_eq!(parse_rows(b""), Some(vec![]));
        assert_eq!(
            parse_rows(b"a\\tb\t\\N\n\\\\N\t\xff\n"),
            Some(vec![vec![text(b"a\tb"), None], vec![text(b"\\N"), text(b"\xff")]])
        );
        assert_eq!(parse_rows(b"\n"), Some(vec![vec![text(b"")]]));
    }

    #[test]
    fn a_cut_answer_is_no_answer() {
        assert_eq!(parse_rows(b"a\tb"), None);
        assert_eq!(parse_rows(b"a\\\n"), None);
        assert_eq!(parse_rows(b"a\\q\n"), None);
    }

    #[test]
    fn foreign_answers_are_told_without_their_text() {
        assert_eq!(
            foreign_answer("502 Bad Gateway"),
            "the answer was `502 Bad Gateway`, not one of ClickHouse"
        );
        assert!(!foreign_answer("<p>hunter2</p>").contains("hunter2"));
        assert!(!foreign_answer("{\"data\":\"hunter2\"}").contains("hunter2"));
    }

    #[test]
    fn statements_are_named_by_their_verb_alone() {
        assert_eq!(verb_of("SELECT 'hunter2'"), "`SELECT`");
        assert_eq!(verb_of(""), "`a statement`");
    }

    proptest::proptest! {
        #[test]
        fn no_answer_panics_us(bytes: Vec<u8>) {
            let _ = parse_rows(&bytes);
        }
    }
}
