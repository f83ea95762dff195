//! Everything said to Redis: the leader lock.

mod connection;
pub mod lock;
pub mod params;
pub mod value;

pub use lock::{Extended, Holder, RedisLock};
pub use params::Params;
