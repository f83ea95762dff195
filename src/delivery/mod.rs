//! What all need who bring rows to ClickHouse, a session's threads and commands alike: landing
//! them, waiting out an outage, what the parties and tables are like, and what a session shares.

pub mod alongside;
pub mod as_of;
pub mod connecting;
pub mod landing;
pub mod learned;
pub mod lease_watch;
pub mod limits;
pub mod marks;
pub mod member;
pub mod outage;
pub mod session_state;
pub mod source_check;
pub mod source_look;
pub mod target_tables;
pub mod unfilled;
