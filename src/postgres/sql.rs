//! Ordinary SQL: one blocking connection whose every call ends by its deadline.
//!
//! Statements go by the simple protocol, so values come in Postgres's text output format, the one
//! logical decoding uses; everything put into a statement is quoted by [`literal`] and [`ident`].
//!
//! How long a call can take, whatever the server does: on TCP the deadline itself, then the
//! connection is given up. On a Unix socket the server is known to answer just before each
//! statement and ends the statement itself at `statement_timeout`; only a server that is stopped
//! (SIGSTOP) within a statement can hold us longer. Name resolution is cut off at the deadline.
//!
//! The `postgres` crate logs whole statements, keys included, at level debug: a logger must keep
//! the targets `tokio_postgres` and `postgres` at info or above.

use std::error::Error as _;
use std::fmt::Display;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use postgres::config::{SslMode as Negotiate, SslNegotiation};
use postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

pub use connector::Deadline;
pub use sql_error::SqlError;

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Params;
use crate::postgres::params::{Host, TargetSession};

mod connector;
mod sql_error;

/// What decides how values look as text. The replication connection asks for the same, so that a
/// value read from the table equals the one that was streamed.
pub const OUTPUT_SETTINGS: [(&str, &str); 5] = [
    ("datestyle", "ISO, MDY"),
    ("timezone", "UTC"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
];

/// The server ends a statement of ours after this long even when we are gone, unless the caller's
/// deadline is further away.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// A client-side deadline leaves the server this much time to say itself that it gave up.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);
/// Closing a connection waits for the network at most this long.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);

const VERSION_NUM_MIN: u32 = 140_000;

/// A session on one server.
pub struct Sql {
    client: Client,
    deadline: Deadline,
    link: LinkKind,
    is_broken: bool,
    statement_timeout: Duration,
    about: About,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkKind {
    Tcp,
    /// The deadline cannot cut a read here, see the header of this file.
    Unix,
}

/// What the server said about itself and the session at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// As in `server_version_num`, such as 150020.
    pub version_num: u32,
    pub in_recovery: bool,
    pub backend_pid: i32,
    pub database: String,
    pub role: String,
}

impl Sql {
    /// Tries all hosts and all their addresses, each with a fair share of the time left.
    pub fn connect(params: &Params, application_name: &str, deadline: Instant) -> Result<Sql> {
        let doing = || format!("connect to Postgres database `{}`", params.database);
        if params.hosts.is_empty() {
            return Err(Error::new(ErrorKind::Setup, doing()).because("no host is set"));
        }
        let mut refused: Vec<(String, SqlError)> = Vec::new();
        for (i, host) in params.hosts.iter().enumerate() {
            let until = share(deadline, params.hosts.len() - i);
            let addresses = match addresses(host, until) {
                Ok(addresses) => addresses,
                Err(error) => {
                    refused.push((host.name.clone(), error));
                    continue;
                }
            };
            for (j, address) in addresses.iter().enumerate() {
                let mut until = share(until, addresses.len() - j);
                if !params.connect_timeout.is_zero() {
                    until = until.min(Instant::now() + params.connect_timeout);
                }
                match Sql::connect_one(params, host, *address, application_name, until)? {
                    Ok(sql) => return Ok(sql),
                    Err(error) => refused.push((name_of(host, *address), error)),
                }
            }
        }
        Err(refused_by_all(refused, doing()))
    }

    /// The outer error is about our own settings, so that no other host can help.
    fn connect_one(
        params: &Params,
        host: &Host,
        address: Option<IpAddr>,
        application_name: &str,
        until: Instant,
    ) -> Result<std::result::Result<Sql, SqlError>> {
        let waited = until.saturating_duration_since(Instant::now());
        if waited.is_zero() {
            return Ok(Err(SqlError::new(ErrorKind::Unreachable, "no time left to try it")));
        }
        let mut config = Client::configure();
        config
            .user(&params.user)
            .dbname(&params.database)
            .application_name(application_name)
            .port(host.port)
            .connect_timeout(waited)
            .keepalives(true)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_PROBES)
            .tcp_user_timeout(TCP_USER_TIMEOUT)
            .notice_callback(|notice| {
                log::debug!("notice from Postgres severity={}", notice.severity());
            });
        if let Some(password) = &params.password {
            config.password(password.expose());
        }
        if let Some(options) = &params.options {
            config.options(options);
        }
        let deadline = Deadline::new(until);
        let (link, client) = match address {
            Some(address) => {
                // With direct negotiation our connector gets the socket first: see its file.
                config
                    .host(&host.name)
                    .hostaddr(address)
                    .ssl_mode(Negotiate::Require)
                    .ssl_negotiation(SslNegotiation::Direct);
                let connector = connector::connector(params, &deadline)?;
                (LinkKind::Tcp, config.connect(connector))
            }
            None => {
                if let Err(error) = knock(host, until) {
                    return Ok(Err(error));
                }
                config.host_path(&host.name).ssl_mode(Negotiate::Disable);
                (LinkKind::Unix, config.connect(NoTls))
            }
        };
        let client = match client {
            Ok(client) => client,
            Err(error) => return Ok(Err(SqlError::read(&error, waited))),
        };
        let about = About {
            version_num: 0,
            in_recovery: false,
            backend_pid: 0,
            database: params.database.clone(),
            role: params.user.clone(),
        };
        let mut sql = Sql {
            client,
            deadline,
            link,
            is_broken: false,
            statement_timeout: STATEMENT_TIMEOUT,
            about,
        };
        Ok(sql.begin_session(params.target, until).map(|()| sql))
    }

    fn begin_session(
        &mut self,
        target: TargetSession,
        until: Instant,
    ) -> std::result::Result<(), SqlError> {
        let mut settings: Vec<String> = OUTPUT_SETTINGS
            .iter()
            .map(|(name, value)| format!("SET {name} = {}", literal(value)))
            .collect();
        settings.extend([
            // Nothing that a user has created is called by accident.
            "SET search_path = pg_catalog".to_owned(),
            // A policy that hides rows has to be an error: hidden would look deleted.
            "SET row_security = off".to_owned(),
            format!("SET statement_timeout = {}", STATEMENT_TIMEOUT.as_millis()),
            "SET lock_timeout = '10s'".to_owned(),
            "SET idle_in_transaction_session_timeout = '60s'".to_owned(),
            "SET tcp_keepalives_idle = 10".to_owned(),
            "SET tcp_keepalives_interval = 5".to_owned(),
            "SET tcp_keepalives_count = 3".to_owned(),
            "SELECT current_setting('server_version_num'), pg_is_in_recovery(),
                    current_setting('transaction_read_only')::bool, pg_backend_pid(),
                    current_database(), current_user"
                .to_owned(),
        ]);
        let rows = self.try_rows(&settings.join("; "), until)?;
        let row = rows.first().ok_or_else(|| protocol("expected one row about the session"))?;
        self.about = About {
            version_num: row.parse(0)?,
            in_recovery: row.bool(1)?,
            backend_pid: row.parse(3)?,
            database: row.required(4)?.to_owned(),
            role: row.required(5)?.to_owned(),
        };
        if self.about.version_num < VERSION_NUM_MIN {
            return Err(SqlError::new(
                ErrorKind::Setup,
                format!("expected Postgres 14 or newer, got {}", self.about.version_num / 10_000),
            ));
        }
        match (target, self.about.in_recovery, row.bool(2)?) {
            (TargetSession::Any, _, _) | (TargetSession::ReadWrite, false, false) => Ok(()),
            (TargetSession::ReadWrite, true, _) => {
                Err(SqlError::new(ErrorKind::Unreachable, "server is a standby")
                    .with_hint("List all hosts in the database URL, so that the primary is found."))
            }
            (TargetSession::ReadWrite, false, true) => {
                let hint = format!(
                    "Run: ALTER ROLE {} SET default_transaction_read_only = off;",
                    ident(&self.about.role)
                );
                Err(SqlError::new(ErrorKind::Setup, "session is read-only").with_hint(hint))
            }
        }
    }

    pub fn about(&self) -> &About {
        &self.about
    }

    /// False once the connection is known to be of no further use.
    pub fn is_usable(&self) -> bool {
        !self.is_broken && !self.client.is_closed()
    }

    /// The rows of all statements in `sql`, which may be several.
    pub fn rows(&mut self, doing: &str, sql: &str, deadline: Instant) -> Result<Vec<Row>> {
        self.try_rows(sql, deadline).map_err(|error| error.doing(doing))
    }

    pub fn execute(&mut self, doing: &str, sql: &str, deadline: Instant) -> Result<()> {
        self.rows(doing, sql, deadline).map(drop)
    }

    /// Like [`Sql::rows`], for callers that tell one SQLSTATE from another.
    pub fn try_rows(
        &mut self,
        sql: &str,
        deadline: Instant,
    ) -> std::result::Result<Vec<Row>, SqlError> {
        let waited = deadline.saturating_duration_since(Instant::now());
        if waited.is_zero() {
            return Err(SqlError::new(ErrorKind::Unreachable, "no time left to ask"));
        }
        if !self.is_usable() {
            return Err(SqlError::new(ErrorKind::Unreachable, "connection closed"));
        }
        let done = self.ask(sql, waited, deadline);
        if let Err(error) = &done {
            self.is_broken |= error.is_fatal;
        }
        done
    }

    fn ask(
        &mut self,
        sql: &str,
        waited: Duration,
        deadline: Instant,
    ) -> std::result::Result<Vec<Row>, SqlError> {
        self.deadline.set(deadline);
        let read = |error: postgres::Error| SqlError::read(&error, waited);
        if self.link == LinkKind::Unix {
            // The crate's own timeout is an error without a cause.
            self.client.is_valid(waited).map_err(|error| match error.source() {
                None if !error.is_closed() => no_answer(waited),
                _ => read(error),
            })?;
        }
        let wanted = match waited > STATEMENT_TIMEOUT {
            true => waited.saturating_sub(ANSWER_MARGIN),
            false => STATEMENT_TIMEOUT,
        };
        if wanted != self.statement_timeout {
            let set = format!("SET statement_timeout = {}", wanted.as_millis());
            self.client.batch_execute(&set).map_err(read)?;
            self.statement_timeout = wanted;
        }
        let messages = self.client.simple_query(sql).map_err(read)?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(Row(row)),
            _ => None,
        });
        Ok(rows.collect())
    }
}

