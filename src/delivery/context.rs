//! What goes with everything that writes rows: whom it is for, how long to wait, what is known.

use super::alongside::Alongside;
use super::learned::Learned;
use super::outage::{Delays, retry};
use crate::clickhouse::ClickHouseParams;
use crate::error::{Error, Result};
use crate::metrics::ServiceMetrics;

/// What any writer of rows needs, a flusher or a repair.
#[derive(Clone, Copy)]
pub struct DeliveryContext<'a> {
    pub service: &'a str,
    pub clickhouse: &'a ClickHouseParams,
    pub delays: Delays,
    pub alongside: &'a dyn Alongside,
    pub learned: &'a Learned,
    pub metrics: &'a ServiceMetrics,
}

impl DeliveryContext<'_> {
    /// [`retry`] with the waits of a flush, while ClickHouse or Postgres is away.
    pub fn retry<T>(
        &self,
        attempt: impl FnMut() -> Result<T>,
        hopeless: impl Fn(&Error) -> bool,
    ) -> Result<T> {
        let outage = &self.metrics.insert_outage;
        retry(self.alongside, self.delays, self.service, outage, attempt, hopeless)
    }
}
