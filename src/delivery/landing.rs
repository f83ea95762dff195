//! Inserts one block into one table, by [`Salvage`]'s plan: it retries for ever, and if the table
//! accepts only a part of the block, it inserts that part.

use std::collections::HashMap;
use std::time::Instant;

use super::alongside::{StopLevel, stopped};
use super::context::DeliveryContext;
use super::outage::Episode;
use crate::clickhouse::own::refused::{RefusedPart, RefusedRow};
use crate::clickhouse::refusal::{Refusal, RefusalVerdict};
use crate::clickhouse::{self, Client, InsertError};
use crate::error::{Error, ErrorKind, Result};
use crate::machines::salvage::{
    Blame, BlamedColumn, InsertFault, InsertFit, KnownGood, NextStep, Salvage, Step, Views,
};
use crate::metrics::{ServiceMetrics, TableMetrics};
use crate::rows::order::sorted_by;
use crate::rows::target::Target;
use crate::rows::{Block, native};
use crate::services::trial;
use crate::telling::tell;

impl DeliveryContext<'_> {
    /// What one thread keeps for each table.
    pub fn landings<'t>(&self, targets: &'t [Target]) -> Vec<Landing<'t>> {
        targets.iter().map(|target| Landing::new(target, self.metrics)).collect()
    }
}

/// What a flusher keeps for one table from block to block.
pub struct Landing<'t> {
    target: &'t Target,
    metrics: TableMetrics,
}

/// A block being inserted, and what is known about it.
struct Tried<'b> {
    block: &'b Block,
    /// Its rows, in the order in which they are sent.
    order: Vec<usize>,
    /// JSON columns that are sent, by column.
    documents: Vec<usize>,
    /// The last refusal of each row that was tried alone.
    refusals: HashMap<usize, Refusal>,
    /// Rows that a view refused, and whether that is known of each.
    unseen: Vec<(usize, bool)>,
    by_view: Option<Refusal>,
    /// The last refusal of rows.
    last: Option<Refusal>,
}

