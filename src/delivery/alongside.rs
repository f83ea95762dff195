//! The stream that rows are written alongside: in a session of this process or, for a command, of
//! another one.

use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::wal::Lsn;

/// How far the end of the work has come. It only moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopLevel {
    Running,
    /// Receive no more; flush and confirm what is complete.
    Draining,
    /// Give up the work in hand; what was not confirmed is streamed again.
    Abandoned,
}

impl StopLevel {
    /// An error once the work is to end, for what the next session goes on with.
    pub fn go_on(self) -> Result<()> {
        match self {
            StopLevel::Running => Ok(()),
            StopLevel::Draining | StopLevel::Abandoned => Err(stopped()),
        }
    }
}

pub trait Alongside: Sync {
    fn stop_level(&self) -> StopLevel;

    /// Waits out `until`, or less once the work is to end.
    fn rest(&self, until: Instant) -> StopLevel;

    /// Waits out `until`, or less once the work is abandoned, which is an error.
    fn pause(&self, until: Instant) -> Result<()>;

    /// Admits that rows of commits up to `upper_lsn` may come, before any of them does.
    fn admit(&self, upper_lsn: Lsn) -> Result<()>;

    /// Waits until all that was committed below `lsn` is durable in ClickHouse.
    fn wait_for_stream(&self, lsn: Lsn) -> Result<()>;

    fn go_on(&self) -> Result<()> {
        self.stop_level().go_on()
    }
}

/// The work was given up: this is not a failure in itself.
pub fn stopped() -> Error {
    Error::new(ErrorKind::Stopped, "give up the work in hand")
}
