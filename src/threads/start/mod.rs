//! What comes before the first row: is all there that the stream needs, and where does it go on?

pub mod old_rows;
pub mod prepare;
pub mod resume;
pub mod slot_watch;
pub mod tables_seen;
