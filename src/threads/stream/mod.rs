//! The way of the rows, in their order: read, batch, flush, confirm.

pub mod batch;
pub mod batcher;
pub mod confirmer;
pub mod flusher;
pub mod look_up;
pub mod rereading;
pub mod reused;
pub mod wal_reader;
