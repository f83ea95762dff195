//! They only look: at the server, the slot, the other hosts. Nothing that they find or fail at
//! touches the stream, but for a server that was promoted beside ours.

pub mod lookout;
pub mod readiness;
pub mod rival;
pub mod wal_watch;