impl<'t> Landing<'t> {
    pub fn new(target: &'t Target, metrics: &ServiceMetrics) -> Landing<'t> {
        Landing { target, metrics: metrics.table(&target.table) }
    }

    /// Returns when every row of the block is durable or in `kept`.
    pub fn land(
        &mut self,
        with: &DeliveryContext<'_>,
        client: &mut Client,
        block: &Block,
        kept: &mut Vec<RefusedRow>,
    ) -> Result<()> {
        self.land_rows(with, client, block, |_| true, kept)
    }

    /// The same for some of its rows.
    pub fn land_rows(
        &mut self,
        with: &DeliveryContext<'_>,
        client: &mut Client,
        block: &Block,
        is_wanted: impl Fn(usize) -> bool,
        kept: &mut Vec<RefusedRow>,
    ) -> Result<()> {
        let mut order = sorted_by(block, &self.target.order_by);
        order.retain(|row| is_wanted(*row));
        self.keep_nulls(with, block, &mut order, kept);
        let documents: Vec<usize> =
            self.target.documents.iter().copied().filter(|&at| block.is_present(at)).collect();
        let can_repeat =
            block.is_present(self.target.version) && block.is_present(self.target.is_deleted);
        let mut plan = Salvage::of(order.len(), documents.len(), can_repeat);
        let mut tried = Tried {
            block,
            order,
            documents,
            refusals: HashMap::new(),
            unseen: Vec::new(),
            by_view: None,
            last: None,
        };
        let outage = &with.metrics.insert_outage;
        let mut episode = Episode::new(with.alongside, with.delays, with.service, outage);
        let (mut is_told, mut is_size_told) = (false, false);
        loop {
            let mut fit = with.learned.fit(&self.target.table);
            let before = fit.clone();
            let step = plan.step(&fit);
            if let Step::Done { refused } = &step {
                self.tell(with, &tried, refused, kept);
                return Ok(());
            }
            if with.alongside.stop_level() == StopLevel::Abandoned {
                return Err(stopped());
            }
            let alone = if plan.is_salvaging() { &ALONE[..] } else { &[] };
            let then = match self.attempt(with, client, &tried, &step, alone) {
                Ok(true) => {
                    episode.on_success();
                    plan.on_landed(&mut fit, Instant::now());
                    self.set_fit(with, before, fit);
                    self.on_landed(with, &mut tried, &step, kept);
                    continue;
                }
                Ok(false) => match plan.on_none_known() {
                    NextStep::GoOn => continue,
                    then => (then, self.held(&tried)),
                },
                Err(failure) => {
                    let fault = tried.fault_of(&step, &failure);
                    let error = match &step {
                        Step::Probe(_) if matches!(fault, InsertFault::Rows(_)) => {
                            let cause = failure.into_error(&self.target.table);
                            self.refuses_all(cause)
                        }
                        _ => failure.into_error(&self.target.table),
                    };
                    if matches!(fault, InsertFault::Rows(_) | InsertFault::View) && !is_told {
                        is_told = true;
                        self.tell_refused(with, &tried, &fault, &error);
                    }
                    let then = plan.on_failed(fault, &mut fit, Instant::now());
                    if let Some(rows) = fit.rows_max().filter(|_| fit != before) {
                        self.metrics.insert_retries.inc();
                        let line = format_args!("{error}; from now on {rows} rows at a time");
                        let hint = error.hint_text().filter(|_| !is_size_told);
                        tell(log::Level::Warn, with.service, line, hint);
                        is_size_told = true;
                    }
                    self.set_fit(with, before, fit);
                    (then, error)
                }
            };
            match then {
                (NextStep::GoOn, _) => {}
                (NextStep::Wait, error) => {
                    self.metrics.insert_retries.inc();
                    episode.on_failed(error)?;
                }
                (NextStep::Hold, error) => {
                    self.metrics.insert_retries.inc();
                    is_told = true;
                    episode.on_held(&error)?;
                }
            }
        }
    }

    fn tell_refused(
        &self,
        with: &DeliveryContext<'_>,
        tried: &Tried<'_>,
        fault: &InsertFault,
        error: &Error,
    ) {
        let table = &self.target.table;
        let by = if matches!(fault, InsertFault::View) { &tried.by_view } else { &tried.last };
        let by = by.as_ref().map(|by| (by.code, &by.column, &by.view));
        let of = format!("`{table}` refused by {by:?}");
        if let Some(unsaid) = with.learned.note(of, tried.order.len()) {
            log::warn!(
                "{}: `{table}` refused {} rows: {error}; landing the rest{unsaid}",
                with.service,
                unsaid.amount
            );
        }
    }

    fn set_fit(&self, with: &DeliveryContext<'_>, before: InsertFit, fit: InsertFit) {
        if fit != before {
            with.learned.set_fit(&self.target.table, fit);
        }
    }

    /// Sends one INSERT. False: no row is known to be good.
    fn attempt(
        &self,
        with: &DeliveryContext<'_>,
        client: &mut Client,
        tried: &Tried<'_>,
        step: &Step,
        settings: &[(&str, &str)],
    ) -> std::result::Result<bool, InsertError> {
        let deadline = Instant::now() + with.clickhouse.request_timeout;
        let table = &self.target.table;
        let mut settings = settings.to_vec();
        let insert = |client: &mut Client,
                      block: &Block,
                      rows: &[usize],
                      blanked: &[usize],
                      settings: &[(&str, &str)]| {
            let columns = native::column_names(block);
            let pieces = |bytes| native::Encoder::new(block, rows, blanked).pieces(bytes);
            client.insert_pieces(table, &columns, settings, pieces, deadline).map(|()| true)
        };
        let order = &tried.order;
        let mut passing = |views: &Views| {
            if *views != Views::Heard {
                settings.push(("materialized_views_ignore_errors", "1"));
            }
            settings.clone()
        };
        match step {
            Step::Insert { rows, views } => {
                let settings = passing(views);
                insert(client, tried.block, &order[rows.clone()], &[], &settings)
            }
            Step::Blank { row, documents, views } => {
                let blanked: Vec<usize> = documents.iter().map(|&at| tried.documents[at]).collect();
                let settings = passing(views);
                insert(client, tried.block, &order[*row..=*row], &blanked, &settings)
            }
            Step::Probe(KnownGood::Landed(row)) if self.can_repeat(tried.block) => {
                insert(client, tried.block, &order[*row..=*row], &[], &ALONE)
            }
            // The server copies a row without reading what we send.
            Step::Probe(KnownGood::CopyOfTable)
                if tried.last.as_ref().is_some_and(is_before_values) =>
            {
                Ok(false)
            }
            Step::Probe(KnownGood::CopyOfTable) => {
                let is_there = client.insert_again(table, "true", &ALONE, deadline)?;
                let of = || format!("`{table}` accepts a copy");
                if let Some(unsaid) = is_there.then(|| with.learned.note(of(), 1)).flatten() {
                    log::warn!(
                        "{}: `{table}` accepts a copy of a row that it has: the refused rows \
                         themselves are the cause{unsaid}",
                        with.service
                    );
                }
                Ok(is_there)
            }
            Step::Probe(_) if !self.can_repeat(tried.block) => Ok(false),
            Step::Probe(_) => {
                let trial = trial::tombstone(self.target, tried.block.shape());
                let refusal = match insert(client, &trial, &[0], &[], &ALONE) {
                    Err(InsertError::Data(refusal)) => refusal,
                    outcome => return outcome,
                };
                if tried.is_what_all_get(&refusal) {
                    return Err(InsertError::Data(refusal));
                }
                // A made-up row may violate a constraint that every real row meets: so try one that
                // exists.
                let is_deleted = &self.target.columns[self.target.is_deleted].name;
                let is_live = format!("{} = 0", clickhouse::client::quote_name(is_deleted));
                match client.insert_again(table, &is_live, &ALONE, deadline)? {
                    true => Ok(true),
                    false => Err(InsertError::Data(refusal)),
                }
            }
            Step::Done { .. } => Ok(true),
        }
    }

    fn can_repeat(&self, block: &Block) -> bool {
        block.is_present(self.target.version) && block.is_present(self.target.is_deleted)
    }

    fn on_landed(
        &self,
        with: &DeliveryContext<'_>,
        tried: &mut Tried<'_>,
        step: &Step,
        kept: &mut Vec<RefusedRow>,
    ) {
        let (rows, views) = match step {
            Step::Insert { rows, views } => (rows.clone(), *views),
            Step::Blank { row, documents, views } => {
                for &at in documents {
                    self.metrics.refused_rows.inc();
                    kept.push(self.kept_document(with, tried, *row, tried.documents[at]));
                }
                (*row..row + 1, *views)
            }
            Step::Probe(_) | Step::Done { .. } => return,
        };
        self.metrics.rows_inserted.inc_by(rows.len() as u64);
        if let Views::PassedOver { all } = views {
            self.metrics.rows_refused_by_views.inc_by(rows.len() as u64);
            tried.unseen.extend(rows.map(|row| (row, !all)));
        }
    }

    /// Logs what happened to the rows that were not inserted as they are.
    fn tell(
        &self,
        with: &DeliveryContext<'_>,
        tried: &Tried<'_>,
        refused: &[usize],
        kept: &mut Vec<RefusedRow>,
    ) {
        for &at in refused {
            self.metrics.refused_rows.inc();
            kept.push(self.kept_row(with, tried, at));
        }
        let Some(refusal) = tried.by_view.as_ref().filter(|_| !tried.unseen.is_empty()) else {
            return;
        };
        // If a view accepts nothing, the table itself shows what the view lacks.
        let each = tried.unseen.iter().filter(|(_, is_known)| *is_known);
        kept.extend(each.map(|&(row, _)| RefusedRow {
            what: RefusedPart::View,
            error: refusal.to_string(),
            ..self.kept_row(with, tried, row)
        }));
        let (service, table) = (with.service, &self.target.table);
        // If a view's own table is gone, some servers (26) name the table that it reads.
        let of_table = format!(".{table}");
        let view = refusal.view.as_deref().filter(|view| !view.ends_with(&of_table));
        let (view, way) = match view.filter(|view| !view.is_empty()) {
            Some(view) => (format!("view `{view}`"), format!("Fix it, or DROP VIEW {view};")),
            None => {
                ("a view".to_owned(), "Find it with `dependencies_table` of system.tables;".into())
            }
        };
        let of = format!("{view} refused `{table}`: {}", refusal.code);
        if let Some(unsaid) = with.learned.note(of, tried.unseen.len()) {
            let line = format_args!(
                "{view} refused {} rows of `{table}`: {refusal}; they are in `{table}`, and the \
                 view lacks them, as does any other view that refuses them{unsaid}",
                unsaid.amount
            );
            let hint = format!(
                "{way} then fill it again from `{table}`. What other views refused is in \
                 system.query_views_log."
            );
            tell(log::Level::Error, service, line, Some(&hint));
        }
    }

    /// Rows that would lose a NULL without anybody noticing.
    fn keep_nulls(
        &self,
        with: &DeliveryContext<'_>,
        block: &Block,
        order: &mut Vec<usize>,
        kept: &mut Vec<RefusedRow>,
    ) {
        if block.shape().without_null.is_empty() {
            return;
        }
        order.retain(|&row| {
            let Some(column) = block.null_without_place(row) else { return true };
            self.metrics.refused_rows.inc();
            let name = &block.spec(column).name;
            let error = format!("a NULL for column `{name}`, which accepts none");
            kept.push(with.refused_row(self.target, block, row, error));
            false
        });
    }

    fn held(&self, tried: &Tried<'_>) -> Error {
        let refusal = tried.last.as_ref();
        let cause = refusal
            .map_or_else(|| "it has no row known to be good".into(), |refusal| refusal.to_string());
        self.refuses_all(Error::new(ErrorKind::DataRefused, cause))
    }

    /// Not even a row known to be good is taken: its rows stay in Postgres until it is mended.
    fn refuses_all(&self, cause: Error) -> Error {
        let table = &self.target.table;
        let hint = cause.hint_text().map_or_else(
            || {
                "Compare the table's columns and constraints with those of `walhouse help tables`: \
                 even a row that it has is refused now."
                    .to_owned()
            },
            str::to_owned,
        );
        Error::new(ErrorKind::DataRefused, format!("`{table}` refuses every row"))
            .because(cause.to_string())
            .hint(hint)
    }

    fn kept_document(
        &self,
        with: &DeliveryContext<'_>,
        tried: &Tried<'_>,
        row: usize,
        column: usize,
    ) -> RefusedRow {
        let block = tried.block;
        RefusedRow {
            what: RefusedPart::Column(block.spec(column).name.to_string()),
            document: block.text(column, tried.order[row]).to_vec(),
            ..self.kept_row(with, tried, row)
        }
    }

    fn kept_row(&self, with: &DeliveryContext<'_>, tried: &Tried<'_>, row: usize) -> RefusedRow {
        let error = tried.refusals.get(&row).map(Refusal::to_string).unwrap_or_default();
        with.refused_row(self.target, tried.block, tried.order[row], error)
    }
}

/// A document or a block that cannot be read.
const INCORRECT_DATA: u32 = 117;
/// The type of the block cannot be converted to that of the column.
const CANNOT_CONVERT_TYPE: u32 = 70;

/// It may concern everything that we send, whatever the values. Errors that depend on values, such
/// as a constraint's, come only after they were read.
fn is_before_values(refusal: &Refusal) -> bool {
    !refusal.is_of_expression
        && ([INCORRECT_DATA, CANNOT_CONVERT_TYPE].contains(&refusal.code)
            || refusal.verdict() == RefusalVerdict::Unknown)
}

/// Not together with what other flushers insert: whose rows were refused would not be known.
const ALONE: [(&str, &str); 1] = [("async_insert", "0")];

impl Tried<'_> {
    /// The made-up row is refused for the same as the others, and not for its values: the server
    /// does not read what we send. To write a row again that it has would not show that.
    fn is_what_all_get(&self, refusal: &Refusal) -> bool {
        self.last.as_ref().is_some_and(|last| last.code == refusal.code)
            && is_before_values(refusal)
    }

