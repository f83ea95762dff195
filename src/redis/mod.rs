//! Everything said to Redis: the leader lock.

pub mod params;

pub use params::Params;
