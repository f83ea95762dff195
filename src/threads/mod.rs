//! (room threads)

pub mod http;