impl Drop for Sql {
    fn drop(&mut self) {
        // The client says goodbye as it is dropped; a dead network must not hold that up.
        self.deadline.set(Instant::now() + CLOSE_TIMEOUT);
    }
}

/// One row, its values as text.
#[derive(Debug)]
pub struct Row(SimpleQueryRow);

impl Row {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `None` is NULL.
    pub fn text(&self, column: usize) -> std::result::Result<Option<&str>, SqlError> {
        self.0.try_get(column).map_err(|_| protocol(format!("read column {column} as UTF-8 text")))
    }

    pub fn required(&self, column: usize) -> std::result::Result<&str, SqlError> {
        self.text(column)?.ok_or_else(|| protocol(format!("expected column {column}, got NULL")))
    }

    pub fn bool(&self, column: usize) -> std::result::Result<bool, SqlError> {
        Ok(self.required(column)? == "t")
    }

    pub fn parse<T: FromStr>(&self, column: usize) -> std::result::Result<T, SqlError> {
        let text = self.required(column)?;
        text.parse().map_err(|_| protocol(format!("column {column} has an unexpected form")))
    }

    pub fn parse_nullable<T: FromStr>(
        &self,
        column: usize,
    ) -> std::result::Result<Option<T>, SqlError> {
        match self.text(column)? {
            Some(_) => self.parse(column).map(Some),
            None => Ok(None),
        }
    }

