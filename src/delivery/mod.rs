//! What everything that writes rows to ClickHouse needs, a session's threads and commands alike:
//! inserting them, waiting out an outage, the state of the servers and tables, and what a session
//! shares.
//!
//! [`landing`] inserts a block, for everybody, with a [`context`]. The threads of a session meet in
//! [`session_state`], and what they learn of the tables is in [`learned`]. What inserts rows knows
//! the stream only as an [`alongside::Alongside`], so a command needs no session.

pub mod alongside;
pub mod as_of;
pub mod connecting;
pub mod context;
pub mod deleted_keys;
pub mod landing;
pub mod learned;
pub mod lease_watch;
pub mod limits;
pub mod marks;
pub mod member;
pub mod outage;
mod refused_rows;
pub mod session_state;
pub mod source_check;
pub mod source_look;
pub mod table_set;
pub mod target_tables;
pub mod unfilled;
