//! Makes both sides equal: repair, `walhouse verify` and `walhouse backfill`. This room reads the
//! table itself and writes alongside the stream, with versions below everything that is still to be
//! streamed.
//!
//! [`repairer`], [`verifier`] and [`backfiller`] are the three passes, `page` and `gone` what they
//! share. [`debt`] records a repair before its cause is out of sight. What is written here passes
//! `delivery` like the stream's rows; `deletes` says how many rows may be marked as deleted without
//! asking.

pub mod backfiller;
pub mod command;
pub mod debt;
mod deletes;
mod gone;
mod id_list;
pub mod mapped;
mod page;
pub mod parties;
pub mod repairer;
pub mod request;
mod standstill;
pub mod verifier;
mod worker;
