//! Everything said to Postgres: the replication connection, ordinary SQL, publication and slot.

pub mod advisory_lock;
pub mod params;
pub mod publication;
pub mod reread;
pub mod server;
pub mod slot;
pub mod source_table;
pub mod sql;
pub mod tls;

pub use params::Params;
