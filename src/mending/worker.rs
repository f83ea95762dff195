//! What each thread that reads both sides and writes owns.

use std::time::Instant;

use super::parties::{MendingContext, connect, sql_deadline};
use crate::clickhouse::Client;
use crate::delivery::as_of::wait_until_flushed;
use crate::delivery::landing::Landing;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sql::Sql;
use crate::postgres::table_reader::AsOf;

/// What each worker owns.
pub struct Worker<'a> {
    pub with: &'a MendingContext<'a>,
    pub sql: Sql,
    pub client: Client,
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
