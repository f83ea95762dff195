//! Everything said to ClickHouse: inserts, tables, state, refused rows.

pub mod params;

pub use params::Params;
