//! The program as a whole, against real servers.

#[path = "../support/mod.rs"]
mod support;

/// The comparison of both sides finds what is planted: without this, no other test says much.
mod oracle_finds;
