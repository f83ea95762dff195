//! What `/healthz` says: a board on which the coordinator of each service writes its state.
//!
//! It judges nothing but whether an operator should look; the metrics' state follows it, so that
//! the two never differ. Texts of other parties pass the mask before they are kept.

mod changes;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use self::changes::shortened;
use crate::metrics::{Metrics, StateName};
use crate::secret::Mask;

pub use changes::{Changes, HealthChange};

/// A drain has a deadline well below this; one that is longer hangs.
const DRAINING_MAX: Duration = Duration::from_secs(60);
/// Up to this attempt backing off is weather. With the default delays it is reached after seconds,
/// so a restart of a server stays unnoticed and a failover that drags on does not.
pub const ATTEMPTS_HEALTHY: u32 = 3;

/// What a service is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceHealth {
    Starting,
    /// Another instance leads.
    StandingBy,
    Streaming,
    /// Waiting for the next attempt; `since` is when the stream ended, or was first tried for.
    BackingOff {
        attempt: u32,
        /// It has not streamed yet since the process started.
        first: bool,
        since: Instant,
    },
    Draining,
    /// It will not stream again in this process.
    Stopped {
        reason: String,
    },
    /// It waits for an operator.
    Failed {
        reason: String,
        hint: Option<String>,
    },
}

/// The board.
#[derive(Debug)]
pub struct Health {
    metrics: Arc<Metrics>,
    mask: Mask,
    services: Mutex<Vec<Entry>>,
}

/// Who holds the leader lock, as far as this process knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LeaderHealth {
    #[default]
    Unknown,
    ThisProcess,
    Another,
}

/// The last error of a service. It may well be healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastError {
    pub error: String,
    pub hint: Option<String>,
    pub at_unix_seconds: u64,
}

/// A service, for whoever shows more of it than `/healthz`.
#[derive(Debug, Clone)]
pub struct HealthReport {
    pub name: String,
    pub state: StateName,
    /// Why somebody should look, or nothing.
    pub unhealthy: Option<String>,
    pub since_unix_seconds: u64,
    pub for_seconds: u64,
    pub reason: Option<String>,
    pub hint: Option<String>,
    pub leader: LeaderHealth,
    pub last_error: Option<LastError>,
    pub repair: Option<RepairHealth>,
    /// What an operator should know, though it stops nothing.
    pub notes: Vec<String>,
    pub changes: Changes,
}

#[derive(Debug, Clone)]
struct Entry {
    name: String,
    health: ServiceHealth,
    since: Instant,
    since_unix_seconds: u64,
    /// Attempts since it last streamed or stood by. One that is only starting proves nothing.
    attempts: u32,
    /// Why it is in this state.
    reason: Option<String>,
    leader: LeaderHealth,
    last_error: Option<LastError>,
    repair: Option<RepairHealth>,
    notes: Vec<String>,
    changes: Changes,
}

/// How far a repair has come.
#[derive(Debug, Clone, PartialEq)]
pub struct RepairHealth {
    /// What made it necessary.
    pub reason: String,
    /// `read`, `count`, `delete`, or `catch up`: only the stream is waited for.
    pub pass: &'static str,
    /// Of the pass, from 0 to 1.
    pub fraction: f64,
    pub seconds_left: Option<u64>,
    pub pieces_done: usize,
    pub pieces: usize,
    pub rows_read: u64,
    pub rows_written: u64,
    pub tombstones_written: u64,
    /// Attempts in a row that failed, with the last error.
    pub failing: Option<(u32, String)>,
}

impl Health {
    /// All services of `metrics`, starting.
    pub fn new(metrics: Arc<Metrics>) -> Health {
        Health::with_mask(metrics, Mask::default())
    }

    /// The same, with secrets that no text may repeat.
    pub fn with_mask(metrics: Arc<Metrics>, mask: Mask) -> Health {
        let reason = Some("the process has started".to_owned());
        let entry = |name: &str| {
            let mut changes = Changes::default();
            changes.push(SystemTime::now(), StateName::Starting, reason.clone());
            Entry {
                name: name.to_owned(),
                health: ServiceHealth::Starting,
                since: Instant::now(),
                since_unix_seconds: unix_seconds(),
                attempts: 0,
                reason: reason.clone(),
                leader: LeaderHealth::Unknown,
                last_error: None,
                repair: None,
                notes: Vec::new(),
                changes,
            }
        };
        let services = metrics.services().iter().map(|service| entry(service.name())).collect();
        Health { metrics, mask, services: Mutex::new(services) }
    }

