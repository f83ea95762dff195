//! walhouse's own tables in ClickHouse: a row records the progress of something, and the last one
//! written counts.

pub mod adoptions;
pub mod backfills;
pub mod databases;
mod journal;
pub mod refused;
pub mod repairs;
pub mod sources;
pub mod state;
pub mod tables;
