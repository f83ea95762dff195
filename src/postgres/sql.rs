//! Ordinary SQL: one blocking connection whose every call ends by its deadline.
//!
//! Statements go by the simple protocol, so values come in Postgres's text output format, the one
//! logical decoding uses; everything put into a statement is quoted by [`literal`] and [`ident`].
//!
//! How long a call can take, whatever the server does: on TCP until the deadline, or until the halt
//! of [`PostgresParams`] is due; then the connection is given up. On a Unix socket the server has
//! to answer just before each statement and then ends the statement itself at the deadline; only a
//! server that is stopped (SIGSTOP) within a statement can hold us longer, and a halt does not take
//! effect there. Name resolution is cut off at the deadline.
//!
//! The `postgres` crate logs whole statements, keys included, at level debug: a logger must keep
//! the targets `tokio_postgres` and `postgres` at info or above.

use std::error::Error as _;
use std::fmt::Display;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use postgres::config::{SslMode as Negotiate, SslNegotiation};
use postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

pub use sql_error::SqlError;
pub use texts::Texts;

use connector::Deadline;
use hosts::{addresses, name_of, probe, refused_by_all, share};

use crate::error::{Error, ErrorKind, Result};
use crate::halt::{Halt, given_up};
use crate::postgres::PostgresParams;
use crate::postgres::params::{Host, TargetSession};

mod connector;
mod held;
pub(super) mod hosts;
mod sql_error;
mod texts;