    /// For texts that did not come this way.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// Saying the same again changes nothing, not even since when it holds.
    pub fn publish(&self, service: &str, health: ServiceHealth) {
        self.publish_because(service, health, None);
    }

    /// The same with the reason, where the state does not have its own.
    pub fn publish_because(&self, service: &str, health: ServiceHealth, reason: Option<String>) {
        let hide = |text: String| shortened(self.mask.hide(&text));
        let health = match health {
            ServiceHealth::Stopped { reason } => ServiceHealth::Stopped { reason: hide(reason) },
            ServiceHealth::Failed { reason, hint } => {
                ServiceHealth::Failed { reason: hide(reason), hint: hint.map(hide) }
            }
            other => other,
        };
        let reason = match &health {
            ServiceHealth::Stopped { reason } | ServiceHealth::Failed { reason, .. } => {
                Some(reason.clone())
            }
            _ => reason.map(hide),
        };
        self.metrics.service(service).set_state(health.state());
        self.change(service, |entry| {
            match &health {
                ServiceHealth::BackingOff { attempt, .. } => entry.attempts = *attempt,
                ServiceHealth::Streaming | ServiceHealth::StandingBy => entry.attempts = 0,
                ServiceHealth::Starting
                | ServiceHealth::Draining
                | ServiceHealth::Stopped { .. }
                | ServiceHealth::Failed { .. } => {}
            }
            if entry.health.state() != health.state() {
                entry.since = Instant::now();
                entry.since_unix_seconds = unix_seconds();
                entry.changes.push(SystemTime::now(), health.state(), reason.clone());
            }
            entry.health = health;
            entry.reason = reason;
        });
    }

    /// The last error of a service, one line, to be shown with its time. It may well be healthy.
    pub fn report_error(&self, service: &str, error: &str, hint: Option<&str>) {
        let hide = |text: &str| shortened(self.mask.hide(text));
        let error =
            LastError { error: hide(error), hint: hint.map(hide), at_unix_seconds: unix_seconds() };
        self.change(service, |entry| entry.last_error = Some(error));
    }

    pub fn publish_leader(&self, service: &str, leader: LeaderHealth) {
        self.change(service, |entry| entry.leader = leader);
    }

    /// What an operator should know, though it stops nothing; in place of what was said before.
    pub fn publish_notes(&self, service: &str, notes: &[String]) {
        let notes: Vec<String> = notes.iter().map(|note| self.mask.hide(note)).collect();
        self.change(service, |entry| entry.notes = notes);
    }

    /// The repair under way, or that there is none.
    pub fn publish_repair(&self, service: &str, mut repair: Option<RepairHealth>) {
        if let Some(repair) = &mut repair {
            repair.reason = shortened(self.mask.hide(&repair.reason));
            if let Some((_, error)) = &mut repair.failing {
                *error = shortened(self.mask.hide(error));
            }
        }
        self.change(service, |entry| {
            let news = match (&entry.repair, &repair) {
                (None, Some(repair)) => Some(format!("repair: {}", repair.reason)),
                (Some(_), None) => Some("repair: over, or put off".to_owned()),
                (None, None) | (Some(_), Some(_)) => None,
            };
            if news.is_some() {
                entry.changes.push(SystemTime::now(), entry.health.state(), news);
            }
            entry.repair = repair;
        });
    }

    /// What is known of each service.
    pub fn reports(&self) -> Vec<HealthReport> {
        let now = Instant::now();
        let entries = self.services.lock().clone();
        entries.into_iter().map(|entry| entry.into_report(now)).collect()
    }

    fn change(&self, service: &str, change: impl FnOnce(&mut Entry)) {
        let mut services = self.services.lock();
        let entry = services.iter_mut().find(|entry| entry.name == service);
        change(entry.expect("the service is on the board"));
    }

    /// What each service is doing, in one line.
    pub fn summary(&self) -> String {
        let services = self.services.lock();
        let each = |entry: &Entry| format!("{}: {}", entry.name, entry.health.state().as_str());
        services.iter().map(each).collect::<Vec<_>>().join("; ")
    }

