//! Everything about ClickHouse: inserts, target tables, walhouse's own tables.

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

pub use client::Client;
pub use insert_error::InsertError;
pub use params::ClickHouseParams;
pub use refusal::Refusal;
