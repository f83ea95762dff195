//! JSON documents: read as Postgres writes them, written as ClickHouse accepts them, with a note of
//! what could not be kept.
//!
//! [`convert`] has a fast way, for the many documents of which nothing changes, and a slow one for
//! the rest: a new rule goes into the slow way, and `plain` must not answer for such documents.

pub mod convert;
pub mod outcome;
mod paths;
mod plain;
pub mod stored;
pub mod strings;
pub mod tokens;
