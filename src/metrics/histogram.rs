//! A histogram of atomics, because the client library's takes a lock for each observation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Counts observations below fixed bounds. Clones share their counts.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bounds: &'static [f64],
    /// One for each bound, and one for values above the last.
    counts: Vec<AtomicU64>,
    /// The bits of an `f64`.
    sum: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Histogram {
        assert!(bounds.is_sorted(), "bounds of a histogram ascend");
        Histogram(Arc::new(Inner {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0f64.to_bits()),
        }))
    }

    /// A negative value or NaN counts as zero: a clock was set back.
    pub fn observe(&self, value: f64) {
        let inner = &*self.0;
        let value = if value > 0.0 { value } else { 0.0 };
        let bucket = inner.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = inner.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        let add = |sum| Some((f64::from_bits(sum) + value).to_bits());
        // The closure always gives a value, so this always succeeds.
        let _ = inner.sum.fetch_update(Relaxed, Relaxed, add);
    }

    pub fn observe_duration(&self, duration: Duration) {
        self.observe(duration.as_secs_f64());
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder) -> std::fmt::Result {
        let inner = &*self.0;
        let bounds = inner.bounds.iter().copied().chain([f64::INFINITY]);
        let counts = inner.counts.iter().map(|count| count.load(Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        // Computed from the buckets: it must equal the last one even during observations.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = f64::from_bits(inner.sum.load(Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn counts(histogram: &Histogram) -> Vec<u64> {
        histogram.0.counts.iter().map(|count| count.load(Relaxed)).collect()
    }

    #[test]
    fn a_bound_belongs_to_the_bucket_below_it() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.0, 2.1, f64::INFINITY] {
            histogram.observe(value);
        }
        assert_eq!(counts(&histogram), [2, 2, 2]);
    }

    #[test]
    fn negative_and_nan_count_as_zero() {
        let histogram = Histogram::new(&[1.0]);
        histogram.observe(-5.0);
        histogram.observe(f64::NAN);
        assert_eq!(counts(&histogram), [2, 0]);
        assert_eq!(f64::from_bits(histogram.0.sum.load(Relaxed)), 0.0);
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let histogram = Histogram::new(&[1.0]);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| histogram.observe(2.0)));
            }
        });
        assert_eq!(counts(&histogram), [0, 40_000]);
        assert_eq!(f64::from_bits(histogram.0.sum.load(Relaxed)), 80_000.0);
    }
}
