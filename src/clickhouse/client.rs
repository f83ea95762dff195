//! One blocking connection to ClickHouse's HTTP interface; one value per thread.
//!
//! Each call has a deadline over the whole of it. An INSERT is not tried again here once it may
//! have reached the server: an answer that did not come is an unknown outcome, and the caller
//! decides. Where there are several hosts, one that is not reached or cannot take part is left by
//! all clients together, and every other statement, each of which may run twice, goes to the next
//! one at once. What the bytes of a block mean is not known here.

use std::time::Instant;

use bytes::Bytes;
use clickhouse::Compression;
use clickhouse::insert_formatted::CompressedData;

use super::fresh::{self, Reading};
use super::hosts::Hosts;
use super::insert_settings::{self, JSON_TYPE, JSON_TYPE_OLD, Unknown};
use super::params::Params;
use super::refusal::{Refusal, Verdict};
use super::text::parse_rows;
pub use super::text::{quote_bytes, quote_name};
use super::transport::{Failure, Transport, certificate_hint};
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

/// Belongs to one thread: each makes its own.
pub struct Client {
    params: Params,
    transport: Transport,
    /// Which host the transport leads to.
    generation: u64,
    unknown: Unknown,
}

impl Client {
    /// Builds the client; nothing is sent yet.
    pub fn connect(params: &Params) -> Result<Client> {
        let generation = params.hosts.generation();
        let transport = Transport::new(params, params.hosts.endpoint(generation))?;
        Ok(Client { params: params.clone(), transport, generation, unknown: Unknown::default() })
    }

    /// The database of the target tables and of our own.
    pub fn database(&self) -> &str {
        &self.params.database
    }

    pub fn params(&self) -> &Params {
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
        let rows = self.query("SELECT version()", deadline)?;
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
        self.select(sql, &[], deadline).map(drop)
    }

    /// A statement with rows, read as text. Meant for small answers: all of it is held in memory.
    pub fn query(&mut self, sql: &str, deadline: Instant) -> Result<Vec<TextRow>> {
        self.query_with(sql, &[], deadline)
    }

    /// As [`Client::query`], with settings.
    pub(super) fn query_with(
        &mut self,
        sql: &str,
        settings: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Vec<TextRow>> {
        let rows = self.rows(sql, settings, deadline)?;
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
        self.rows(sql, &[], deadline)
    }

    fn rows(
        &mut self,
        sql: &str,
        settings: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Vec<Vec<Option<Vec<u8>>>>> {
        let answer = self.select(sql, settings, deadline)?;
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
        self.follow().map_err(InsertError::Retry)?;
        fresh::before_insert(self, table, deadline).map_err(InsertError::Retry)?;
        loop {
            let query_id = new_query_id();
            let doing = format!("insert into `{table}` as query `{query_id}`");
            let mut insert = self
                .transport
                .inserts
                .insert_formatted_with(sql.as_str())
                .with_setting("query_id", query_id);
            for (name, value) in insert_settings::of_insert(&self.params, &self.unknown, settings) {
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
                Ok(()) => {
                    if self.hosts().generation() != self.generation {
                        // Others may have looked at the new host before this was acknowledged.
                        self.hosts().forget_fresh();
                    }
                    return Ok(());
                }
                Err(failure) => {
                    let refusal = self.settle(failure, &doing, columns);
                    let refusal = refusal.map_err(InsertError::Retry)?;
                    if self.unknown.note(&refusal, settings) {
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

    fn select(
        &mut self,
        sql: &str,
        settings: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Vec<u8>> {
        let mut tries = 1;
        loop {
            let outcome = self.follow().and_then(|()| {
                let mut settings = settings.to_vec();
                if fresh::before_select(self, sql, deadline)? == Reading::Shared {
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
            let mut query = self
                .transport
                .queries
                .query_raw(sql)
                .with_setting("query_id", query_id)
                // The whole answer is ready before its status line is sent.
                .with_setting("wait_end_of_query", "1");
            for (name, value) in settings {
                query = query.with_setting(*name, *value);
            }
            if sql.starts_with("CREATE TABLE") {
                let name = if self.unknown.contains(JSON_TYPE) { JSON_TYPE_OLD } else { JSON_TYPE };
                if !self.unknown.contains(name) {
                    query = query.with_setting(name, "1");
                }
            }
            let fetch = async { query.fetch_bytes("TabSeparated")?.collect().await };
            match self.transport.wait(fetch, deadline) {
                Ok(answer) => return Ok(answer.to_vec()),
                Err(failure) => {
                    let refusal = self.settle(failure, &doing, &[])?;
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
            log::warn!("clickhouse: `{host}` is left for `{next}`: {cause}");
        }
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
                    if refusal.is_of_host() {
                        self.leave(&refusal.to_string());
                    }
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
        let hint = certificate_hint(&cause);
        self.leave(&cause);
        let doing = format!("{doing} at `{}`", self.endpoint());
        let error = Error::new(kind, doing).because(cause);
        let error = match hint {
            Some(hint) => error.hint(hint),
            None => error,
        };
        // A broken connection may still hold half of a request: none of them is used again.
        self.transport = Transport::new(&self.params, self.endpoint())?;
        Err(error)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
