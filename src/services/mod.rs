//! (room services)

pub mod annotations;
pub mod document;
pub mod fingerprint;
pub mod json_paths;
pub mod json_string;
pub mod json_text;
pub mod outcome;
