//! Inserts that keep failing: a flag for Prometheus, and the cause for people.

use std::time::SystemTime;

use parking_lot::Mutex;

use super::Gauge;

#[derive(Debug)]
pub struct Outage {
    gauge: Gauge,
    cause: Mutex<Option<Cause>>,
}

/// Why inserts fail, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    pub error: String,
    pub hint: Option<String>,
    pub since: SystemTime,
}

impl Outage {
    pub(super) fn new(gauge: Gauge) -> Outage {
        Outage { gauge, cause: Mutex::default() }
    }

    /// The latest cause counts, the first time.
    pub fn raise(&self, error: impl Into<String>, hint: Option<&str>) {
        let mut cause = self.cause.lock();
        let since = cause.as_ref().map_or_else(SystemTime::now, |before| before.since);
        *cause = Some(Cause { error: error.into(), hint: hint.map(str::to_owned), since });
        self.gauge.set(1);
    }

    pub fn lower(&self) {
        // In this order whoever raises meanwhile stays raised.
        let mut cause = self.cause.lock();
        *cause = None;
        self.gauge.set(0);
    }

    pub fn cause(&self) -> Option<Cause> {
        self.cause.lock().clone()
    }
}
