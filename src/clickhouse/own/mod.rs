//! What walhouse keeps in ClickHouse for itself, beside the target tables: a row says how far
//! something has come, and the one that was written last counts.

pub mod adoptions;
pub mod backfills;
pub mod databases;
mod journal;
pub mod refused;
pub mod repairs;
pub mod sources;
pub mod state;
pub mod tables;
