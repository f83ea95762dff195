//! (room clickhouse)
