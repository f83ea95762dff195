//! The last hour of a service in memory: a ring of samples, the speeds between them, and few enough
//! points for a graph.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Throughput;

/// How often to take a sample.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// An hour of them.
const SAMPLES_MAX: usize = 720;
/// Samples to one point of a graph.
const SAMPLES_PER_POINT: u64 = 4;
/// Speeds are measured over this long, or a little more.
const SPEED_OVER: Duration = Duration::from_secs(10);
/// How fast something grows that is only looked at now and then.
const GROWTH_OVER: Duration = Duration::from_secs(300);
const GROWTH_OVER_MIN: Duration = Duration::from_secs(30);

/// A service at one moment. Counts only grow.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sample {
    pub rows: u64,
    pub changes: u64,
    pub bytes: u64,
    pub lag_seconds: Option<f64>,
    pub retained_bytes: Option<u64>,
    pub unflushed_bytes: u64,
}

/// Some samples in one: the highest level, the mean speed. The first point of all has no speed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub at: Instant,
    pub rows_per_second: Option<f64>,
    pub lag_seconds: Option<f64>,
    pub retained_bytes: Option<u64>,
    pub unflushed_bytes: u64,
}

#[derive(Debug, Default)]
pub struct History {
    samples: VecDeque<(Instant, Sample)>,
    /// Samples that the ring has let go: points keep their samples while it moves on.
    gone: u64,
}

impl History {
    pub fn push(&mut self, now: Instant, sample: Sample) {
        if SAMPLES_MAX <= self.samples.len() {
            self.samples.pop_front();
            self.gone += 1;
        }
        self.samples.push_back((now, sample));
    }

    /// From a sample of a while ago until `current`.
    pub fn speed(&self, now: Instant, current: &Sample) -> Option<Throughput> {
        let is_old = |(at, _): &&(Instant, Sample)| SPEED_OVER <= now.duration_since(*at);
        let (at, before) = self.samples.iter().rev().find(is_old).or(self.samples.front())?;
        let seconds = now.saturating_duration_since(*at).as_secs_f64();
        (1.0 <= seconds).then(|| Throughput {
            rows_per_second: per_second(before.rows, current.rows, seconds),
            changes_per_second: per_second(before.changes, current.changes, seconds),
            bytes_per_second: per_second(before.bytes, current.bytes, seconds),
        })
    }

    /// The growth of the retained WAL; below zero when it shrinks.
    pub fn retained_growth(&self) -> Option<f64> {
        let known = |(at, sample): &(Instant, Sample)| Some((*at, sample.retained_bytes?));
        let (last_at, last) = self.samples.iter().rev().find_map(known)?;
        let is_recent = |(at, _): &(Instant, u64)| last_at.duration_since(*at) <= GROWTH_OVER;
        let (first_at, first) = self.samples.iter().filter_map(known).find(is_recent)?;
        let over = last_at.saturating_duration_since(first_at);
        (GROWTH_OVER_MIN <= over).then(|| (last as f64 - first as f64) / over.as_secs_f64())
    }

    pub fn points(&self) -> Vec<Point> {
        let mut points: Vec<Point> = Vec::new();
        let mut open: Option<(u64, Point)> = None;
        // Where the counts of a point begin: at the last sample of the one before.
        let mut before: Option<(Instant, u64)> = None;
        let mut last: Option<(Instant, u64)> = None;
        for (number, (at, sample)) in (self.gone..).zip(&self.samples) {
            let group = number / SAMPLES_PER_POINT;
            if open.as_ref().is_none_or(|(of, _)| *of != group) {
                points.extend(open.take().map(|(_, point)| point));
                before = last;
                let point = Point {
                    at: *at,
                    rows_per_second: None,
                    lag_seconds: None,
                    retained_bytes: None,
                    unflushed_bytes: 0,
                };
                open = Some((group, point));
            }
            if let Some((_, point)) = &mut open {
                point.at = *at;
                point.lag_seconds = max(point.lag_seconds, sample.lag_seconds);
                point.retained_bytes = point.retained_bytes.max(sample.retained_bytes);
                point.unflushed_bytes = point.unflushed_bytes.max(sample.unflushed_bytes);
                point.rows_per_second = before.and_then(|(since, rows)| {
                    let seconds = at.saturating_duration_since(since).as_secs_f64();
                    (0.0 < seconds).then(|| per_second(rows, sample.rows, seconds))
                });
            }
            last = Some((*at, sample.rows));
        }
        points.extend(open.map(|(_, point)| point));
        points
    }
}

fn per_second(before: u64, after: u64, seconds: f64) -> f64 {
    after.saturating_sub(before) as f64 / seconds
}

fn max(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One sample every 5 s: 10 rows more each time.
    fn history(samples: u64) -> (History, Instant) {
        let start = Instant::now();
        let mut history = History::default();
        for n in 0..samples {
            let sample = Sample {
                rows: 10 * n,
                changes: 20 * n,
                bytes: 500 * n,
                lag_seconds: (n % 2 == 0).then_some(n as f64),
                retained_bytes: Some(1000 + 50 * n),
                unflushed_bytes: n % 3,
            };
            history.push(start + 5 * Duration::from_secs(n), sample);
        }
        (history, start)
    }

    #[test]
    fn the_ring_is_bounded_and_its_points_do_not_move() {
        let (history, start) = history(3000);
        assert_eq!(history.samples.len(), SAMPLES_MAX);
        let points = history.points();
        assert_eq!(points.len(), SAMPLES_MAX / 4);
        // Sample 2280 is the oldest, and the first of its point.
        assert_eq!(points[0].at, start + 5 * Duration::from_secs(2283));
        assert_eq!(points[0].rows_per_second, None);
        assert!(points[1..].iter().all(|point| point.rows_per_second == Some(2.0)));
        assert_eq!(points[0].lag_seconds, Some(2282.0));
        assert_eq!(points[0].retained_bytes, Some(1000 + 50 * 2283));
        assert_eq!(points[0].unflushed_bytes, 2);
    }

    #[test]
    fn an_incomplete_point_is_shown_too() {
        let (history, start) = history(6);
        let points = history.points();
        assert_eq!(points.len(), 2);
        assert_eq!(points[1].at, start + 5 * Duration::from_secs(5));
        assert_eq!(points[1].rows_per_second, Some(2.0));
        assert_eq!(History::default().points(), []);
    }

    #[test]
    fn speed_is_that_of_the_last_seconds() {
        let (mut history, start) = history(100);
        let now = start + Duration::from_secs(505);
        let current = Sample { rows: 990 + 120, bytes: 49_500, ..Sample::default() };
        let speed = history.speed(now, &current).expect("there is a sample");
        assert_eq!(speed.rows_per_second, 12.0);
        assert_eq!((speed.changes_per_second, speed.bytes_per_second), (0.0, 0.0));
        history.samples.clear();
        assert_eq!(history.speed(now, &current), None);
        history.push(now, Sample::default());
        assert_eq!(history.speed(now, &current), None, "too soon to tell");
    }

    #[test]
    fn growth_is_that_of_the_last_minutes_and_may_be_below_zero() {
        let (mut grown, start) = history(100);
        assert_eq!(grown.retained_growth(), Some(10.0));
        assert_eq!(history(3).0.retained_growth(), None, "too soon to tell");
        for n in 100..200 {
            let sample = Sample { retained_bytes: Some(10_000 - 10 * n), ..Sample::default() };
            grown.push(start + 5 * Duration::from_secs(n), sample);
        }
        assert_eq!(grown.retained_growth(), Some(-2.0));
    }
}
