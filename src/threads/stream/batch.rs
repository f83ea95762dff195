//! Passed from the batcher to a flusher: changes as they came, not yet decoded.

use std::sync::Arc;

use crate::machines::progress::Cut;
use crate::postgres::frames::Frames;
use crate::services::plan::RelationPlan;
use crate::wal::{Lsn, PgTime};

/// The changes of one flush, in the order of the wire.
#[derive(Debug)]
pub struct Batch {
    pub cut: Cut,
    /// The blocks that the changes lie in.
    pub frames: Vec<Arc<Frames>>,
    pub changes: Vec<ChangeAt>,
    /// In the order of `changes`.
    pub asks: Vec<Ask>,
    /// The versions of the relations that the changes were written under.
    pub plans: Vec<Arc<TablePlan>>,
    /// When the transactions that end in this batch were committed.
    pub commit_times: Vec<PgTime>,
}

/// A version of the relation of a table.
#[derive(Debug, PartialEq)]
pub struct TablePlan {
    /// Index into the tables of the session.
    pub table: usize,
    pub plan: RelationPlan,
}

/// A change has a row whose key may have been removed above it, unseen by this session.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// Index into `Batch::changes`.
    pub change: usize,
    /// The tombstone lies below.
    pub below: Lsn,
}

/// The position of a change: kept small, since a batch may hold a million.
#[derive(Debug, Clone, Copy)]
pub struct ChangeAt {
    /// The LSN of its record, or one above it if an earlier removal of its key lies above.
    pub lsn: Lsn,
    pub xid: u32,
    /// Index into `Batch::frames`.
    pub frame: u32,
    pub start: u32,
    pub length: u32,
    /// Index into `Batch::plans`.
    pub plan: u32,
}
