//! Everything said to Postgres: the replication connection, ordinary SQL, publication and slot.

mod auth;
pub mod connection;
mod frames;
mod link;
pub mod params;
pub mod server_error;
mod startup;
pub mod stream;
pub mod tls;

pub use connection::{Connection, StartupOptions};
pub use frames::Frames;
pub use link::ShutdownHandle;
pub use params::Params;
pub use server_error::{ServerError, server_error};
pub use stream::{ReadOutcome, Stream};