    /// A row or an object that Postgres has written as JSON.
    pub fn json(&self, column: usize) -> std::result::Result<serde_json::Value, SqlError> {
        self.parse(column)
    }
}

/// Quotes a name.
pub fn ident(name: &str) -> String {
    postgres_protocol::escape::escape_identifier(name)
}

/// Quotes a value.
pub fn literal(value: &str) -> String {
    postgres_protocol::escape::escape_literal(value)
}

pub(super) fn protocol(cause: impl Display) -> SqlError {
    // The connection itself is fine.
    SqlError { is_fatal: false, ..SqlError::new(ErrorKind::Protocol, cause.to_string()) }
}

fn no_answer(waited: Duration) -> SqlError {
    let text = format!("no answer within {:.1}s", waited.as_secs_f64());
    SqlError::new(ErrorKind::Unreachable, text)
}

/// The end of one of `parts` equal parts of the time that is left.
fn share(deadline: Instant, parts: usize) -> Instant {
    let now = Instant::now();
    let parts = u32::try_from(parts.max(1)).unwrap_or(u32::MAX);
    now + deadline.saturating_duration_since(now) / parts
}

/// `None` is a Unix socket.
fn addresses(host: &Host, until: Instant) -> std::result::Result<Vec<Option<IpAddr>>, SqlError> {
    if host.name.starts_with('/') {
        return Ok(vec![None]);
    }
    if let Ok(address) = host.name.parse::<IpAddr>() {
        return Ok(vec![Some(address)]);
    }
    // The resolver knows no deadline. A thread that outlives ours ends by the resolver's own.
    let (answer, answers) = crossbeam_channel::bounded(1);
    let (name, port) = (host.name.clone(), host.port);
    let spawned = thread::Builder::new().name("resolve".into()).spawn(move || {
        let found = (name.as_str(), port).to_socket_addrs().map(|all| all.collect::<Vec<_>>());
        // Nobody may be waiting any more.
        let _ = answer.send(found);
    });
    let unreachable = |cause: String| SqlError::new(ErrorKind::Unreachable, cause);
    spawned.map_err(|error| unreachable(format!("start a thread: {error}")))?;
    let found: Vec<SocketAddr> = answers
        .recv_deadline(until)
        .map_err(|_| unreachable("no answer from the name resolver in time".into()))?
        .map_err(|error| unreachable(format!("resolve the name: {error}")))?;
    let mut all: Vec<Option<IpAddr>> = Vec::new();
    for address in found {
        if !all.contains(&Some(address.ip())) {
            all.push(Some(address.ip()));
        }
    }
    match all.is_empty() {
        true => Err(unreachable("the name has no address".into())),
        false => Ok(all),
    }
}