    /// Reports the outcome to the plan, and remembers it.
    fn fault_of(&mut self, step: &Step, failure: &InsertError) -> InsertFault {
        let refusal = match failure {
            InsertError::Retry(_) => return InsertFault::Away,
            InsertError::Lost(_) => return InsertFault::Lost,
            InsertError::Large(_) => return InsertFault::Large,
            InsertError::View(refusal) => {
                self.by_view = Some((**refusal).clone());
                return InsertFault::View;
            }
            InsertError::LargeForView(refusal) => {
                self.by_view = Some((**refusal).clone());
                return InsertFault::LargeForView;
            }
            InsertError::Data(refusal) => refusal,
        };
        self.last = Some((**refusal).clone());
        let row = match step {
            Step::Insert { rows, .. } if rows.len() == 1 => Some(rows.start),
            Step::Blank { row, .. } => Some(*row),
            _ => None,
        };
        if let Some(row) = row {
            self.refusals.insert(row, (**refusal).clone());
        }
        let place = |name: &String| {
            self.documents.iter().position(|&at| *self.block.spec(at).name == **name)
        };
        let column = match &refusal.column {
            None => BlamedColumn::Unnamed,
            Some(name) => place(name).map_or(BlamedColumn::Other, BlamedColumn::Document),
        };
        InsertFault::Rows(Blame { row: refusal.row, column })
    }
}
