//! The metrics, and their text for Prometheus.
//!
//! Every instrument is a handle on an atomic: counting takes no lock and no memory. Handles for a
//! table or a column are resolved once and kept by the counting thread. Nothing here decides
//! anything, and no label ever carries a value of a row.

mod at_scrape;
mod behind;
mod histogram;
mod outage;
mod text;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge as ClientGauge;
use prometheus_client::registry::Registry;

use self::at_scrape::AtScrape;
use self::behind::Behind;
use crate::overview::ServiceState;
use crate::wal::{Lsn, PgTime};

pub use behind::ServerWal;
pub use histogram::Histogram;
pub use outage::Outage;
pub use prometheus_client::metrics::counter::Counter;
pub use text::CONTENT_TYPE;

/// A measured level.
pub type Gauge = ClientGauge<u64, AtomicU64>;

/// From 0 to 1.
pub type RatioGauge = ClientGauge<f64, AtomicU64>;

type Labels = Vec<(&'static str, String)>;

/// Seconds; replication should live at the left end, an outage of hours must still be
/// distinguishable from one of minutes.
const LAG_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
    14400.0,
];
const FLUSH_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const BATCH_ROWS: &[f64] =
    &[1.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 5000.0, 10_000.0, 50_000.0, 100_000.0];

/// Everything the process measures.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    services: Vec<Arc<ServiceMetrics>>,
}

/// The instruments of one service.
#[derive(Debug)]
pub struct ServiceMetrics {
    name: String,

    /// Bytes of the stream, as received.
    pub received_bytes: Counter,
    /// Transactions read whole.
    pub transactions: Counter,
    pub inserts: Counter,
    pub updates: Counter,
    pub deletes: Counter,
    pub truncates: Counter,
    /// Changes of tables that the service does not replicate.
    pub changes_ignored: Counter,
    pub truncates_ignored: Counter,

    /// From the commit in Postgres until durable in ClickHouse.
    pub replication_lag: Histogram,
    pub batches_flushed: Counter,
    pub batches_failed: Counter,
    pub batch_rows: Histogram,
    pub flush_duration: Histogram,

    /// Rows without an organization or an environment type.
    pub rows_without_owner: Counter,
    pub toast_rereads: Counter,
    pub toast_rows_gone: Counter,
    pub deletes_looked_up: Counter,
    pub deletes_unresolved: Counter,
    pub reused_keys: Counter,

    pub reconnects: Counter,
    pub is_leader: Flag,
    pub insert_outage: Outage,
    pub received: LsnGauge,
    pub flushed: LsnGauge,
    confirmed: LsnGauge,
    pub unflushed_bytes: Gauge,

    /// A repair is under way.
    pub repair_running: Flag,
    /// It keeps failing.
    pub repair_failing: Flag,
    pub repair_progress: RatioGauge,
    pub repair_rows_read: Counter,
    pub repair_rows_written: Counter,
    pub repair_rows_deleted: Counter,
    /// The same under the name of version 0.1, for dashboards; gone in the next version.
    pub repair_rows_buried: Counter,
    pub repairs: Counter,
    pub gaps_skipped: Counter,

    state: AtomicUsize,
    confirmed_at: ConfirmedAt,
    behind: Behind,
    /// Every table that was asked for, for sums.
    tables: Mutex<Vec<(String, TableMetrics)>>,

    rows_inserted: Family<Labels, Counter>,
    insert_retries: Family<Labels, Counter>,
    refused_rows: Family<Labels, Counter>,
    rows_refused_by_views: Family<Labels, Counter>,
    adjusted_values: Family<Labels, Counter>,
}

/// The instruments of one target table.
#[derive(Debug, Clone)]
pub struct TableMetrics {
    pub rows_inserted: Counter,
    pub insert_retries: Counter,
    pub refused_rows: Counter,
    pub rows_refused_by_views: Counter,
}

/// Yes or no, as 1 or 0.
#[derive(Debug, Clone)]
pub struct Flag(Gauge);

/// An LSN as a number of bytes, so that differences can be graphed.
#[derive(Debug, Clone)]
pub struct LsnGauge(Gauge);

/// Both clocks: one to print, one to count seconds that no time server moves.
#[derive(Debug)]
struct ConfirmedAt {
    base: Instant,
    /// Milliseconds after `base`, plus one; 0 is never.
    since_base_ms: AtomicU64,
    unix_ms: AtomicU64,
}

