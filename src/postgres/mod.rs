//! Everything said to Postgres: the replication connection, ordinary SQL, publication and slot.

pub mod params;

pub use params::Params;
