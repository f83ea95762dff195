//! What reads the table itself and writes beside the stream, with versions below whatever is still
//! to be streamed: repairs, backfills, comparisons.

pub mod backfiller;
pub mod bystander;
mod id_list;
pub mod mapped;
pub mod repairer;
pub mod verifier;