/// Settings that decide how values look as text. The replication connection asks for the same, so
/// that a value read from the table equals the one that was streamed.
pub const OUTPUT_SETTINGS: [(&str, &str); 5] = [
    ("datestyle", "ISO, MDY"),
    ("timezone", "UTC"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
];

/// The server ends our statement after this long even when we are gone, unless the caller's
/// deadline is further away.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// A slow catalog query is not a dead connection.
const PATIENCE_MIN: Duration = Duration::from_secs(1);
/// A client-side deadline leaves the server this much time to say itself that it gave up.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);
/// Closing a connection waits for the network at most this long.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);

/// The hint if only standbys answer.
pub(super) const STANDBY_HINT: &str = "Name all hosts in the database URL, so that walhouse finds \
                                       the primary; during a failover this resolves itself.";

const VERSION_NUM_MIN: u32 = 140_000;

/// A session on one server.
pub struct Sql {
    /// Taken out only to be dropped.
    client: Option<Client>,
    deadline: Deadline,
    link: LinkKind,
    is_broken: bool,
    statement_timeout: Duration,
    patience: Duration,
    about: About,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkKind {
    Tcp,
    /// The deadline cannot cut a read here, see the header of this file.
    Unix,
}

/// Ends a call on a session from another thread, as its deadline would; on TCP only.
pub struct Interrupt(Deadline);

impl Interrupt {
    pub fn interrupt(&self) {
        self.0.set(Instant::now());
    }
}

/// What the server reported about itself and the session at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// As in `server_version_num`, such as 150020.
    pub version_num: u32,
    pub in_recovery: bool,
    pub backend_pid: i32,
    pub database: String,
    pub role: String,
    pub texts: Texts,
}

impl Sql {
    /// Tries all hosts and all their addresses, each with a fair share of the time left.
    pub fn connect(
        params: &PostgresParams,
        application_name: &str,
        deadline: Instant,
    ) -> Result<Sql> {
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

    /// To the first host, which is a socket or has its address. The outer error is about our own
    /// settings, so that no other host can help.
    pub(super) fn connect_only(
        params: &PostgresParams,
        application_name: &str,
        until: Instant,
    ) -> Result<std::result::Result<Sql, SqlError>> {
        let host = params.hosts.first().expect("a host was chosen");
        Sql::connect_one(params, host, host.address, application_name, until)
    }

    /// The outer error is about our own settings, so that no other host can help.
    fn connect_one(
        params: &PostgresParams,
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
        let deadline = Deadline::new(until, params.halt.clone());
        let (link, client) = match address {
            Some(address) => {
                // With direct negotiation our connector gets the socket first: see its file.
                config
                    .host(&host.name)
                    .hostaddr(address)
                    .ssl_mode(Negotiate::Require)
                    .ssl_negotiation(SslNegotiation::Direct);
                let connector = connector::connector(params, &deadline)?;
                let connect = move || {
                    has_descriptors()?;
                    without_panic(|| config.connect(connector))
                };
                match params.halt.outlast(until, "connect", connect) {
                    Ok(client) => (LinkKind::Tcp, client?),
                    Err(error) => return Ok(Err(unreachable(error))),
                }
            }
            None => {
                if let Err(error) = probe(host, until) {
                    return Ok(Err(error));
                }
                config.host_path(&host.name).ssl_mode(Negotiate::Disable);
                has_descriptors()?;
                (LinkKind::Unix, without_panic(|| config.connect(NoTls))?)
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
            texts: Texts::default(),
        };
        let mut sql = Sql {
            client: Some(client),
            deadline,
            link,
            is_broken: false,
            statement_timeout: STATEMENT_TIMEOUT,
            patience: STATEMENT_TIMEOUT,
            about,
        };
        Ok(sql.begin_session(params.target, until).map(|()| sql))
    }

    fn begin_session(
        &mut self,
        target: TargetSession,
        until: Instant,
    ) -> std::result::Result<(), SqlError> {
        let mut settings = session_settings();
        settings.extend([
            format!("SET statement_timeout = {}", STATEMENT_TIMEOUT.as_millis()),
            "SELECT current_setting('server_version_num'), pg_is_in_recovery(), pg_backend_pid(),
                    current_database(), current_user, current_setting('server_encoding')"
                .to_owned(),
        ]);
        let rows = self.try_rows(&settings.join("; "), until)?;
        let row = rows.first().ok_or_else(|| protocol("expected one row about the session"))?;
        self.about = About {
            version_num: row.parse(0)?,
            in_recovery: row.bool(1)?,
            backend_pid: row.parse(2)?,
            database: row.required(3)?.to_owned(),
            role: row.required(4)?.to_owned(),
            texts: Texts::of(row.required(5)?),
        };
        if self.about.version_num < VERSION_NUM_MIN {
            return Err(SqlError::new(
                ErrorKind::Setup,
                format!("expected Postgres 14 or newer, got {}", self.about.version_num / 10_000),
            ));
        }
        // A server that is not in recovery is a primary, even if its sessions are read-only by
        // default.
        if target == TargetSession::ReadWrite && self.about.in_recovery {
            return Err(SqlError::new(ErrorKind::Unreachable, "server is a standby")
                .with_hint(STANDBY_HINT));
        }
        Ok(())
    }

    /// No answer for this long counts as a dead connection, whatever the caller's deadline; except
    /// for a call with a longer limit than any ordinary statement needs.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience.max(PATIENCE_MIN).min(STATEMENT_TIMEOUT);
    }

    /// Ends later calls before their deadlines.
    pub fn set_halt(&self, halt: &Halt) {
        self.deadline.set_halt(halt);
    }

    /// After an error within a transaction: else every later statement would be refused. If it
    /// fails, the next one says so.
    pub(super) fn roll_back(&mut self, deadline: Instant) {
        if self.is_usable() {
            // As nothing else is taken now, the timeout stays as it is; it may be undone with it.
            let waited = deadline.saturating_duration_since(Instant::now());
            let done = self.ask("ROLLBACK", waited, deadline, None);
            self.is_broken |= done.is_err_and(|error| error.is_fatal);
            self.statement_timeout = Duration::ZERO;
        }
    }

    /// Harmless between two calls.
    pub fn interrupt(&self) -> Interrupt {
        Interrupt(self.deadline.clone())
    }

    /// How to query and read text of the database's rows.
    pub fn texts(&self) -> Texts {
        self.about.texts
    }

    pub fn about(&self) -> &About {
        &self.about
    }

    /// False once the connection is known to be of no further use.
    pub fn is_usable(&self) -> bool {
        !self.is_broken && self.client.as_ref().is_some_and(|client| !client.is_closed())
    }

    /// The rows of all statements in `sql`, which may be several.
    pub fn rows(&mut self, doing: &str, sql: &str, deadline: Instant) -> Result<Vec<SqlRow>> {
        self.try_rows(sql, deadline).map_err(|error| error.doing(doing))
    }

    pub fn execute(&mut self, doing: &str, sql: &str, deadline: Instant) -> Result<()> {
        self.rows(doing, sql, deadline).map(drop)
    }

    /// Like [`Sql::rows`], for callers that distinguish SQLSTATEs.
    pub fn try_rows(
        &mut self,
        sql: &str,
        deadline: Instant,
    ) -> std::result::Result<Vec<SqlRow>, SqlError> {
        let now = Instant::now();
        let is_long = now + STATEMENT_TIMEOUT < deadline;
        let deadline = if is_long { deadline } else { deadline.min(now + self.patience) };
        let waited = deadline.saturating_duration_since(now);
        if waited.is_zero() {
            return Err(SqlError::new(ErrorKind::Unreachable, "no time left to ask"));
        }
        if self.deadline.is_halted() {
            return Err(unreachable(given_up()));
        }
        if !self.is_usable() {
            return Err(SqlError::new(ErrorKind::Unreachable, "connection closed"));
        }
        let done = self.ask(sql, waited, deadline, Some(self.timeout_of(waited)));
        if let Err(error) = &done {
            self.is_broken |= error.is_fatal;
        }
        done
    }

    fn timeout_of(&self, waited: Duration) -> Duration {
        match self.link {
            LinkKind::Unix => waited,
            LinkKind::Tcp if waited > STATEMENT_TIMEOUT => waited.saturating_sub(ANSWER_MARGIN),
            LinkKind::Tcp => STATEMENT_TIMEOUT,
        }
    }

    fn ask(
        &mut self,
        sql: &str,
        waited: Duration,
        deadline: Instant,
        statement_timeout: Option<Duration>,
    ) -> std::result::Result<Vec<SqlRow>, SqlError> {
        self.deadline.set(deadline);
        let client = self.client.as_mut().expect("the client is there until the drop");
        let asked_at = Instant::now();
        // Shorter than the limit if somebody ended the call.
        let read = |error: postgres::Error| SqlError::read(&error, waited.min(asked_at.elapsed()));
        if self.link == LinkKind::Unix {
            // The crate's own timeout is an error without a cause.
            client.is_valid(waited).map_err(|error| match error.source() {
                None if !error.is_closed() => no_answer(waited),
                _ => read(error),
            })?;
        }
        if let Some(statement_timeout) = statement_timeout
            && statement_timeout != self.statement_timeout
        {
            // Zero would be without end.
            let millis = statement_timeout.as_millis().max(1);
            client.batch_execute(&format!("SET statement_timeout = {millis}")).map_err(read)?;
            self.statement_timeout = statement_timeout;
        }
        let messages = client.simple_query(sql).map_err(read)?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(SqlRow(row)),
            _ => None,
        });
        Ok(rows.collect())
    }
}

