//! Inserts that keep failing: a flag for Prometheus, and the cause for people.

use std::time::SystemTime;

use parking_lot::Mutex;

use super::Gauge;
use crate::overview::{Trouble, unix_seconds};

#[derive(Debug)]
pub struct Outage {
    gauge: Gauge,
    cause: Mutex<Option<Trouble>>,
}

impl Outage {
    pub(super) fn new(gauge: Gauge) -> Outage {
        Outage { gauge, cause: Mutex::default() }
    }

    /// The latest cause counts, the first time.
    pub fn raise(&self, error: impl Into<String>, hint: Option<&str>) {
        let mut cause = self.cause.lock();
        let since = cause.as_ref().map(|before| before.at_unix_seconds);
        *cause = Some(Trouble {
            error: error.into(),
            hint: hint.map(str::to_owned),
            at_unix_seconds: since.unwrap_or_else(|| unix_seconds(SystemTime::now())),
        });
        self.gauge.set(1);
    }

    pub fn lower(&self) {
        // In this order a raise that happens meanwhile is kept.
        let mut cause = self.cause.lock();
        *cause = None;
        self.gauge.set(0);
    }

    /// Why inserts fail, and since when.
    pub fn cause(&self) -> Option<Trouble> {
        self.cause.lock().clone()
    }
}
