//! Everything said to Redis: the leader lock.
//!
//! Its form is that of trigger.dev's own replication, so that the two exclude each other: the
//! key and its value are not ours to change.

mod connection;
pub mod lock;
pub mod params;
pub mod value;

pub use lock::{Extended, Holder, RedisLock};
pub use params::Params;
