//! Everything about ClickHouse: inserts, target tables, walhouse's own tables.
//!
//! A [`client`] sends statements to whichever of the hosts can take part, a `connection` to one of
//! them, and `fresh` sees to it that this one has all rows before it is read. The other files are
//! questions and inserts through a client. An exception that is taken for the wrong kind is mended
//! in the table of [`refusal`]; a table of walhouse's own is declared in [`own`].

mod answer;
pub mod client;
pub mod cluster;
mod connection;
pub mod document_types;
pub mod frame;
mod fresh;
pub mod hosts;
mod insert_error;
mod insert_settings;
pub mod lookup;
pub mod own;
pub mod params;
pub mod partitions;
pub mod refusal;
pub mod running;
mod settings;
pub mod slices;
pub mod stored;
pub mod survey;
pub mod tables;
pub mod text;
mod transport;
pub mod ttl;

pub use client::Client;
pub use insert_error::InsertError;
pub use params::ClickHouseParams;
pub use refusal::Refusal;
