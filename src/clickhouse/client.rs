//! One blocking connection to ClickHouse's HTTP interface; one value per thread.
//!
//! Each call as a whole has a deadline. An INSERT is not tried again here once it may have reached
//! the server: an answer that did not come is an unknown outcome, and the caller decides. Every
//! other statement may run twice: where a connection has left its host for another, it goes
//! there at once. What the bytes of a block mean is not known here.

use std::time::Instant;

use super::connection::Connection;
use super::fresh::{self, Reading};
use super::hosts::Hosts;
use super::insert_error::InsertError;
use super::params::ClickHouseParams;
use super::text::{BytesRow, each_row, parse_rows};
pub use super::text::{quote_bytes, quote_name};
use crate::error::{Error, ErrorKind, Result};
use crate::halt::Halt;

/// One row of an answer; `None` is NULL.
pub type TextRow = Vec<Option<String>>;

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

/// Belongs to one thread: each makes its own.
pub struct Client {
    connection: Connection,
}

impl Client {
    /// Builds the client; nothing is sent yet.
    pub fn connect(params: &ClickHouseParams) -> Result<Client> {
        Ok(Client { connection: Connection::open(params)? })
    }

    /// From now on requests are given up when this says so.
    pub fn set_halt(&mut self, halt: &Halt) {
        self.connection.set_halt(halt);
    }

    /// The database of the target tables and of our own.
    pub fn database(&self) -> &str {
        &self.params().database
    }

    pub fn params(&self) -> &ClickHouseParams {
        self.connection.params()
    }

    pub(super) fn hosts(&self) -> &Hosts {
        self.connection.hosts()
    }

    /// Another process may have written to the table, through another host: the next read must see
    /// that.
    pub(super) fn expect_others(&self, table: &str) {
        if 1 < self.hosts().count() {
            self.hosts().forget_fresh_of(table);
        }
    }

    /// The host that the last statement went to.
    pub fn endpoint(&self) -> &str {
        self.connection.endpoint()
    }

    /// `table` in our database, quoted.
    pub fn qualified(&self, table: &str) -> String {
        self.connection.qualified(table)
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

    /// As [`Client::query_bytes`], for many rows: it calls `take` for each, which returns `None`
    /// for one that is not as expected.
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

    /// The same for a block that is built while it is sent: `pieces` gets the approximate length of
    /// each piece, and is called for all of them again if the INSERT must be written differently.
    /// There is at least one.
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
        let to = &mut self.connection;
        to.follow().map_err(InsertError::Retry)?;
        fresh::before_insert(to, table, deadline).map_err(InsertError::Retry)?;
        to.insert(sql, table, columns, settings, pieces, deadline)
    }

    fn select(
        &mut self,
        sql: &str,
        reads: &[&str],
        settings: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Vec<u8>> {
        let to = &mut self.connection;
        let mut tries = 1;
        loop {
            let outcome = to.follow().and_then(|()| {
                let mut settings = settings.to_vec();
                if fresh::before_select(to, reads, deadline)? == Reading::Shared {
                    settings.push(("select_sequential_consistency", "1"));
                }
                to.select(sql, &settings, deadline)
            });
            let Err(error) = outcome else { return outcome };
            let may_try = error.kind() == ErrorKind::Unreachable && Instant::now() < deadline;
            if !to.is_left_behind() || !may_try || to.hosts().count() <= tries {
                return Err(error);
            }
            tries += 1;
        }
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
