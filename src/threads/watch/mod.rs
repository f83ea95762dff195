//! They only look: at the server, the slot, the source, the other hosts, the tables. Nothing that
//! they find or fail at touches the stream, but for a server that was promoted beside ours, tables
//! that are not those of the session any more, and a source that can have hidden rows.

pub mod failover_readiness;
pub mod primary_probe;
pub mod promotion_watch;
pub mod retained;
pub mod source_watch;
pub mod table_watch;
