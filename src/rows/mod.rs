//! (room rows)
