//! `walhouse check` against real servers: `cargo test --test check`.
//!
//! Each fault is planted, must be found, and the fix that is printed with it is applied as it
//! stands: SQL is run, settings and variables are set. Then the set-up must be sound again.

#[path = "../support/mod.rs"]
mod support;

/// Running the command, and reading and applying what it prints.
mod checked;
/// Faults of clusters, replicas, quorums and hosts.
mod cluster_faults;
/// Set-ups without a fault, and that nothing stays.
mod healthy;
/// Faults of the lock, the port and the variables.
mod other_faults;
/// The scripts that make roles give enough, and no more.
mod roles;
/// Faults of Postgres, from the connection to the publication.
mod source_faults;
/// Faults of ClickHouse, and of what it holds against what Postgres has.
mod target_faults;
/// Encrypted connections with real certificates, right and wrong.
mod tls;