    /// The status code and the JSON of `/healthz`.
    pub fn healthz(&self) -> (u16, String) {
        let now = Instant::now();
        let entries = self.services.lock().clone();
        let reasons: Vec<String> = entries.iter().filter_map(|e| e.unhealthy(now)).collect();
        let services: Map<String, Value> =
            entries.iter().map(|entry| (entry.name.clone(), entry.to_json(now))).collect();
        let (code, status) = if reasons.is_empty() { (200, "ok") } else { (503, "unhealthy") };
        let mut body =
            json!({ "status": status, "reasons": reasons, "services": services }).to_string();
        body.push('\n');
        (code, body)
    }
}

impl ServiceHealth {
    pub fn state(&self) -> StateName {
        match self {
            ServiceHealth::Starting => StateName::Starting,
            ServiceHealth::StandingBy => StateName::StandingBy,
            ServiceHealth::Streaming => StateName::Streaming,
            ServiceHealth::BackingOff { .. } => StateName::BackingOff,
            ServiceHealth::Draining => StateName::Draining,
            ServiceHealth::Stopped { .. } => StateName::Stopped,
            ServiceHealth::Failed { .. } => StateName::Failed,
        }
    }
}

impl Entry {
    /// Why somebody should look, or nothing.
    fn unhealthy(&self, now: Instant) -> Option<String> {
        let Entry { name, attempts, .. } = self;
        let with_cause = |text: String| match &self.last_error {
            Some(LastError { error, .. }) => format!("{text}: {error}"),
            None => text,
        };
        match &self.health {
            ServiceHealth::Streaming => match self.repair.as_ref()?.failing.as_ref()? {
                (attempts, error) if ATTEMPTS_HEALTHY < *attempts => Some(format!(
                    "`{name}` streams, but its repair does not go on: attempt {attempts}: {error}"
                )),
                _ => None,
            },
            ServiceHealth::StandingBy => None,
            ServiceHealth::Draining => {
                let lasted = now.saturating_duration_since(self.since);
                (DRAINING_MAX < lasted).then(|| {
                    with_cause(format!("`{name}` is still draining after {} s", lasted.as_secs()))
                })
            }
            ServiceHealth::Starting | ServiceHealth::BackingOff { .. }
                if *attempts <= ATTEMPTS_HEALTHY =>
            {
                None
            }
            ServiceHealth::Starting => {
                Some(with_cause(format!("`{name}` is starting again after {attempts} attempts")))
            }
            ServiceHealth::BackingOff { attempt, first, since } => {
                let seconds = now.saturating_duration_since(*since).as_secs();
                let what = if *first { "has not streamed yet" } else { "does not stream" };
                Some(with_cause(format!("`{name}` {what}: attempt {attempt}, for {seconds} s")))
            }
            ServiceHealth::Stopped { reason } => Some(format!("`{name}` is stopped: {reason}")),
            ServiceHealth::Failed { reason, .. } => Some(format!("`{name}` failed: {reason}")),
        }
    }

    fn to_json(&self, now: Instant) -> Value {
        let mut json = json!({
            "state": self.health.state().as_str(),
            "healthy": self.unhealthy(now).is_none(),
            "since_unix_seconds": self.since_unix_seconds,
            "for_seconds": now.saturating_duration_since(self.since).as_secs(),
        });
        match &self.health {
            ServiceHealth::BackingOff { attempt, first, since } => {
                json["attempt"] = json!(attempt);
                json["has_streamed"] = json!(!first);
                let down = now.saturating_duration_since(*since).as_secs();
                json["down_for_seconds"] = json!(down);
            }
            ServiceHealth::Stopped { reason } => json["reason"] = json!(reason),
            ServiceHealth::Failed { reason, hint } => {
                json["reason"] = json!(reason);
                json["hint"] = json!(hint);
            }
            ServiceHealth::Starting
            | ServiceHealth::StandingBy
            | ServiceHealth::Streaming
            | ServiceHealth::Draining => {}
        }
        if let Some(repair) = &self.repair {
            json["repair"] = repair.to_json();
        }
        if let Some(LastError { error, at_unix_seconds, .. }) = &self.last_error {
            json["last_error"] = json!({ "error": error, "at_unix_seconds": at_unix_seconds });
        }
        json
    }

