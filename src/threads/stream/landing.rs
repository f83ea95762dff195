//! Lands one block in one table: retried for ever, and where rows themselves are refused, by
//! [`Salvage`]'s plan.

use std::time::Instant;

use super::position::Position;
use crate::clickhouse::client::InsertError;
use crate::clickhouse::refusal::Refusal;
use crate::clickhouse::refused::{self, RefusedPart, RefusedRow};
use crate::clickhouse::{self, Client};
use crate::error::{Error, Result};
use crate::machines::salvage::{Documents, Salvage, Step, Streak};
use crate::metrics::{Outage, ServiceMetrics, TableMetrics};
use crate::rows::column::Values;
use crate::rows::{Block, document, native};
use crate::services::mapping::{Kept, Target};
use crate::threads::outage::{Delays, retry, wait};
use crate::threads::shared::Shared;
use crate::wal::Lsn;

/// This many rows refused as a whole, with nothing landing in between, and it is the table that is
/// wrong, not the rows.
const REFUSED_IN_A_ROW_MAX: u32 = 10;

/// What landing rows takes, whoever lands them: a flusher or a repair.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    pub service: &'static str,
    pub clickhouse: &'a clickhouse::Params,
    pub delays: Delays,
    pub shared: &'a Shared,
    pub position: &'a Position,
    pub metrics: &'a ServiceMetrics,
}

impl<'a> Ground<'a> {
    /// For one thread: what it keeps for each table.
    pub fn landings(&self, targets: &'static [Target]) -> Vec<Landing<'a>> {
        targets.iter().map(|target| Landing::new(target, self.metrics)).collect()
    }

    /// [`retry`] with the waits of a flush, while ClickHouse or Postgres is away.
    pub fn retry<T>(
        &self,
        attempt: impl FnMut() -> Result<T>,
        hopeless: impl Fn(&Error) -> bool,
    ) -> Result<T> {
        let outage = &self.metrics.insert_outage;
        retry(self.shared, self.delays, self.service, outage, || {}, attempt, hopeless)
    }

    /// Admits that rows of commits up to `upper` may come, before any of them does.
    pub fn reserve(&self, upper: Lsn) -> Result<()> {
        self.position.set_upper(upper);
        self.shared.wait_for_reservation(upper)
    }

    /// Keeps what ClickHouse would not take in full, before its batch counts as durable.
    pub fn keep(&self, client: &mut Client, rows: &[RefusedRow]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let timeout = self.clickhouse.request_timeout;
        self.retry(|| refused::write(client, rows, Instant::now() + timeout), |_| false)?;
        log::warn!(
            "{}: {} values or rows that ClickHouse does not take as they are were kept in \
             `walhouse_refused_rows`",
            self.service,
            rows.len()
        );
        Ok(())
    }

    pub fn kept_rows(&self, kept: Vec<Kept>) -> Vec<RefusedRow> {
        let row = |kept: Kept| RefusedRow {
            service: self.service.to_owned(),
            table: kept.table.to_owned(),
            key: kept.key,
            version: kept.version,
            what: RefusedPart::Column(kept.column.to_owned()),
            error: kept.reason,
            document: kept.document,
        };
        kept.into_iter().map(row).collect()
    }
}

/// What a flusher keeps for one table from block to block.
pub struct Landing<'a> {
    target: &'static Target,
    metrics: TableMetrics,
    streak: Streak,
    /// How often in a row the table took nothing at all.
    suspended: u32,
    outage: &'a Outage,
}

/// How an insert ended that was not put off.
enum Outcome {
    Landed,
    Refused(Refusal),
}

