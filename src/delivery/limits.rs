//! How much is held in memory at once.

use crate::config::ServiceConfig;
use crate::machines::batches::BatchLimits;

/// A page of the table as it comes from Postgres; each worker of a repair holds one, several times
/// over on its way.
const REPAIR_PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A block of a copy, as it comes from Postgres; each worker of one holds one. Larger ones make
/// ClickHouse no faster.
const COPY_BLOCK_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A batch's share of the memory: each flusher may hold one, one is being gathered, and one is on
/// its way between reader and batcher.
pub fn limits(config: &ServiceConfig) -> BatchLimits {
    BatchLimits {
        rows_max: config.flush.rows_max,
        bytes_max: (config.flush.buffer_bytes_max / (config.flush.concurrency + 2)).max(1),
        age_max: config.flush.age_max,
    }
}

/// How much of the table one connection holds at a time.
pub fn page_bytes_max(config: &ServiceConfig) -> usize {
    limits(config).bytes_max.min(REPAIR_PAGE_BYTES_MAX)
}

/// How much of a table that is copied as a whole one connection holds at a time.
pub fn copy_bytes_max(config: &ServiceConfig) -> usize {
    config.flush.buffer_bytes_max.min(COPY_BLOCK_BYTES_MAX)
}