    fn into_report(self, now: Instant) -> HealthReport {
        HealthReport {
            unhealthy: self.unhealthy(now),
            state: self.health.state(),
            for_seconds: now.saturating_duration_since(self.since).as_secs(),
            hint: match self.health {
                ServiceHealth::Failed { hint, .. } => hint,
                _ => None,
            },
            name: self.name,
            since_unix_seconds: self.since_unix_seconds,
            reason: self.reason,
            leader: self.leader,
            last_error: self.last_error,
            repair: self.repair,
            notes: self.notes,
            changes: self.changes,
        }
    }
}

impl RepairHealth {
    fn to_json(&self) -> Value {
        let mut json = json!({
            "reason": self.reason,
            "pass": self.pass,
            // Four digits are more than anybody reads.
            "fraction": (self.fraction * 10_000.0).round() / 10_000.0,
            "seconds_left": self.seconds_left,
            "pieces_done": self.pieces_done,
            "pieces": self.pieces,
            "rows_read": self.rows_read,
            "rows_written": self.rows_written,
            "tombstones_written": self.tombstones_written,
            // As version 0.1 called it; gone in the next version.
            "rows_buried": self.tombstones_written,
        });
        if let Some((attempts, error)) = &self.failing {
            json["failing"] = json!({ "attempts": attempts, "error": error });
        }
        json
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backing_off(attempt: u32) -> ServiceHealth {
        ServiceHealth::BackingOff { attempt, first: false, since: Instant::now() }
    }

    /// Publishes the states of `runs` one after the other; `sessions` streams.
    fn check(states: &[(ServiceHealth, u16)]) -> Value {
        let health = Health::new(Arc::new(Metrics::new(&["runs", "sessions"])));
        health.publish("sessions", ServiceHealth::Streaming);
        let mut body = String::new();
        for (state, expected) in states {
            health.publish("runs", state.clone());
            let (code, text) = health.healthz();
            assert_eq!(code, *expected, "{state:?}: {text}");
            body = text;
        }
        serde_json::from_str(&body).unwrap()
    }

    #[test]
    fn working_waiting_and_ending_are_healthy() {
        check(&[
            (ServiceHealth::Starting, 200),
            (ServiceHealth::StandingBy, 200),
            (ServiceHealth::Streaming, 200),
            (ServiceHealth::Draining, 200),
        ]);
    }

    #[test]
    fn a_drain_without_end_is_not_healthy() {
        let health = Health::new(Arc::new(Metrics::new(&["runs"])));
        health.publish("runs", ServiceHealth::Draining);
        let entry = health.services.lock()[0].clone();
        assert_eq!(entry.unhealthy(entry.since + DRAINING_MAX), None);
        let later = entry.since + DRAINING_MAX + Duration::from_secs(1);
        assert_eq!(entry.unhealthy(later).as_deref(), Some("`runs` is still draining after 61 s"));
    }

    #[test]
    fn first_attempts_are_healthy_and_later_ones_are_not() {
        let json = check(&[
            (backing_off(1), 200),
            (backing_off(3), 200),
            (backing_off(4), 503),
            (ServiceHealth::Streaming, 200),
            (backing_off(1), 200),
        ]);
        assert_eq!(json["services"]["runs"]["attempt"], 1);
        assert_eq!(json["services"]["runs"]["has_streamed"], true);
    }

    #[test]
    fn starting_again_does_not_hide_a_long_outage() {
        let json = check(&[
            (backing_off(9), 503),
            (ServiceHealth::Starting, 503),
            (backing_off(10), 503),
            (ServiceHealth::Starting, 503),
        ]);
        assert_eq!(json["reasons"], json!(["`runs` is starting again after 10 attempts"]));
        assert_eq!(json["services"]["runs"]["healthy"], false);
        assert_eq!(json["services"]["sessions"]["healthy"], true);
        check(&[
            (backing_off(9), 503),
            (ServiceHealth::StandingBy, 200),
            (ServiceHealth::Starting, 200),
        ]);
    }

    #[test]
    fn a_repair_is_shown_and_unhealthy_once_it_keeps_failing() {
        let health = Health::new(Arc::new(Metrics::new(&["runs"])));
        let repair = |failing: Option<(u32, String)>| RepairHealth {
            reason: "gap: the slot is missing".to_owned(),
            pass: "read",
            fraction: 1.0 / 3.0,
            seconds_left: Some(9),
            pieces_done: 1,
            pieces: 3,
            rows_read: 10,
            rows_written: 2,
            tombstones_written: 0,
            failing,
        };
        health.publish("runs", ServiceHealth::Streaming);
        for (failing, code) in [(None, 200), (Some(3), 200), (Some(4), 503)] {
            let failing = failing.map(|attempts| (attempts, "no".to_owned()));
            health.publish_repair("runs", Some(repair(failing)));
            let (found, body) = health.healthz();
            assert_eq!(found, code, "{body}");
            let json: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(json["services"]["runs"]["repair"]["fraction"], 0.3333);
        }
        health.publish_repair("runs", None);
        assert!(!health.healthz().1.contains("repair"));
    }

    #[test]
    fn the_end_of_a_service_is_told_with_reason_and_hint() {
        let reason = "slot `s` is gone".to_owned();
        let hint = Some("Run: SELECT 1".to_owned());
        let json = check(&[(ServiceHealth::Failed { reason: reason.clone(), hint }, 503)]);
        assert_eq!(json["status"], "unhealthy");
        assert_eq!(json["reasons"], json!(["`runs` failed: slot `s` is gone"]));
        assert_eq!(json["services"]["runs"]["hint"], "Run: SELECT 1");
        let json = check(&[(ServiceHealth::Stopped { reason }, 503)]);
        assert_eq!(json["reasons"], json!(["`runs` is stopped: slot `s` is gone"]));
    }

    #[test]
    fn last_error_is_shown_and_explains_an_outage() {
        let health = Health::new(Arc::new(Metrics::new(&["runs"])));
        health.report_error("runs", "connect to postgres: \"refused\"\nby peer", None);
        let (code, body) = health.healthz();
        assert_eq!(code, 200);
        assert!(body.contains(r#""error":"connect to postgres: \"refused\"\nby peer""#), "{body}");
        health.publish("runs", backing_off(4));
        let json: Value = serde_json::from_str(&health.healthz().1).unwrap();
        let reason = json["reasons"][0].as_str().unwrap();
        assert!(
            reason.starts_with("`runs` does not stream: attempt 4, for 0 s: connect"),
            "{reason}"
        );
    }

    #[test]
    fn the_same_again_keeps_since() {
        let health = Health::new(Arc::new(Metrics::new(&["runs"])));
        let since = health.services.lock()[0].since;
        health.publish("runs", ServiceHealth::Starting);
        assert_eq!(health.services.lock()[0].since, since);
        health.publish("runs", ServiceHealth::Streaming);
        assert!(since <= health.services.lock()[0].since);
    }

    #[test]
    fn changes_are_told_with_reasons_and_without_secrets() {
        let metrics = Arc::new(Metrics::new(&["runs"]));
        let mask = Mask::new([crate::secret::Secret::new("hunter22")]);
        let health = Health::with_mask(metrics, mask);
        health.publish_because("runs", ServiceHealth::Streaming, Some("go".to_owned()));
        health.publish_because("runs", ServiceHealth::Streaming, Some("on".to_owned()));
        health.publish_leader("runs", LeaderHealth::ThisProcess);
        let text = "user:hunter22 was refused";
        health.report_error("runs", text, Some(text));
        let failed = ServiceHealth::Failed { reason: text.to_owned(), hint: Some(text.to_owned()) };
        health.publish("runs", failed);
        let reports = health.reports();
        let report = &reports[0];
        let changes: Vec<_> =
            report.changes.iter().map(|c| (c.state, c.reason.as_deref().unwrap_or(""))).collect();
        assert_eq!(
            changes,
            [
                (StateName::Starting, "the process has started"),
                (StateName::Streaming, "go"),
                (StateName::Failed, "user:*** was refused"),
            ]
        );
        assert_eq!(report.leader, LeaderHealth::ThisProcess);
        assert_eq!(report.hint.as_deref(), Some("user:*** was refused"));
        assert!(!format!("{reports:?}{}", health.healthz().1).contains("hunter22"));
    }

    #[test]
    fn metrics_show_the_same_state() {
        let metrics = Arc::new(Metrics::new(&["runs"]));
        let health = Health::new(Arc::clone(&metrics));
        health.publish("runs", backing_off(2));
        let line = r#"walhouse_state{service="runs",state="backing_off"} 1"#;
        assert!(metrics.encode().lines().any(|l| l == line), "{}", metrics.encode());
    }
}
