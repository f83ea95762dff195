//! Everything said to ClickHouse: inserts, tables, state, repairs, adoptions, refused rows.

pub mod adoptions;
mod answer;
pub mod backfills;
pub mod client;
pub mod cluster;
pub mod databases;
pub mod document_types;
pub mod frame;
mod fresh;
pub mod hosts;
mod insert_settings;
pub mod lookup;
pub mod own_tables;
pub mod params;
pub mod partitions;
pub mod refusal;
pub mod refused;
pub mod repairs;
pub mod running;
mod settings;
pub mod slices;
pub mod sources;
pub mod state;
pub mod stored;
pub mod survey;
pub mod tables;
pub mod text;
mod transport;

pub use client::{Client, InsertError};
pub use params::Params;
pub use refusal::Refusal;
