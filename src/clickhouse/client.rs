//! One blocking connection to ClickHouse's HTTP interface; one value per thread.
//!
//! Each call has a deadline over the whole of it. An INSERT is not tried again here once it may
//! have reached the server: an answer that did not come is an unknown outcome, and the caller
//! decides. Where there are several hosts, one that is not reached or cannot take part is left by
//! all clients together, and every other statement, each of which may run twice, goes to the next
//! one at once. What the bytes of a block mean is not known here.

use std::time::Instant;

use bytes::Bytes;

use super::answer::{self, Answer, Said};
use super::frame;
use super::fresh::{self, Reading};
use super::hosts::Hosts;
use super::insert_settings::{self, JSON_TYPE, JSON_TYPE_OLD, Unknown};
use super::params::ClickHouseParams;
use super::refusal::{Refusal, RefusalVerdict};
use super::text::{BytesRow, each_row, parse_rows};
pub use super::text::{quote_bytes, quote_name};
use super::transport::{Failure, Transport, certificate_hint};
use crate::error::{Error, ErrorKind, Result};
use crate::halt::Halt;

/// One row of an answer; `None` is NULL.
pub type TextRow = Vec<Option<String>>;

/// Why an INSERT did not succeed.
#[derive(Debug)]
pub enum InsertError {
    /// ClickHouse was not reached, did not answer, or cannot take any block now. The rows may be in
    /// the table or not; sending the same block again is right.
    Retry(Error),
    /// The same, and the connection was lost amid the request: a proxy may have ended it for being
    /// too large.
    Lost(Error),
    /// The same, and less at a time may be taken: it was too large, or took too long.
    Large(Error),
    /// The rows themselves were refused, or for what is not known. The same block will be refused
    /// again; a part of it may not.
    Data(Box<Refusal>),
    /// The table may have taken the rows; a view behind it refused them.
    View(Box<Refusal>),
    /// The same, for a limit: it may take less at a time.
    LargeForView(Box<Refusal>),
}

/// Raw bytes per compressed frame. ClickHouse writes frames of this size itself.
const FRAME_BYTES: usize = 1 << 20;
/// Of what is not compressed, so that it is still in the cache when it goes to the socket.
const PLAIN_BYTES: usize = 1 << 18;
/// What ClickHouse parses of a statement by default is a little more (`max_query_size`, 256 KiB).
const STATEMENT_BYTES_PLAIN: usize = 250_000;
/// Reading ends with the first row, but the limits of a profile are held against all that there is
/// to read; and where reading just stopped at one, the INSERT would write nothing, unseen.
const READ_OF_ONE_ROW: [(&str, &str); 6] = [
    ("max_rows_to_read", "0"),
    ("max_rows_to_read_leaf", "0"),
    ("max_bytes_to_read", "0"),
    ("max_bytes_to_read_leaf", "0"),
    ("max_columns_to_read", "0"),
    ("max_partitions_to_read", "-1"),
];
/// By it a query is known as ours.
pub const QUERY_ID_PREFIX: &str = "walhouse-";

/// Belongs to one thread: each makes its own.
pub struct Client {
    params: ClickHouseParams,
    transport: Transport,
    /// Which host the transport leads to.
    generation: u64,
    unknown: Unknown,
}

impl InsertError {
    /// What an operator is told, where nothing depends on the kind.
    pub fn into_error(self, table: &str) -> Error {
        match self {
            InsertError::Retry(error) | InsertError::Lost(error) | InsertError::Large(error) => {
                error
            }
            InsertError::Data(refusal)
            | InsertError::View(refusal)
            | InsertError::LargeForView(refusal) => {
                refused(format!("insert into `{table}`"), *refusal)
            }
        }
    }
}

impl Client {
    /// Builds the client; nothing is sent yet.
    pub fn connect(params: &ClickHouseParams) -> Result<Client> {
        let generation = params.hosts.generation();
        let transport = Transport::new(params, params.hosts.endpoint(generation))?;
        Ok(Client { params: params.clone(), transport, generation, unknown: Unknown::default() })
    }

    /// From now on requests are given up when this says so.
    pub fn set_halt(&mut self, halt: &Halt) {
        self.params.halt = halt.clone();
        self.transport.halt = halt.clone();
    }

    /// The database of the target tables and of our own.
    pub fn database(&self) -> &str {
        &self.params.database
    }

    pub fn params(&self) -> &ClickHouseParams {
        &self.params
    }

