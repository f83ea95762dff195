//! walhouse replicates Postgres tables into ClickHouse through logical replication.

pub mod error;
pub mod health;
pub mod metrics;
pub mod secret;

pub mod wal;

pub mod rows;

pub mod machines;

pub mod services;

pub mod clickhouse;
pub mod postgres;
pub mod redis;

pub mod config;

pub mod threads;

pub mod cli;
