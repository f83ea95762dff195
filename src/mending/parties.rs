//! Both servers, for code that compares them and writes the differences.

use std::time::{Duration, Instant};

use crate::delivery::context::DeliveryContext;
use crate::delivery::member::Member;
use crate::error::Result;
use crate::postgres::primary::Primary;
use crate::postgres::sql::Sql;

/// One statement against Postgres.
pub const SQL_TIMEOUT: Duration = Duration::from_secs(60);

pub struct MendingContext<'a> {
    pub delivery: DeliveryContext<'a>,
    pub member: &'a Member,
    /// Where the stream comes from.
    pub primary: &'a Primary,
    pub application_name: &'a str,
    /// How much of a table may be marked as deleted without a question.
    pub deletes_max_percent: u64,
    /// How much of the table one worker holds at a time, as it comes from Postgres.
    pub page_bytes_max: usize,
    /// The same of a table that is copied.
    pub copy_bytes_max: usize,
    /// Inserts that are older are of others.
    pub begun_at: Instant,
}

pub fn connect(with: &MendingContext<'_>) -> Result<Sql> {
    with.primary.sql(with.application_name, sql_deadline())
}

pub fn sql_deadline() -> Instant {
    Instant::now() + SQL_TIMEOUT
}