    pub(super) fn hosts(&self) -> &Hosts {
        &self.params.hosts
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Another process may have written to the table, through another host: what is read next is
    /// to have that.
    pub(super) fn expect_others(&self, table: &str) {
        if 1 < self.hosts().count() {
            self.hosts().forget_fresh_of(table);
        }
    }

    /// The host that the last statement went to.
    pub fn endpoint(&self) -> &str {
        self.params.hosts.endpoint(self.generation)
    }

    /// `table` in our database, quoted.
    pub fn qualified(&self, table: &str) -> String {
        format!("{}.{}", quote_name(&self.params.database), quote_name(table))
    }

    /// The server's version: it is ClickHouse, it is there, and it lets us in.
    pub fn ping(&mut self, deadline: Instant) -> Result<String> {
        let rows = self.query("SELECT version()", &[], deadline)?;
        match rows.as_slice() {
            [row] => match row.as_slice() {
                [Some(version)] if version.contains('.') => Ok(version.clone()),
                _ => Err(not_clickhouse(self.endpoint())),
            },
            _ => Err(not_clickhouse(self.endpoint())),
        }
    }

    /// A statement without rows: DDL.
    pub fn execute(&mut self, sql: &str, deadline: Instant) -> Result<()> {
        self.select(sql, &[], &[], deadline).map(drop)
    }

    /// A statement with rows, read as text. Meant for small answers: all of it is held in memory.
    /// `reads` are the tables of our database that it reads: they are brought up to date before.
    pub fn query(&mut self, sql: &str, reads: &[&str], deadline: Instant) -> Result<Vec<TextRow>> {
        self.query_with(sql, reads, &[], deadline)
    }

    /// As [`Client::query`], with settings.
    pub(super) fn query_with(
        &mut self,
        sql: &str,
        reads: &[&str],
        settings: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Vec<TextRow>> {
        let rows = self.rows(sql, reads, settings, deadline)?;
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
        reads: &[&str],
        deadline: Instant,
    ) -> Result<Vec<Vec<Option<Vec<u8>>>>> {
        self.rows(sql, reads, &[], deadline)
    }

    /// As [`Client::query_bytes`], for many rows: `take` is given one after the other, and has
    /// `None` for one that is not what was asked for.
    pub(super) fn query_each(
        &mut self,
        sql: &str,
        reads: &[&str],
        settings: &[(&str, &str)],
        deadline: Instant,
        take: impl FnMut(BytesRow) -> Option<()>,
    ) -> Result<()> {
        let answer = self.select(sql, reads, settings, deadline)?;
        each_row(&answer, take).ok_or_else(malformed_answer)
    }

    fn rows(
        &mut self,
        sql: &str,
        reads: &[&str],
        settings: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Vec<Vec<Option<Vec<u8>>>>> {
        let answer = self.select(sql, reads, settings, deadline)?;
        parse_rows(&answer).ok_or_else(malformed_answer)
    }

    /// Sends `block`, the bytes of one or more Native blocks holding exactly `columns`, and waits
    /// until ClickHouse has taken it. `settings` are added to ours and win over them. An empty
    /// `block` is nothing to insert.
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
        self.send(&sql, table, columns, settings, pieces, deadline)
    }

    /// Inserts a row that the table has once more, exactly as it is. False: it has none.
    pub fn insert_again(
        &mut self,
        table: &str,
        condition: &str,
        settings: &[(&str, &str)],
        deadline: Instant,
    ) -> std::result::Result<bool, InsertError> {
        let name = self.qualified(table);
        let from = format!("FROM {name} WHERE {condition} LIMIT 1");
        let settings = [&READ_OF_ONE_ROW[..], settings].concat();
        let found = self
            .query_with(&format!("SELECT 1 {from}"), &[table], &READ_OF_ONE_ROW, deadline)
            .map_err(InsertError::Retry)?;
        if found.is_empty() {
            return Ok(false);
        }
        let sql = format!(
            "INSERT INTO {name} SELECT * {from} \
             SETTINGS asterisk_include_materialized_columns = 0, asterisk_include_alias_columns = 0"
        );
        self.send(&sql, table, &[], &settings, |_| std::iter::empty(), deadline)?;
        Ok(true)
    }

    fn send<P: Iterator<Item = Vec<u8>>>(
        &mut self,
        sql: &str,
        table: &str,
        columns: &[&str],
        settings: &[(&str, &str)],
        pieces: impl Fn(usize) -> P,
        deadline: Instant,
    ) -> std::result::Result<(), InsertError> {
        self.follow().map_err(InsertError::Retry)?;
        fresh::before_insert(self, table, deadline).map_err(InsertError::Retry)?;
        loop {
            let query_id = new_query_id();
            let doing = format!("insert into `{table}` as query `{query_id}`");
            let ours = insert_settings::of_insert(&self.params, &self.unknown, settings);
            let mut parameters = vec![("query", sql), ("query_id", query_id.as_str())];
            parameters.extend(ours.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            // Without a body there is nothing to decompress.
            let answer = if self.params.compress && !columns.is_empty() {
                parameters.push(("decompress", "1"));
                // A piece with a large value at its end may be many times as long as asked for.
                let frames = pieces(FRAME_BYTES).flat_map(|piece| {
                    let parts = piece.chunks(2 * FRAME_BYTES).map(frame::lz4);
                    parts.map(Bytes::from).collect::<Vec<_>>()
                });
                self.transport.send(&parameters, frames, deadline)
            } else {
                self.transport.send(&parameters, pieces(PLAIN_BYTES).map(Bytes::from), deadline)
            };
            match self.settle(answer, &query_id, &doing, Some(columns)) {
                Ok(Ok(_)) => {
                    if self.hosts().generation() != self.generation {
                        // Others may have looked at the new host before this was acknowledged.
                        self.hosts().forget_fresh();
                    }
                    return Ok(());
                }
                Ok(Err(refusal)) => {
                    if self.unknown.note(&refusal, settings) {
                        continue;
                    }
                    return Err(match refusal.verdict() {
                        RefusalVerdict::Data | RefusalVerdict::Unknown => {
                            InsertError::Data(Box::new(refusal))
                        }
                        RefusalVerdict::View => InsertError::View(Box::new(refusal)),
                        RefusalVerdict::Size if refusal.view.is_some() => {
                            InsertError::LargeForView(Box::new(refusal))
                        }
                        RefusalVerdict::Size => InsertError::Large(refused(doing, refusal)),
                        RefusalVerdict::Setup | RefusalVerdict::Busy => {
                            InsertError::Retry(refused(doing, refusal))
                        }
                    });
                }
                Err(NoAnswer { error, why }) => {
                    return Err(match why {
                        Why::Away => InsertError::Retry(error),
                        Why::Lost => InsertError::Lost(error),
                        Why::Large => InsertError::Large(error),
                    });
                }
            }
        }
    }

    fn select(
        &mut self,
        sql: &str,
        reads: &[&str],
        settings: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Vec<u8>> {
        let mut tries = 1;
        loop {
            let outcome = self.follow().and_then(|()| {
                let mut settings = settings.to_vec();
                if fresh::before_select(self, reads, deadline)? == Reading::Shared {
                    settings.push(("select_sequential_consistency", "1"));
                }
                self.select_here(sql, &settings, deadline)
            });
            let Err(error) = outcome else { return outcome };
            let has_moved = self.hosts().generation() != self.generation;
            let may_try = error.kind() == ErrorKind::Unreachable && Instant::now() < deadline;
            if !has_moved || !may_try || self.hosts().count() <= tries {
                return Err(error);
            }
            tries += 1;
        }
    }

    /// To the host that the transport leads to, whatever it has.
    pub(super) fn select_here(
        &mut self,
        sql: &str,
        settings: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Vec<u8>> {
        loop {
            let query_id = new_query_id();
            let doing = format!("run {} as query `{query_id}`", verb_of(sql));
            let mut parameters = vec![
                ("query_id", query_id.as_str()),
                ("default_format", "TabSeparated"),
                // The whole answer is ready before its status line is sent.
                ("wait_end_of_query", "1"),
            ];
            // The caller's come last and win.
            for setting in self.unknown.of_statement() {
                parameters.push(setting);
            }
            parameters.extend_from_slice(settings);
            let bytes_max = (2 * sql.len()).to_string();
            if STATEMENT_BYTES_PLAIN < sql.len() {
                parameters.push(("max_query_size", &bytes_max));
            }
            if sql.starts_with("CREATE TABLE") {
                let name = if self.unknown.contains(JSON_TYPE) { JSON_TYPE_OLD } else { JSON_TYPE };
                if !self.unknown.contains(name) {
                    parameters.push((name, "1"));
                }
            }
            let answer = self.transport.ask(sql, &parameters, deadline);
            let answer = self.settle(answer, &query_id, &doing, None);
            match answer.map_err(|none| none.error)? {
                Ok(rows) => return Ok(rows.to_vec()),
                Err(refusal) => {
                    if !self.unknown.note(&refusal, &[]) {
                        return Err(refused(doing, refusal));
                    }
                }
            }
        }
    }

    /// Goes where all clients have gone.
    fn follow(&mut self) -> Result<()> {
        let generation = self.hosts().generation();
        if generation != self.generation {
            let endpoint = self.hosts().endpoint(generation);
            if endpoint != self.endpoint() {
                self.transport = Transport::new(&self.params, endpoint)?;
            }
            self.generation = generation;
        }
        Ok(())
    }

    /// Leaves this host, and all clients with it, if there is another one.
    pub(super) fn leave(&self, cause: &str) {
        if let Some(next) = self.hosts().move_on(self.generation) {
            let host = self.endpoint();
            log::warn!("clickhouse: switching from `{host}` to `{next}`: {cause}");
        }
    }

    /// ClickHouse's own yes or no, or the error that stands for everything else. After anything
    /// but an answer, the connections are thrown away.
    fn settle(
        &mut self,
        answer: std::result::Result<Answer, Failure>,
        query_id: &str,
        doing: &str,
        insert_of: Option<&[&str]>,
    ) -> std::result::Result<std::result::Result<Bytes, Refusal>, NoAnswer> {
        let unreachable = ErrorKind::Unreachable;
        let (kind, why, cause, hint) = match answer {
            Ok(answer) => match answer::read(answer, query_id, QUERY_ID_PREFIX, insert_of) {
                Said::Done(rows) => return Ok(Ok(rows)),
                Said::Refused(refusal) => {
                    if refusal.is_of_host() {
                        self.leave(&refusal.to_string());
                    }
                    return Ok(Err(refusal));
                }
                Said::Foreign(foreign) => {
                    let why = if foreign.is_of_size() { Why::Large } else { Why::Away };
                    (unreachable, why, Cause::from(foreign), Some(foreign.hint()))
                }
            },
            Err(Failure::Halted) => {
                // The server may be well; half of the request is nobody's, though.
                let error = Error::new(ErrorKind::Stopped, doing).because("walhouse gave it up");
                return Err(match Transport::new(&self.params, self.endpoint()) {
                    Ok(transport) => {
                        self.transport = transport;
                        NoAnswer { error, why: Why::Away }
                    }
                    Err(error) => NoAnswer { error, why: Why::Away },
                });
            }
            Err(Failure::Late) => {
                (unreachable, Why::Large, "no answer in time".into(), Some(LATE_HINT))
            }
            Err(Failure::Connect(cause)) => {
                let hint = certificate_hint(&cause);
                (unreachable, Why::Away, cause.into(), hint)
            }
            Err(Failure::Lost(cause)) => (unreachable, Why::Lost, cause.into(), None),
            Err(Failure::Invalid(cause)) => (ErrorKind::Setup, Why::Away, cause.into(), None),
        };
        self.leave(&cause.to_string());
        let doing = format!("{doing} at `{}`", self.endpoint());
        let error = Error::new(kind, doing).because(cause);
        let error = match hint {
            Some(hint) => error.hint(hint),
            None => error,
        };
        // A broken connection may still hold half of a request: none of them is used again.
        match Transport::new(&self.params, self.endpoint()) {
            Ok(transport) => self.transport = transport,
            Err(error) => return Err(NoAnswer { error, why: Why::Away }),
        }
        Err(NoAnswer { error, why })
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What became of the statement is not known.
struct NoAnswer {
    error: Error,
    why: Why,
}

enum Why {
    Away,
    Lost,
    Large,
}

const LATE_HINT: &str = "See in system.processes and system.query_log why it takes so long; raise \
                         `request_timeout` in *_REPLICATION_CLICKHOUSE_URL if that is normal.";

fn refused(doing: String, refusal: Refusal) -> Error {
    let kind = match refusal.verdict() {
        RefusalVerdict::Data => ErrorKind::DataRefused,
        RefusalVerdict::Setup => ErrorKind::Setup,
        RefusalVerdict::View => ErrorKind::Setup,
        RefusalVerdict::Busy | RefusalVerdict::Size | RefusalVerdict::Unknown => {
            ErrorKind::Unreachable
        }
    };
    let hint = refusal.hint();
    let error = Error::new(kind, doing).because(refusal);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn malformed_answer() -> Error {
    Error::new(ErrorKind::Protocol, "read an answer of ClickHouse")
        .because("its rows are not what the query asks for")
}

fn not_clickhouse(endpoint: &str) -> Error {
    Error::new(ErrorKind::Setup, format!("greet ClickHouse at `{endpoint}`"))
        .because("something else answers there")
        .hint("Give the address of ClickHouse's HTTP interface (port 8123, or 8443 with TLS).")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_named_by_their_verb_alone() {
        assert_eq!(verb_of("SELECT 'hunter2'"), "`SELECT`");
        assert_eq!(verb_of(""), "`a statement`");
    }
}
