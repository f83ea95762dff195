//! Asks Postgres for values that the stream left out (unchanged TOAST), and waits until the server
//! shows the transactions that it has streamed.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::delivery::as_of::wait_until_flushed;
use crate::delivery::context::DeliveryContext;
use crate::delivery::member::Member;
use crate::error::{ErrorKind, Result};
use crate::machines::thinning::Thinning;
use crate::postgres::primary::Primary;
use crate::postgres::reread::{Reread, RereadRequest, RereadRows, reread};
use crate::postgres::sql::Sql;
use crate::services::assemble::Missing;
use crate::services::fold::Folded;
use crate::services::row::TextValues;
use crate::telling::tell;
use crate::wal::Lsn;

/// How soon to query values again when their transaction is not yet visible.
const VISIBLE_EVERY: Duration = Duration::from_millis(20);
/// A warning after this many such waits, about five seconds, then after twice as many.
const INVISIBLE_TOLD_AFTER: u32 = 250;
/// One statement against Postgres.
const SQL_TIMEOUT: Duration = Duration::from_secs(30);
/// Then the session ends. A Postgres that shuts down accepts no new connections and waits until its
/// walsenders hear that everything is flushed; waiting for it in turn would last for ever.
const REREAD_ATTEMPTS_MAX: u32 = 3;

/// What a flusher asks with.
#[derive(Clone, Copy)]
pub struct RereadContext<'a> {
    pub delivery: DeliveryContext<'a>,
    /// The server of the stream: no other one has exactly the same rows.
    pub primary: &'a Primary,
    pub application_name: &'a str,
    /// What one answer may take of memory.
    pub bytes_max: usize,
}

/// Values read again.
#[derive(Default)]
pub struct RereadValues {
    /// In the order of [`Missing::places`].
    pub by_entry: hashbrown::HashMap<usize, TextValues>,
    /// The commits that they may come from, in addition to those of the batch, end here at the
    /// latest.
    pub as_of: Lsn,
}

pub struct Rereading<'a> {
    with: RereadContext<'a>,
    /// Opened when a value must be read again, which with REPLICA IDENTITY FULL is never.
    sql: Option<Sql>,
}

impl<'a> Rereading<'a> {
    pub fn new(with: RereadContext<'a>) -> Rereading<'a> {
        Rereading { with, sql: None }
    }

    /// Reads values that the stream left out, for the entries from `begin` on, until they fill
    /// their share of memory. Returns them by entry, and the first entry that still lacks its own.
    ///
    /// They may be newer than the change; then the change that made them so is still to come.
    pub fn reread(
        &mut self,
        member: &Member,
        folded: &Folded<'_>,
        wanted: &Missing,
        begin: usize,
    ) -> Result<(RereadValues, usize)> {
        let entries = || wanted.rereads.iter().copied().skip_while(|entry| *entry < begin);
        if entries().next().is_none() {
            return Ok((RereadValues::default(), folded.entries.len()));
        }
        let source = member.source();
        let columns: Vec<&str> =
            wanted.places.iter().map(|place| &*source.columns[place].name).collect();
        let mut xids: Vec<u32> = folded.entries.iter().map(|entry| entry.xid).collect();
        xids.sort_unstable();
        xids.dedup();
        let (mut known, mut keys) = (hashbrown::HashMap::<&[u8], usize>::new(), Vec::new());
        for entry in entries() {
            known.entry(&*folded.entries[entry].id).or_insert_with(|| {
                keys.push(folded.key_texts(source, entry));
                keys.len() - 1
            });
        }
        let request = RereadRequest {
            table: &member.found,
            key_columns: &source.key_names(),
            columns: &columns,
            keys: &keys,
            xids: &xids,
            bytes_max: self.with.bytes_max,
        };
        let rows = self.ask_until_visible(&request)?;
        self.with.delivery.metrics.toast_rereads.inc_by(rows.answered as u64);
        let key_of = |entry: usize| known[&*folded.entries[entry].id];
        let end = entries().find(|entry| rows.answered <= key_of(*entry));
        let end = end.unwrap_or(folded.entries.len());
        // A key may stand behind several entries of the batch only if its row came back to life.
        let by_entry = entries()
            .take_while(|entry| *entry < end)
            .filter_map(|entry| Some((entry, rows.found.get(&key_of(entry))?.clone())));
        // A table that has moved on, or a row that is gone: that may be of a commit still to come.
        let as_of = if rows.is_as_streamed { Lsn(0) } else { rows.as_of.insert_lsn };
        let values = RereadValues { by_entry: by_entry.collect(), as_of };
        Ok((values, end))
    }

    pub fn ask_until_visible(&mut self, request: &RereadRequest<'_>) -> Result<RereadRows> {
        let (with, sql) = (self.with, &mut self.sql);
        let (mut waits, mut thinning) = (0_u32, Thinning::default());
        loop {
            let attempts = Cell::new(0);
            let answer = with.delivery.retry(
                || {
                    attempts.set(attempts.get() + 1);
                    ask(sql, with, request)
                },
                |error| error.kind() == ErrorKind::Setup || REREAD_ATTEMPTS_MAX <= attempts.get(),
            )?;
            let transactions = match answer {
                Reread::Rows(rows) => return Ok(rows),
                Reread::NotYetVisible { transactions } => transactions,
            };
            waits = waits.saturating_add(1);
            if waits.is_multiple_of(INVISIBLE_TOLD_AFTER) && thinning.on_repeat() {
                let line = format_args!(
                    "{transactions} transactions were streamed but are not visible yet, so their \
                     unchanged values cannot be read again; nothing is flushed meanwhile"
                );
                let hint = format!(
                    "Their COMMIT waits for a synchronous standby. If `synchronous_standby_names` \
                     admits `{}`, each waits for the other: take it out, or ALTER TABLE ... \
                     REPLICA IDENTITY FULL.",
                    with.application_name
                );
                tell(log::Level::Warn, with.delivery.service, line, Some(&hint));
            }
            with.delivery.alongside.pause(Instant::now() + VISIBLE_EVERY)?;
        }
    }
}

fn ask(
    sql: &mut Option<Sql>,
    with: RereadContext<'_>,
    request: &RereadRequest<'_>,
) -> Result<Reread> {
    let deadline = || Instant::now() + SQL_TIMEOUT;
    let mut open = match sql.take().filter(Sql::is_usable) {
        Some(open) => open,
        None => with.primary.sql(with.application_name, deadline())?,
    };
    let answer = reread(&mut open, request, SQL_TIMEOUT).and_then(|answer| {
        if let Reread::Rows(rows) = &answer
            && !rows.is_as_streamed
        {
            wait_until_flushed(&mut open, with.delivery.alongside, rows.as_of, deadline())?;
        }
        Ok(answer)
    });
    // After an error a fresh connection is the safe one.
    if answer.is_ok() {
        *sql = Some(open);
    }
    answer
}