impl Metrics {
    /// One set of instruments per service, all of them at zero.
    pub fn new(services: &[&str]) -> Metrics {
        let mut registry = Registry::with_prefix("walhouse");
        let services = ServiceMetrics::register(&mut registry, services);
        let info = Family::<Labels, Gauge>::default();
        info.get_or_create_owned(&vec![("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1);
        registry.register("build_info", "The version that runs, as a label; always 1", info);
        registry.register_collector(Box::new(AtScrape { services: services.clone() }));
        Metrics { registry, services }
    }

    pub fn services(&self) -> &[Arc<ServiceMetrics>] {
        &self.services
    }

    pub fn service(&self, name: &str) -> Arc<ServiceMetrics> {
        let service = self.services.iter().find(|service| service.name == name);
        Arc::clone(service.expect("the service was named when the metrics were made"))
    }

    /// The text that Prometheus scrapes, of type [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        text::encode(&self.registry)
    }
}

impl ServiceMetrics {
    fn register(registry: &mut Registry, services: &[&str]) -> Vec<Arc<ServiceMetrics>> {
        let r = registry;
        let received_bytes =
            counter(r, "received_bytes", "Bytes of the stream that were read from the slot");
        let transactions = counter(r, "transactions", "Transactions read from the slot");
        let changes = counter(r, "changes_processed", "Changes of replicated tables, by kind");
        let ignored = counter(r, "changes_ignored", "Changes of tables that are not replicated");
        let truncates_ignored =
            counter(r, "truncates_ignored", "Truncates that were not applied in ClickHouse");
        let lag = histogram(
            r,
            "replication_lag_seconds",
            "Time from the commit in Postgres until its rows are durable in ClickHouse",
            LAG_SECONDS,
        );
        let batches = counter(r, "batches_flushed", "Batches whose flush ended, by success");
        let rows = histogram(r, "batch_size_rows", "Rows per batch", BATCH_ROWS);
        let duration = histogram(
            r,
            "flush_duration_seconds",
            "Time from the first insert of a batch until all of it is durable",
            FLUSH_SECONDS,
        );
        let rows_inserted = counter(r, "rows_inserted", "Rows made durable, by table");
        let insert_retries = counter(r, "insert_retries", "Inserts that were retried, by table");
        let refused_rows = counter(
            r,
            "refused_rows",
            "Rows that ClickHouse refused, kept in walhouse_refused_rows",
        );
        let by_views = counter(
            r,
            "rows_refused_by_views",
            "Rows that are in their table but that a materialized view of it refused",
        );
        let adjusted_values =
            counter(r, "adjusted_values", "Values that had to be changed to fit, by column");
        let without_owner = counter(
            r,
            "rows_without_owner",
            "Rows without organization or environment type, which are not replicated",
        );
        let toast_rereads =
            counter(r, "toast_rereads", "Rows read again for an unchanged TOAST value");
        let toast_gone =
            counter(r, "toast_rows_gone", "Rows that were gone when they were read again");
        let looked_up = counter(
            r,
            "deletes_looked_up",
            "Deletes whose sorting key was looked up in ClickHouse",
        );
        let unresolved =
            counter(r, "deletes_unresolved", "Deletes for which ClickHouse had no row");
        let reused = counter(
            r,
            "reused_keys",
            "Rows given a version above that of a delete of their key that follows them in the WAL",
        );
        let reconnects = counter(r, "reconnects", "Attempts to stream after the first");
        let is_leader = gauge(r, "is_leader", "Whether this process holds the leader lock");
        let outage = gauge(r, "insert_outage", "Whether inserts into ClickHouse keep failing");
        let received = gauge(r, "received_lsn", "End of the WAL received so far, as bytes");
        let flushed = gauge(r, "flushed_lsn", "WAL that is durable in ClickHouse, as bytes");
        let confirmed = gauge(r, "confirmed_lsn", "WAL that was confirmed to Postgres, as bytes");
        let unflushed = gauge(r, "unflushed_bytes", "Memory held by rows that are not yet durable");
        let repairing =
            gauge(r, "repair_running", "Whether the table is being compared and mended");
        let failing = gauge(r, "repair_failing", "Whether the repair under way keeps failing");
        let progress = Family::<Labels, RatioGauge>::default();
        let help = "Progress of the repair under way, or of the last one, from 0 to 1";
        r.register("repair_progress_ratio", help, progress.clone());
        let repair_rows =
            counter(r, "repair_rows", "Rows that repairs read, wrote, or marked as deleted");
        let gaps = counter(r, "gaps", "Gaps and forks that were found, by what was done");

        let one = |name: &str| -> Arc<ServiceMetrics> {
            let service = || vec![("service", name.to_owned())];
            let with = |label: &'static str, value: &str| labels(name, label, value);
            Arc::new(ServiceMetrics {
                name: name.to_owned(),
                received_bytes: received_bytes.get_or_create_owned(&service()),
                transactions: transactions.get_or_create_owned(&service()),
                inserts: changes.get_or_create_owned(&with("kind", "insert")),
                updates: changes.get_or_create_owned(&with("kind", "update")),
                deletes: changes.get_or_create_owned(&with("kind", "delete")),
                truncates: changes.get_or_create_owned(&with("kind", "truncate")),
                changes_ignored: ignored.get_or_create_owned(&service()),
                truncates_ignored: truncates_ignored.get_or_create_owned(&service()),
                replication_lag: lag.get_or_create_owned(&service()),
                batches_flushed: batches.get_or_create_owned(&with("success", "true")),
                batches_failed: batches.get_or_create_owned(&with("success", "false")),
                batch_rows: rows.get_or_create_owned(&service()),
                flush_duration: duration.get_or_create_owned(&service()),
                rows_without_owner: without_owner.get_or_create_owned(&service()),
                toast_rereads: toast_rereads.get_or_create_owned(&service()),
                toast_rows_gone: toast_gone.get_or_create_owned(&service()),
                deletes_looked_up: looked_up.get_or_create_owned(&service()),
                deletes_unresolved: unresolved.get_or_create_owned(&service()),
                reused_keys: reused.get_or_create_owned(&service()),
                reconnects: reconnects.get_or_create_owned(&service()),
                is_leader: Flag(is_leader.get_or_create_owned(&service())),
                insert_outage: Outage::new(outage.get_or_create_owned(&service())),
                received: LsnGauge(received.get_or_create_owned(&service())),
                flushed: LsnGauge(flushed.get_or_create_owned(&service())),
                confirmed: LsnGauge(confirmed.get_or_create_owned(&service())),
                unflushed_bytes: unflushed.get_or_create_owned(&service()),
                repair_running: Flag(repairing.get_or_create_owned(&service())),
                repair_failing: Flag(failing.get_or_create_owned(&service())),
                repair_progress: progress.get_or_create_owned(&service()),
                repair_rows_read: repair_rows.get_or_create_owned(&with("action", "read")),
                repair_rows_written: repair_rows.get_or_create_owned(&with("action", "written")),
                repair_rows_deleted: repair_rows.get_or_create_owned(&with("action", "deleted")),
                repair_rows_buried: repair_rows.get_or_create_owned(&with("action", "buried")),
                repairs: gaps.get_or_create_owned(&with("action", "repaired")),
                gaps_skipped: gaps.get_or_create_owned(&with("action", "skipped")),
                state: AtomicUsize::new(ServiceState::Starting as usize),
                confirmed_at: ConfirmedAt {
                    base: Instant::now(),
                    since_base_ms: AtomicU64::new(0),
                    unix_ms: AtomicU64::new(0),
                },
                behind: Behind::default(),
                tables: Mutex::default(),
                rows_inserted: rows_inserted.clone(),
                insert_retries: insert_retries.clone(),
                refused_rows: refused_rows.clone(),
                rows_refused_by_views: by_views.clone(),
                adjusted_values: adjusted_values.clone(),
            })
        };
        services.iter().map(|name| one(name)).collect()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes a lock and memory: resolve it once, before the first row.
    pub fn table(&self, table: &str) -> TableMetrics {
        let labels = labels(&self.name, "table", table);
        let mut tables = self.tables.lock();
        if let Some((_, known)) = tables.iter().find(|(name, _)| name == table) {
            return known.clone();
        }
        let metrics = TableMetrics {
            rows_inserted: self.rows_inserted.get_or_create_owned(&labels),
            insert_retries: self.insert_retries.get_or_create_owned(&labels),
            refused_rows: self.refused_rows.get_or_create_owned(&labels),
            rows_refused_by_views: self.rows_refused_by_views.get_or_create_owned(&labels),
        };
        tables.push((table.to_owned(), metrics.clone()));
        metrics
    }

    /// Every table that was asked for by now.
    pub fn tables(&self) -> Vec<(String, TableMetrics)> {
        self.tables.lock().clone()
    }

    /// Takes a lock and memory: resolve it once per column.
    pub fn adjusted_values(&self, column: &str) -> Counter {
        self.adjusted_values.get_or_create_owned(&labels(&self.name, "column", column))
    }

    /// Call it for every confirmation, also for one that repeats the LSN: it shows that we live.
    pub fn on_confirmed(&self, confirmed: Lsn) {
        self.confirmed.set(confirmed);
        let at = &self.confirmed_at;
        at.unix_ms.store(unix_millis(), Relaxed);
        at.since_base_ms.store(millis(at.base.elapsed()) + 1, Relaxed);
    }

    pub fn confirmed(&self) -> Lsn {
        self.confirmed.get()
    }

    /// Age of the last confirmation; `None` before the first.
    pub fn since_confirmed(&self) -> Option<Duration> {
        let at = &self.confirmed_at;
        match at.since_base_ms.load(Relaxed) {
            0 => None,
            since => {
                Some(Duration::from_millis((millis(at.base.elapsed()) + 1).saturating_sub(since)))
            }
        }
    }

    pub fn set_state(&self, state: ServiceState) {
        self.state.store(state as usize, Relaxed);
    }

    fn state(&self) -> ServiceState {
        let number = self.state.load(Relaxed);
        ServiceState::ALL
            .into_iter()
            .find(|s| *s as usize == number)
            .unwrap_or(ServiceState::Starting)
    }

    /// Commit time of the oldest transaction whose rows are read and not durable.
    pub fn set_oldest_unflushed(&self, committed_at: Option<PgTime>) {
        self.behind.set_oldest_unflushed(committed_at);
    }

    /// The server's WAL as just read.
    pub fn on_server_wal(&self, wal: ServerWal) {
        self.behind.on_server(Instant::now(), SystemTime::now(), wal);
    }

    /// The server's WAL when last read, and when that was.
    pub fn server_wal(&self) -> Option<(ServerWal, SystemTime)> {
        let (mut wal, at) = self.behind.server()?;
        // WAL that was received exists on the server, too.
        wal.lsn = wal.lsn.max(self.received.get());
        Some((wal, at))
    }

    /// How long what Postgres has waits to be durable. Without a stream it is the time since the
    /// last confirmation; `None` if that is not known, or another instance leads.
    pub fn lag(&self) -> Option<Duration> {
        match self.state() {
            ServiceState::Streaming | ServiceState::Draining => {
                let flushed = self.flushed.get();
                Some(self.behind.lag(Instant::now(), SystemTime::now(), flushed))
            }
            ServiceState::StandingBy => None,
            ServiceState::Starting
            | ServiceState::BackingOff
            | ServiceState::Stopped
            | ServiceState::Failed => self.since_confirmed(),
        }
    }
}

impl Flag {
    pub fn raise(&self) {
        self.0.set(1);
    }

    pub fn lower(&self) {
        self.0.set(0);
    }
}

impl LsnGauge {
    pub fn set(&self, lsn: Lsn) {
        self.0.set(lsn.0);
    }

    pub fn get(&self) -> Lsn {
        Lsn(self.0.get())
    }
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Family<Labels, Counter> {
    let family = Family::default();
    registry.register(name, help, family.clone());
    family
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Family<Labels, Gauge> {
    let family = Family::default();
    registry.register(name, help, family.clone());
    family
}

fn histogram(
    registry: &mut Registry,
    name: &str,
    help: &str,
    bounds: &'static [f64],
) -> Family<Labels, Histogram, Bounds> {
    let family = Family::new_with_constructor(Bounds(bounds));
    registry.register(name, help, family.clone());
    family
}

/// Makes the histograms of a family.
#[derive(Debug, Clone)]
struct Bounds(&'static [f64]);

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0)
    }
}

fn labels(service: &str, label: &'static str, value: &str) -> Labels {
    vec![("service", service.to_owned()), (label, value.to_owned())]
}

fn millis(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

fn unix_millis() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value_of(text: &str, sample: &str) -> Option<f64> {
        let line = text.lines().find(|line| line.starts_with(&format!("{sample} ")))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    #[test]
    fn every_service_counts_for_itself() {
        let metrics = Metrics::new(&["runs", "sessions"]);
        let runs = metrics.service("runs");
        runs.inserts.inc_by(3);
        runs.table("task_runs_v2").rows_inserted.inc_by(2);
        runs.table("task_runs_v2").rows_inserted.inc();
        runs.adjusted_values("usage_duration_ms").inc();
        runs.batches_failed.inc();
        let text = metrics.encode();
        for (sample, value) in [
            (r#"walhouse_changes_processed_total{service="runs",kind="insert"}"#, 3.0),
            (r#"walhouse_changes_processed_total{service="sessions",kind="insert"}"#, 0.0),
            (r#"walhouse_rows_inserted_total{service="runs",table="task_runs_v2"}"#, 3.0),
            (r#"walhouse_adjusted_values_total{service="runs",column="usage_duration_ms"}"#, 1.0),
            (r#"walhouse_batches_flushed_total{service="runs",success="false"}"#, 1.0),
            (r#"walhouse_batches_flushed_total{service="runs",success="true"}"#, 0.0),
        ] {
            assert_eq!(value_of(&text, sample), Some(value), "{sample} in\n{text}");
        }
    }

    #[test]
    fn exactly_one_state_is_1() {
        let metrics = Metrics::new(&["runs"]);
        for set in ServiceState::ALL {
            metrics.service("runs").set_state(set);
            let text = metrics.encode();
            for state in ServiceState::ALL {
                let name = state.as_str();
                let sample = format!(r#"walhouse_state{{service="runs",state="{name}"}}"#);
                let expected = f64::from(u8::from(state == set));
                assert_eq!(value_of(&text, &sample), Some(expected), "{sample} in {set:?}");
            }
        }
    }

    #[test]
    fn age_of_a_confirmation_is_told_only_after_the_first() {
        let metrics = Metrics::new(&["runs"]);
        let age = r#"walhouse_seconds_since_confirmed{service="runs"}"#;
        let time = r#"walhouse_confirmed_timestamp_seconds{service="runs"}"#;
        assert_eq!(value_of(&metrics.encode(), age), None);

        let before = seconds(unix_millis());
        metrics.service("runs").on_confirmed(Lsn(0x16_B374_D848));
        let text = metrics.encode();
        let age = value_of(&text, age).unwrap();
        assert!((0.0..60.0).contains(&age), "{age}");
        assert!(before <= value_of(&text, time).unwrap());
        let lsn = value_of(&text, r#"walhouse_confirmed_lsn{service="runs"}"#);
        assert_eq!(lsn, Some(0x16_B374_D848_u64 as f64));
    }

    #[test]
    fn lag_is_told_by_whoever_it_is_for() {
        let metrics = Metrics::new(&["runs"]);
        let runs = metrics.service("runs");
        let sample = r#"walhouse_current_lag_seconds{service="runs"}"#;
        let lag = || value_of(&metrics.encode(), sample);
        assert_eq!(lag(), None, "nothing was confirmed, and nothing streams");
        runs.set_state(ServiceState::Streaming);
        assert_eq!(lag(), Some(0.0));
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        runs.set_oldest_unflushed(Some(PgTime::of(long_ago)));
        assert!(lag().is_some_and(|lag| 3600.0 <= lag));
        runs.set_oldest_unflushed(None);
        runs.set_state(ServiceState::StandingBy);
        assert_eq!(lag(), None, "another instance leads");
        runs.on_confirmed(Lsn(1));
        runs.set_state(ServiceState::BackingOff);
        assert!(lag().is_some_and(|lag| lag < 60.0), "since the last confirmation");
    }

    #[test]
    fn what_the_server_has_is_never_less_than_what_was_read() {
        let metrics = Metrics::new(&["runs"]);
        let runs = metrics.service("runs");
        let sample = r#"walhouse_server_lsn{service="runs"}"#;
        assert_eq!(value_of(&metrics.encode(), sample), None);
        runs.on_server_wal(ServerWal { lsn: Lsn(100), ..ServerWal::default() });
        runs.received.set(Lsn(150));
        assert_eq!(value_of(&metrics.encode(), sample), Some(150.0));
        assert!(!metrics.encode().contains("retained_wal"), "it has no slot");
    }

    #[test]
    fn flags_are_1_or_0() {
        let metrics = Metrics::new(&["runs"]);
        let sample = r#"walhouse_is_leader{service="runs"}"#;
        metrics.service("runs").is_leader.raise();
        assert_eq!(value_of(&metrics.encode(), sample), Some(1.0));
        metrics.service("runs").is_leader.lower();
        assert_eq!(value_of(&metrics.encode(), sample), Some(0.0));
    }
}
