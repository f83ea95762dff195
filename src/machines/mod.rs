//! (room machines)
