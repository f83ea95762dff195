//! (room redis)
