//! Makes both sides equal: repair, `walhouse verify` and `walhouse backfill`. What is here reads
//! the table itself and writes beside the stream, with versions below whatever is still to be
//! streamed.

pub mod backfiller;
pub mod context;
pub mod debt;
mod id_list;
pub mod mapped;
pub mod repairer;
pub mod request;
pub mod verifier;
