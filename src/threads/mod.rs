//! (room threads)