impl Drop for Sql {
    fn drop(&mut self) {
        // The client says goodbye as it is dropped; a dead network must not hold that up.
        self.deadline.set(Instant::now() + CLOSE_TIMEOUT);
        if self.link == LinkKind::Unix && self.is_broken {
            // It first waits for outstanding answers, here without a deadline. If no thread can be
            // started, the closure is dropped in this one.
            let client = self.client.take();
            let _ = thread::Builder::new().name("close".into()).spawn(move || drop(client));
        }
    }
}

/// What every session sets, whatever its role or its database says.
pub(super) fn session_settings() -> Vec<String> {
    const SETTINGS: [(&str, &str); 9] = [
        // So that no object created by a user is called by accident.
        ("search_path", "pg_catalog"),
        // A policy that hides rows has to be an error: hidden would look deleted.
        ("row_security", "off"),
        // A managed server whose disk is full makes every session read-only by this default, for
        // applications to stop; so may a role. What we write (the publication, a message that has
        // WAL flushed) is what lets it remove WAL again.
        ("default_transaction_read_only", "off"),
        // The planner overrates what a query about the catalog costs: compiling it took 4.7 s,
        // running it 0.16 s.
        ("jit", "off"),
        ("lock_timeout", "10s"),
        ("idle_in_transaction_session_timeout", "60s"),
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
    ];
    let all = OUTPUT_SETTINGS.iter().chain(&SETTINGS);
    all.map(|(name, value)| format!("SET {name} = {}", literal(value))).collect()
}

/// One row, its values as text.
#[derive(Debug)]
pub struct SqlRow(SimpleQueryRow);

impl SqlRow {
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

/// The crate creates a runtime for each connection, and panics if there are no file descriptors for
/// it: so try to open more than it needs just before.
fn has_descriptors() -> Result<()> {
    const NEEDED: usize = 16;
    let files: std::io::Result<Vec<_>> =
        (0..NEEDED).map(|_| std::fs::File::open("/dev/null")).collect();
    files.map(drop).map_err(no_descriptors)
}

/// Other threads may have taken the descriptors that were there a moment ago.
fn without_panic<T>(connect: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(connect)).or_else(|panic| {
        let text = panic.downcast_ref::<String>().map_or("", String::as_str);
        match text.contains(NO_DESCRIPTORS) {
            true => Err(no_descriptors(NO_DESCRIPTORS)),
            false => resume_unwind(panic),
        }
    })
}

/// What the system says, of a process and of itself.
const NO_DESCRIPTORS: &str = "Too many open files";

fn no_descriptors(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Unreachable, "open a connection to Postgres")
        .because(cause)
        .hint("Raise the limit of open files: LimitNOFILE of the unit, or `ulimit -n`.")
}

pub(super) fn protocol(cause: impl Display) -> SqlError {
    // The connection itself is fine.
    SqlError { is_fatal: false, ..SqlError::new(ErrorKind::Protocol, cause.to_string()) }
}

fn unreachable(cause: std::io::Error) -> SqlError {
    SqlError::new(ErrorKind::Unreachable, cause.to_string())
}

fn no_answer(waited: Duration) -> SqlError {
    let text = format!("no answer within {:.1}s", waited.as_secs_f64());
    SqlError::new(ErrorKind::Unreachable, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: running out of descriptors between the check and the connection ends no thread.
    #[test]
    fn a_want_of_descriptors_is_an_error_and_another_panic_is_one() {
        let failed = |code| -> std::io::Result<()> { Err(std::io::Error::from_raw_os_error(code)) };
        // As the crate does.
        let unwrapped = |code| failed(code).unwrap();
        for code in [23, 24] {
            let error = without_panic(|| unwrapped(code)).expect_err("there are none");
            assert_eq!(error.kind(), ErrorKind::Unreachable);
            assert!(error.hint_text().is_some_and(|hint| hint.contains("LimitNOFILE")));
        }
        assert!(catch_unwind(|| without_panic(|| unwrapped(13))).is_err());
        assert_eq!(without_panic(|| 7).expect("it does not panic"), 7);
    }

    #[test]
    fn names_and_values_are_quoted() {
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("a'b"), "'a''b'");
        assert_eq!(literal("a\\b"), " E'a\\\\b'");
    }
}
