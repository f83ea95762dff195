//! What each thread that reads both sides and writes owns.

use std::time::Instant;

use super::parties::{MendingContext, SQL_TIMEOUT, connect, sql_deadline};
use crate::clickhouse::Client;
use crate::delivery::as_of::wait_until_flushed;
use crate::delivery::landing::Landing;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::copy::Copier;
use crate::postgres::reread::{Reread, RereadRequest, RereadRows, reread};
use crate::postgres::sql::Sql;
use crate::postgres::table_reader::AsOf;
use crate::rows::Block;
use crate::wal::row_key::KeyText;

/// What each worker owns.
pub struct Worker<'a> {
    pub with: &'a MendingContext<'a>,
    pub sql: Sql,
    pub client: Client,
    /// From one range that is copied to the next, with the memory of its rows.
    pub copier: Option<Copier>,
    pub blocks: Option<Vec<Block>>,
    /// By target table.
    pub landings: Vec<Landing<'a>>,
}

impl<'a> Worker<'a> {
    pub fn new(with: &'a MendingContext<'a>) -> Result<Worker<'a>> {
        let delivery = with.delivery;
        Ok(Worker {
            with,
            sql: connect(with)?,
            client: Client::connect(delivery.clickhouse)?,
            copier: None,
            blocks: None,
            landings: delivery.landings(with.member.targets()),
        })
    }

    /// Asks ClickHouse, again and again while it is away.
    pub fn ask<T>(
        &mut self,
        question: impl Fn(&mut Client, &dyn Fn() -> Instant) -> Result<T>,
    ) -> Result<T> {
        let (delivery, client) = (self.with.delivery, &mut self.client);
        let deadline = || Instant::now() + delivery.clickhouse.request_timeout;
        let hopeless = |error: &Error| error.kind() != ErrorKind::Unreachable;
        delivery.retry(|| question(client, &deadline), hopeless)
    }

    /// The rows of Postgres with these keys, in text form, as [`reread`] reads them.
    pub fn rows_of_keys(&mut self, columns: &[&str], keys: &[KeyText]) -> Result<RereadRows> {
        let MendingContext { member, page_bytes_max, .. } = self.with;
        let source = member.source();
        let request = RereadRequest {
            table: &member.found,
            key_columns: &source.key_names(),
            columns,
            keys,
            // Every wait for a transaction is over before.
            xids: &[],
            bytes_max: *page_bytes_max,
        };
        match reread(&mut self.sql, &request, SQL_TIMEOUT)? {
            Reread::Rows(rows) => Ok(rows),
            Reread::NotYetVisible { .. } => unreachable!("no transaction was named"),
        }
    }

    /// To be done before any row read is written, and before it counts as done: see
    /// [`crate::delivery::as_of`]. A fork below is then noticed, and the repair starts again.
    pub fn cover(&mut self, as_of: AsOf) -> Result<()> {
        let delivery = self.with.delivery;
        wait_until_flushed(&mut self.sql, delivery.alongside, as_of, sql_deadline())?;
        delivery.alongside.admit(as_of.insert_lsn)
    }

    /// To be asked before every page.
    pub fn go_on(&self) -> Result<()> {
        self.with.delivery.alongside.go_on()
    }
}
