//! The HTTP port's overview of metrics and health, with the history of the last hour, sampled every
//! few seconds.
//!
//! However often clients ask, it is computed at most a few times a second.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::health::Health;
use crate::metrics::{Metrics, ServiceMetrics};
use crate::overview::history::{History, SAMPLE_EVERY, Sample};
use crate::overview::{self, Overview, ServiceOverview, SourceServer, Trouble, Who, unix_seconds};

/// An answer is as good as new for this long.
const FRESH_FOR: Duration = Duration::from_millis(250);

pub struct Board {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// One for each service of the metrics, in their order.
    slots: Vec<String>,
    instance: String,
    started_at: SystemTime,
    state: Mutex<State>,
}

struct State {
    histories: Vec<History>,
    sampled_at: Option<Instant>,
    latest: Option<(Instant, Arc<Overview>)>,
}

impl Board {
    /// `slots` in the order of the services.
    pub fn new(metrics: Arc<Metrics>, health: Arc<Health>, slots: Vec<String>) -> Board {
        let histories = metrics.services().iter().map(|_| History::default()).collect();
        Board {
            metrics,
            health,
            slots,
            instance: crate::threads::instance(),
            started_at: SystemTime::now(),
            state: Mutex::new(State { histories, sampled_at: None, latest: None }),
        }
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Takes a sample of each service if it is time to. Call it every now and then.
    pub fn look(&self, now: Instant) {
        let mut state = self.state.lock();
        let is_due =
            state.sampled_at.is_none_or(|at| SAMPLE_EVERY <= now.saturating_duration_since(at));
        if is_due {
            state.sampled_at = Some(now);
            for (service, history) in self.metrics.services().iter().zip(&mut state.histories) {
                history.push(now, sample(service));
            }
        }
    }

    pub fn overview(&self) -> Arc<Overview> {
        let now = Instant::now();
        self.look(now);
        let mut state = self.state.lock();
        if let Some((at, latest)) = &state.latest
            && now.saturating_duration_since(*at) < FRESH_FOR
        {
            return Arc::clone(latest);
        }
        let overview = Arc::new(self.work_out(now, &state.histories));
        state.latest = Some((now, Arc::clone(&overview)));
        overview
    }

    fn work_out(&self, now: Instant, histories: &[History]) -> Overview {
        let (reasons, mut services) = self.health.overview();
        let measured = self.metrics.services().iter().zip(&self.slots).zip(histories);
        for ((metrics, slot), history) in measured {
            let service = services.get_mut(metrics.name()).expect("health has every service");
            service.slot.clone_from(slot);
            self.measure(now, service, metrics, history);
        }
        Overview {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: SourceServer::Process,
            instance: Some(self.instance.clone()),
            started_unix_seconds: Some(unix_seconds(self.started_at)),
            now_unix_seconds: unix_seconds(SystemTime::now()),
            healthy: reasons.is_empty(),
            reasons,
            services,
        }
    }

    /// Adds what health does not know.
    fn measure(
        &self,
        now: Instant,
        service: &mut ServiceOverview,
        metrics: &ServiceMetrics,
        history: &History,
    ) {
        let mask = self.health.mask();
        let server = metrics.server_wal();
        // Zero is where no position has been yet.
        let lsn = |lsn: crate::wal::Lsn| (lsn.0 != 0).then(|| lsn.to_string());
        service.wal = overview::Wal {
            server_lsn: server.and_then(|(wal, _)| lsn(wal.lsn)),
            server_seen_unix_seconds: server.map(|(_, seen)| unix_seconds(seen)),
            received_lsn: lsn(metrics.received.get()),
            flushed_lsn: lsn(metrics.flushed.get()),
            confirmed_lsn: lsn(metrics.confirmed()),
        };
        service.lag = overview::Lag {
            bytes: service.wal.behind(&service.wal.flushed_lsn),
            seconds: metrics.lag().map(|lag| lag.as_secs_f64()),
            seconds_since_confirmed: metrics.since_confirmed().map(|age| age.as_secs_f64()),
        };
        service.retained_wal = overview::RetainedWal {
            growth_bytes_per_second: history.retained_growth(),
            ..server.map(|(wal, _)| wal.retained).unwrap_or_default()
        }
        .with_forecast();
        service.throughput = history.speed(now, &sample(metrics));
        service.unflushed_bytes = Some(metrics.unflushed_bytes.get());
        service.insert_outage = metrics.insert_outage.cause().map(|cause| Trouble {
            error: mask.hide(&cause.error),
            hint: cause.hint.map(|hint| mask.hide(&hint)),
            ..cause
        });
        service.refused_rows = (metrics.tables().into_iter())
            .map(|(table, metrics)| (table, metrics.refused_rows.get()))
            .collect();
        if service.leader.who == Who::ThisProcess {
            service.leader.name = Some(self.instance.clone());
        }
        service.history = history_of(now, history);
    }
}

fn sample(metrics: &ServiceMetrics) -> Sample {
    let changes = [&metrics.inserts, &metrics.updates, &metrics.deletes, &metrics.truncates];
    Sample {
        rows: metrics.tables().iter().map(|(_, table)| table.rows_inserted.get()).sum(),
        changes: changes.iter().map(|counter| counter.get()).sum(),
        bytes: metrics.received_bytes.get(),
        lag_seconds: metrics.lag().map(|lag| lag.as_secs_f64()),
        retained_bytes: metrics.server_wal().and_then(|(wal, _)| wal.retained.bytes),
        unflushed_bytes: metrics.unflushed_bytes.get(),
    }
}

fn history_of(now: Instant, history: &History) -> overview::HistoryOverview {
    let time = SystemTime::now();
    let mut out = overview::HistoryOverview::default();
    for point in history.points() {
        let at = time.checked_sub(now.saturating_duration_since(point.at)).unwrap_or(time);
        out.at_unix_seconds.push(unix_seconds(at));
        out.lag_seconds.push(point.lag_seconds.map(two_digits));
        out.rows_per_second.push(point.rows_per_second.map(two_digits));
        out.retained_wal_bytes.push(point.retained_bytes);
        out.unflushed_bytes.push(point.unflushed_bytes);
    }
    out
}

/// After the point: more are noise, and there are hundreds of them.
fn two_digits(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