impl<'a> Landing<'a> {
    pub fn new(target: &'static Target, metrics: &'a ServiceMetrics) -> Landing<'a> {
        Landing {
            target,
            metrics: metrics.table(target.table),
            streak: Streak::new(REFUSED_IN_A_ROW_MAX),
            suspended: 0,
            outage: &metrics.insert_outage,
        }
    }

    /// Returns when every row of the block is durable or in `kept`.
    pub fn land(
        &mut self,
        with: &Ground<'_>,
        client: &mut Client,
        block: &Block,
        kept: &mut Vec<RefusedRow>,
    ) -> Result<()> {
        self.land_rows(with, client, block, |_| true, kept)
    }

    /// The same for some of its rows.
    pub fn land_rows(
        &mut self,
        with: &Ground<'_>,
        client: &mut Client,
        block: &Block,
        is_wanted: impl Fn(usize) -> bool,
        kept: &mut Vec<RefusedRow>,
    ) -> Result<()> {
        let mut order = block.sorted_by(self.target.order_by);
        order.retain(|row| is_wanted(*row));
        if order.is_empty() {
            return Ok(());
        }
        loop {
            match self.insert(with, client, block, &order, &[])? {
                Outcome::Landed => {
                    self.on_landed(order.len());
                    return Ok(());
                }
                Outcome::Refused(refusal) => {
                    let found = kept.len();
                    match self.salvage(with, client, block, &order, refusal, kept)? {
                        None => return Ok(()),
                        // It is the table. What was kept on the way is kept again next time.
                        Some(refusal) => {
                            kept.truncate(found);
                            self.wait_out(with, refusal)?;
                        }
                    }
                }
            }
        }
    }

    /// Lands the good rows of a refused block. `Some` when the table takes no rows at all.
    fn salvage(
        &mut self,
        with: &Ground<'_>,
        client: &mut Client,
        block: &Block,
        order: &[usize],
        refusal: Refusal,
        kept: &mut Vec<RefusedRow>,
    ) -> Result<Option<Refusal>> {
        log::warn!(
            "{}: `{}` refused {} rows: {refusal}; landing the rest",
            with.service,
            self.target.table,
            order.len()
        );
        let mut last = refusal;
        let documents: Vec<usize> =
            self.target.documents.iter().copied().filter(|&at| block.is_present(at)).collect();
        let mut plan = Salvage::of(order.len(), documents.len(), &mut self.streak);
        loop {
            let (rows, blanked) = match plan.step() {
                Step::Suspend => return Ok(Some(last)),
                Step::Done { refused } => {
                    for at in refused {
                        self.metrics.refused_rows.inc();
                        kept.push(self.kept_row(with, block, order[at], &last));
                    }
                    return Ok(None);
                }
                Step::Insert(range) => (&order[range], vec![]),
                Step::Blank { row, documents: which } => {
                    let blanked = match which {
                        Documents::One(at) => vec![documents[at]],
                        Documents::All => documents.clone(),
                    };
                    (&order[row..=row], blanked)
                }
            };
            match self.insert(with, client, block, rows, &blanked)? {
                Outcome::Landed => {
                    plan.on_landed(&mut self.streak);
                    self.on_landed(rows.len());
                    for &column in &blanked {
                        self.metrics.refused_rows.inc();
                        kept.push(self.kept_document(with, block, rows[0], column, &last));
                    }
                }
                Outcome::Refused(refusal) => {
                    last = refusal;
                    plan.on_refused(&mut self.streak);
                }
            }
        }
    }

    fn insert(
        &mut self,
        with: &Ground<'_>,
        client: &mut Client,
        block: &Block,
        rows: &[usize],
        blanked: &[usize],
    ) -> Result<Outcome> {
        let columns = native::column_names(block);
        let (table, retries) = (self.target.table, &self.metrics.insert_retries);
        let pieces = |bytes| native::Encoder::new(block, rows, blanked).pieces(bytes);
        retry(
            with.shared,
            with.delays,
            with.service,
            self.outage,
            || {
                retries.inc();
            },
            || {
                let deadline = Instant::now() + with.clickhouse.request_timeout;
                match client.insert_pieces(table, &columns, &[], pieces, deadline) {
                    Ok(()) => Ok(Outcome::Landed),
                    Err(InsertError::Data(refusal)) => Ok(Outcome::Refused(refusal)),
                    Err(other) => Err(other.into_error(table)),
                }
            },
            |_| false,
        )
    }

    /// The table refuses everything: wait as for any outage, so that its rows stay in Postgres.
    fn wait_out(&mut self, with: &Ground<'_>, refusal: Refusal) -> Result<()> {
        self.suspended = self.suspended.saturating_add(1);
        let cause = format!("`{}` refuses every row: {refusal}", self.target.table);
        self.outage.raise(cause, refusal.hint());
        if self.suspended.is_power_of_two() {
            let (service, table) = (with.service, self.target.table);
            log::error!(
                "{service}: outage: `{table}` refuses every row: {refusal}; nothing is dropped, \
                 attempt {}",
                self.suspended
            );
            log::error!(
                "{service}:   hint: Compare the table's columns and constraints with those in \
                 README."
            );
        }
        with.shared.pause(Instant::now() + wait(with.delays, self.suspended))
    }

    fn on_landed(&mut self, rows: usize) {
        self.metrics.rows_inserted.inc_by(rows as u64);
        self.streak.on_landed();
        if 0 < self.suspended {
            self.suspended = 0;
            self.outage.lower();
            log::warn!("`{}` takes rows again", self.target.table);
        }
    }

    fn kept_document(
        &self,
        with: &Ground<'_>,
        block: &Block,
        row: usize,
        column: usize,
        refusal: &Refusal,
    ) -> RefusedRow {
        RefusedRow {
            what: RefusedPart::Column(block.spec(column).name.to_owned()),
            document: block.text(column, row).to_vec(),
            ..self.kept_row(with, block, row, refusal)
        }
    }

    fn kept_row(
        &self,
        with: &Ground<'_>,
        block: &Block,
        row: usize,
        refusal: &Refusal,
    ) -> RefusedRow {
        let version = match block.values(self.target.version) {
            Values::U64(versions) => versions[row],
            other => unreachable!("{other:?}"),
        };
        RefusedRow {
            service: with.service.to_owned(),
            table: self.target.table.to_owned(),
            key: block.text(self.target.id, row).to_vec(),
            version,
            what: RefusedPart::Row,
            error: refusal.to_string(),
            document: document::row_as_json(block, row),
        }
    }
}
