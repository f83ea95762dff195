//! (room services)
