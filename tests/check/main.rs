//! `walhouse check` against real servers: `cargo test --test check`.
//!
//! Each fault is planted, must be found, and the fix that is printed with it is applied as it
//! stands: SQL is run, settings and variables are set. Then the fault must be gone.

#[path = "../support/mod.rs"]
mod support;

/// Running the command, and reading and applying what it prints.
mod checked;
/// Set-ups without a fault, and that nothing stays.
mod healthy;
