//! The services: source tables, target tables, and the mapping between them.
//!
//! [`fold`] reads a batch's changes, [`assemble`] turns them into blocks; [`runs`], [`sessions`],
//! [`webhooks`] are the mappings made by hand, [`columns`] is that of any other table: [`types`]
//! says which type of ClickHouse a column gets, [`values`] reads its values. The other files are
//! the rules for single values.
//!
//! A new column of a table goes into its mapping, and a new rule for values into a file of its own.
//! What a mapping cannot keep as it was, it reports in [`notes`].

pub mod annotations;
pub mod assemble;
pub mod bare_row;
pub mod column_set;
pub mod columns;
pub mod fingerprint;
pub mod fold;
#[cfg(test)]
mod fold_tests;
pub mod mapping;
pub mod notes;
pub mod plan;
pub mod publishable;
pub mod reader;
pub mod row;
pub mod runs;
pub mod sessions;
pub mod source;
pub mod table_pattern;
pub mod trial;
pub mod types;
pub mod utf8;
pub mod values;
pub mod webhooks;
pub mod weight;
