//! What Postgres puts on the wire: LSNs, times, relations, tuples and the codecs that read them.
//! Total: no bytes can panic this room.

pub mod lsn;

pub use lsn::Lsn;
