//! JSON documents: read as Postgres writes them, written as ClickHouse accepts them, with a note of
//! what could not be kept.

pub mod convert;
pub mod outcome;
mod paths;
mod plain;
pub mod stored;
pub mod strings;
pub mod tokens;
