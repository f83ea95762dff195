//! Everything said to Postgres: the replication connection, ordinary SQL, publication and slot.
//!
//! [`sql`] and [`stream`] are the two kinds of connection; the other files are questions asked over
//! them. A question takes a deadline and returns what is there. What follows from it is decided by
//! a machine.

pub mod advisory_lock;
mod auth;
pub mod barrier;
pub mod catalog;
pub mod connection;
pub mod copy;
pub mod failover_slot;
pub mod frames;
pub mod key_reader;
mod link;
pub mod params;
pub mod presence;
pub mod primary;
pub mod publication;
pub mod reread;
pub mod server;
pub mod server_error;
pub mod slot;
pub mod source_table;
pub mod sql;
pub mod startup;
pub mod stream;
pub mod survey;
pub mod table_reader;
pub mod tables;
pub mod tls;
mod types;

pub use connection::{Connection, StartupOptions};
pub use frames::Frames;
pub use params::PostgresParams;
pub use server_error::{ServerError, server_error};
pub use stream::{ReadOutcome, Stream};
