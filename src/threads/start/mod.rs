//! What precedes the first row: does everything that the stream needs exist, and where does it
//! continue?

pub mod old_rows;
pub mod prepare;
pub mod resume;
pub mod slot_watch;
pub mod tables_seen;
