//! What Postgres puts on the wire: LSNs, times, relations, tuples and the codecs that read them.
//! Total: no bytes can panic this room.

pub mod copy_both;
pub mod lsn;
pub mod pg_type;
pub mod pgoutput;
#[cfg(test)]
mod pgoutput_tests;
pub mod relation;
pub mod row_key;
#[cfg(test)]
pub mod testing;
pub mod time;
pub mod tuple;
pub mod value;
pub mod wire;

pub use lsn::Lsn;
pub use relation::{Oid, Relation};
pub use time::PgTime;
pub use tuple::{Datum, Tuple};
pub use wire::DecodeError;
