//! What is replicated: source tables, target tables, and the mapping between them.
//!
//! [`fold`] reads a batch's changes, [`assemble`] turns them into blocks; [`runs`] and [`sessions`]
//! are the two mappings, the other files the rules for single values.

pub mod annotations;
pub mod assemble;
pub mod document;
pub mod fingerprint;
pub mod fold;
#[cfg(test)]
mod fold_tests;
mod json_paths;
mod json_plain;
mod json_string;
pub mod json_text;
pub mod mapping;
pub mod outcome;
pub mod runs;
pub mod sessions;
pub mod source;
pub mod tombstone;
pub mod trial;
pub mod utf8;
pub mod weight;