/// Sees, within the time, that somebody answers at the Unix socket: the client would wait for ever.
fn knock(host: &Host, until: Instant) -> std::result::Result<(), SqlError> {
    let waited = until.saturating_duration_since(Instant::now());
    let path = Path::new(&host.name).join(format!(".s.PGSQL.{}", host.port));
    let unreachable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => no_answer(waited),
        _ => SqlError::new(ErrorKind::Unreachable, error.to_string()),
    };
    // The question for TLS: any answer will do, and Postgres logs nothing when we leave then.
    let mut socket = UnixStream::connect(path).map_err(unreachable)?;
    socket.set_read_timeout(Some(waited.max(Duration::from_millis(1)))).map_err(unreachable)?;
    socket.set_write_timeout(Some(waited.max(Duration::from_millis(1)))).map_err(unreachable)?;
    socket.write_all(&connector::SSL_REQUEST).map_err(unreachable)?;
    socket.read_exact(&mut [0]).map_err(unreachable)
}

fn name_of(host: &Host, address: Option<IpAddr>) -> String {
    match address {
        Some(address) if address.to_string() != host.name => {
            format!("{}:{} ({address})", host.name, host.port)
        }
        _ => format!("{}:{}", host.name, host.port),
    }
}

/// Setup only when every host said so: while one is merely away, trying again may help.
fn refused_by_all(refused: Vec<(String, SqlError)>, doing: String) -> Error {
    let first = refused.first().map_or(ErrorKind::Unreachable, |(_, error)| error.kind);
    let same = refused.iter().all(|(_, error)| error.kind == first);
    let kind = if same { first } else { ErrorKind::Unreachable };
    let causes: Vec<String> =
        refused.iter().map(|(name, error)| format!("`{name}`: {}", error.cause)).collect();
    let error = Error::new(kind, doing).because(causes.join("; "));
    match refused.into_iter().find_map(|(_, error)| error.hint) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_that_is_merely_away_makes_the_whole_worth_another_try() {
        let away = || ("a:1".to_owned(), SqlError::new(ErrorKind::Unreachable, "refused"));
        let wrong = || ("b:1".to_owned(), SqlError::new(ErrorKind::Setup, "no").with_hint("h"));
        let error = refused_by_all(vec![away(), wrong()], "connect".into());
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert_eq!(error.to_string(), "connect: `a:1`: refused; `b:1`: no");
        assert_eq!(error.hint_text(), Some("h"));
        let error = refused_by_all(vec![wrong(), wrong()], "connect".into());
        assert_eq!(error.kind(), ErrorKind::Setup);
    }

    #[test]
    fn the_time_left_is_shared_fairly() {
        let now = Instant::now();
        let end = share(now + Duration::from_secs(9), 3);
        assert!(end <= now + Duration::from_secs(4) && end >= now + Duration::from_secs(2));
        assert!(share(now - Duration::from_secs(1), 0) >= now);
    }

    #[test]
    fn names_and_values_are_quoted() {
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("a'b"), "'a''b'");
        assert_eq!(literal("a\\b"), " E'a\\\\b'");
    }
}
