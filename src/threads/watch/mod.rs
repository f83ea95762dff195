//! They only watch: the server, the slot, the source, the other hosts, the tables. Nothing that
//! they find or fail at touches the stream, except another server that was promoted, tables that
//! have changed since the session began, and a source that may have hidden rows.

pub mod failover_readiness;
pub mod primary_probe;
pub mod promotion_watch;
pub mod retained;
pub mod source_watch;
pub mod table_watch;
