//! The answer of `/healthz`: a board on which the coordinator of each service writes its state.
//!
//! It only judges whether an operator should look; the metrics' state follows it, so that the two
//! never differ. Texts of other parties pass the mask before they are kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::metrics::Metrics;
use crate::overview::{
    Repair, ServiceOverview, ServiceState, StateChange, Trouble, Who, unix_seconds,
};
use crate::secret::Mask;

/// A drain has a deadline well below this; one that is longer hangs.
const DRAINING_MAX: Duration = Duration::from_secs(60);
/// Up to this attempt backing off is weather. With the default delays it is reached after seconds,
/// so a restart of a server stays unnoticed and a failover that drags on does not.
pub const ATTEMPTS_HEALTHY: u32 = 3;
/// A service that fails over and over makes two changes a minute.
const CHANGES_MAX: usize = 50;
/// The text of an error may be as long as a server likes.
const REASON_CHARS_MAX: usize = 600;

/// The state of a service, and why.
#[derive(Debug, Clone)]
pub struct Condition {
    pub state: ServiceState,
    pub reason: Option<String>,
    pub hint: Option<String>,
    /// While it backs off.
    pub attempts: Option<Attempts>,
}

/// Those since it last streamed or stood by.
#[derive(Debug, Clone, Copy)]
pub struct Attempts {
    pub count: u32,
    /// It has not streamed yet since the process started.
    pub first: bool,
    /// When the stream ended, or was first tried for.
    pub since: Instant,
}

/// The board.
#[derive(Debug)]
pub struct Health {
    metrics: Arc<Metrics>,
    mask: Mask,
    services: Mutex<Vec<Entry>>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: String,
    state: ServiceState,
    since: Instant,
    /// Kept while it starts again: one that is only starting proves nothing.
    attempts: Option<Attempts>,
    /// The part of the overview that is known here.
    shown: ServiceOverview,
}

impl Condition {
    pub fn because(state: ServiceState, reason: impl Into<String>) -> Condition {
        Condition { reason: Some(reason.into()), ..Condition::from(state) }
    }
}

impl From<ServiceState> for Condition {
    fn from(state: ServiceState) -> Condition {
        Condition { state, reason: None, hint: None, attempts: None }
    }
}

impl Health {
    /// All services of `metrics`, starting.
    pub fn new(metrics: Arc<Metrics>) -> Health {
        Health::with_mask(metrics, Mask::default())
    }

    /// The same, with secrets that no text may repeat.
    pub fn with_mask(metrics: Arc<Metrics>, mask: Mask) -> Health {
        let services = metrics.services().iter().map(|service| Entry::new(service.name()));
        let services = Mutex::new(services.collect());
        Health { metrics, mask, services }
    }

    /// For texts that did not come this way.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// A state again changes nothing but its reason, not even since when it holds.
    pub fn publish(&self, service: &str, condition: impl Into<Condition>) {
        let Condition { state, reason, hint, attempts } = condition.into();
        let (reason, hint) = (reason.map(|r| self.hide(&r)), hint.map(|h| self.hide(&h)));
        self.metrics.service(service).set_state(state);
        self.change(service, |entry| {
            match state {
                ServiceState::BackingOff => entry.attempts = attempts,
                ServiceState::Streaming | ServiceState::StandingBy => entry.attempts = None,
                ServiceState::Starting
                | ServiceState::Draining
                | ServiceState::Stopped
                | ServiceState::Failed => {}
            }
            if entry.state != state {
                entry.enter(state, reason.clone());
            }
            (entry.shown.reason, entry.shown.hint) = (reason, hint);
        });
    }

    /// The last error of a service, one line, to be shown with its time. It may well be healthy.
    pub fn report_error(&self, service: &str, error: &str, hint: Option<&str>) {
        let error = Trouble {
            error: self.hide(error),
            hint: hint.map(|hint| self.hide(hint)),
            at_unix_seconds: unix_seconds(SystemTime::now()),
        };
        self.change(service, |entry| entry.shown.last_error = Some(error));
    }

    /// The holder of the leader lock, as far as this process knows.
    pub fn publish_leader(&self, service: &str, leader: Who) {
        self.change(service, |entry| entry.shown.leader.who = leader);
    }

    /// What an operator should know, though it stops nothing; replacing earlier ones.
    pub fn publish_notes(&self, service: &str, notes: &[String]) {
        let notes: Vec<String> = notes.iter().map(|note| self.mask.hide(note)).collect();
        self.change(service, |entry| entry.shown.notes = notes);
    }

    /// The repair under way, or that there is none.
    pub fn publish_repair(&self, service: &str, mut repair: Option<Repair>) {
        if let Some(repair) = &mut repair {
            repair.reason = self.hide(&repair.reason);
            repair.error = repair.error.as_ref().map(|error| self.hide(error));
        }
        self.change(service, |entry| {
            match (&entry.shown.repair, &repair) {
                (None, Some(repair)) => entry.tell(Some(format!("repair: {}", repair.reason))),
                (Some(_), None) => entry.tell(Some("repair: over, or put off".to_owned())),
                (None, None) | (Some(_), Some(_)) => {}
            }
            entry.shown.repair = repair;
        });
    }

    /// What is known here of each service, and the reasons for attention.
    pub fn overview(&self) -> (Vec<String>, BTreeMap<String, ServiceOverview>) {
        let now = Instant::now();
        let entries = self.services.lock().clone();
        let reasons = entries.iter().filter_map(|entry| entry.unhealthy(now)).collect();
        let shown = |entry: Entry| {
            let healthy = entry.unhealthy(now).is_none();
            (entry.name, ServiceOverview { healthy, ..entry.shown })
        };
        (reasons, entries.into_iter().map(shown).collect())
    }

    fn change(&self, service: &str, change: impl FnOnce(&mut Entry)) {
        let mut services = self.services.lock();
        let entry = services.iter_mut().find(|entry| entry.name == service);
        change(entry.expect("the service is on the board"));
    }

    /// Without secrets, and cut to what a page can show.
    fn hide(&self, text: &str) -> String {
        let text = self.mask.hide(text);
        match text.char_indices().nth(REASON_CHARS_MAX) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        }
    }

    /// The state of each service, in one line.
    pub fn summary(&self) -> String {
        let services = self.services.lock();
        let each = |entry: &Entry| format!("{}: {}", entry.name, entry.state.as_str());
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

impl Entry {
    fn new(name: &str) -> Entry {
        let mut entry = Entry {
            name: name.to_owned(),
            state: ServiceState::Starting,
            since: Instant::now(),
            attempts: None,
            shown: ServiceOverview::default(),
        };
        let reason = Some("the process has started".to_owned());
        entry.enter(ServiceState::Starting, reason.clone());
        entry.shown.reason = reason;
        entry
    }

    fn enter(&mut self, state: ServiceState, reason: Option<String>) {
        self.state = state;
        self.shown.state = state.as_str().to_owned();
        self.since = Instant::now();
        self.shown.since_unix_seconds = Some(unix_seconds(SystemTime::now()));
        self.tell(reason);
    }

    /// Records a change of the service, the latest first.
    fn tell(&mut self, reason: Option<String>) {
        let change = StateChange {
            at_unix_seconds: unix_seconds(SystemTime::now()),
            state: self.state.as_str().to_owned(),
            reason,
        };
        self.shown.changes.insert(0, change);
        self.shown.changes.truncate(CHANGES_MAX);
    }

    /// The reason for attention, if any.
    fn unhealthy(&self, now: Instant) -> Option<String> {
        let name = &self.name;
        let seconds_since = |then| now.saturating_duration_since(then).as_secs();
        let with_cause = |text: String| match &self.shown.last_error {
            Some(last) => format!("{text}: {}", last.error),
            None => text,
        };
        let reason = self.shown.reason.as_deref().unwrap_or_default();
        let attempts = self.attempts.filter(|attempts| ATTEMPTS_HEALTHY < attempts.count);
        match (self.state, attempts) {
            (ServiceState::Streaming, _) => {
                let repair = self.shown.repair.as_ref()?;
                let (attempts, error) = (repair.failed_attempts, repair.error.as_ref()?);
                (ATTEMPTS_HEALTHY < attempts).then(|| {
                    format!(
                        "`{name}` streams, but its repair makes no progress: attempt {attempts}: \
                         {error}"
                    )
                })
            }
            (ServiceState::Draining, _) => {
                let lasted = seconds_since(self.since);
                (DRAINING_MAX < now.saturating_duration_since(self.since))
                    .then(|| with_cause(format!("`{name}` is still draining after {lasted} s")))
            }
            (ServiceState::Starting, Some(Attempts { count, .. })) => {
                Some(with_cause(format!("`{name}` is starting again after {count} attempts")))
            }
            (ServiceState::BackingOff, Some(Attempts { count, first, since })) => {
                let seconds = seconds_since(since);
                let what = if first { "has not streamed yet" } else { "does not stream" };
                Some(with_cause(format!("`{name}` {what}: attempt {count}, for {seconds} s")))
            }
            (ServiceState::Stopped, _) => Some(format!("`{name}` is stopped: {reason}")),
            (ServiceState::Failed, _) => Some(format!("`{name}` failed: {reason}")),
            (ServiceState::StandingBy, _)
            | (ServiceState::Starting | ServiceState::BackingOff, None) => None,
        }
    }

    fn to_json(&self, now: Instant) -> Value {
        let seconds_since = |then| now.saturating_duration_since(then).as_secs();
        let shown = &self.shown;
        let mut json = json!({
            "state": shown.state,
            "healthy": self.unhealthy(now).is_none(),
            "since_unix_seconds": shown.since_unix_seconds,
            "for_seconds": seconds_since(self.since),
        });
        if let (ServiceState::BackingOff, Some(attempts)) = (self.state, self.attempts) {
            json["attempt"] = json!(attempts.count);
            json["has_streamed"] = json!(!attempts.first);
            json["down_for_seconds"] = json!(seconds_since(attempts.since));
        }
        if matches!(self.state, ServiceState::Stopped | ServiceState::Failed) {
            json["reason"] = json!(shown.reason.as_deref().unwrap_or_default());
        }
        if self.state == ServiceState::Failed {
            json["hint"] = json!(shown.hint);
        }
        if let Some(repair) = &shown.repair {
            json["repair"] = repair_json(repair);
        }
        if let Some(Trouble { error, at_unix_seconds, .. }) = &shown.last_error {
            json["last_error"] = json!({ "error": error, "at_unix_seconds": at_unix_seconds });
        }
        json
    }
}

fn repair_json(repair: &Repair) -> Value {
    let mut json = json!({
        "reason": repair.reason,
        "pass": repair.pass,
        // Four digits are more than anybody reads.
        "fraction": repair.fraction.map(|fraction| (fraction * 10_000.0).round() / 10_000.0),
        "seconds_left": repair.seconds_left,
        "pieces_done": repair.pieces_done,
        "pieces": repair.pieces,
        "rows_read": repair.rows_read,
        "rows_written": repair.rows_written,
        "tombstones_written": repair.tombstones_written,
        // As version 0.1 called it; gone in the next version.
        "rows_buried": repair.tombstones_written,
    });
    if let Some(error) = &repair.error {
        json["failing"] = json!({ "attempts": repair.failed_attempts, "error": error });
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backing_off(count: u32) -> Condition {
        let attempts = Some(Attempts { count, first: false, since: Instant::now() });
        Condition { attempts, ..Condition::from(ServiceState::BackingOff) }
    }

    fn board() -> Health {
        Health::new(Arc::new(Metrics::new(&["runs"])))
    }

    /// Publishes the states of `runs` one after the other; `sessions` streams.
    fn check(states: &[(Condition, u16)]) -> Value {
        let health = Health::new(Arc::new(Metrics::new(&["runs", "sessions"])));
        health.publish("sessions", ServiceState::Streaming);
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
            (ServiceState::Starting.into(), 200),
            (ServiceState::StandingBy.into(), 200),
            (ServiceState::Streaming.into(), 200),
            (ServiceState::Draining.into(), 200),
        ]);
    }

    #[test]
    fn a_drain_without_end_is_not_healthy() {
        let health = board();
        health.publish("runs", ServiceState::Draining);
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
            (ServiceState::Streaming.into(), 200),
            (backing_off(1), 200),
        ]);
        assert_eq!(json["services"]["runs"]["attempt"], 1);
        assert_eq!(json["services"]["runs"]["has_streamed"], true);
    }

    #[test]
    fn starting_again_does_not_hide_a_long_outage() {
        let json = check(&[
            (backing_off(9), 503),
            (ServiceState::Starting.into(), 503),
            (backing_off(10), 503),
            (ServiceState::Starting.into(), 503),
        ]);
        assert_eq!(json["reasons"], json!(["`runs` is starting again after 10 attempts"]));
        assert_eq!(json["services"]["runs"]["healthy"], false);
        assert_eq!(json["services"]["sessions"]["healthy"], true);
        check(&[
            (backing_off(9), 503),
            (ServiceState::StandingBy.into(), 200),
            (ServiceState::Starting.into(), 200),
        ]);
    }

    #[test]
    fn a_repair_is_shown_and_unhealthy_once_it_keeps_failing() {
        let health = board();
        let repair = |failed_attempts: u32| Repair {
            reason: "gap: the slot is missing".to_owned(),
            pass: "read".to_owned(),
            fraction: Some(1.0 / 3.0),
            seconds_left: Some(9),
            pieces_done: 1,
            pieces: 3,
            rows_read: 10,
            rows_written: 2,
            tombstones_written: 0,
            failed_attempts,
            error: (0 < failed_attempts).then(|| "no".to_owned()),
        };
        health.publish("runs", ServiceState::Streaming);
        for (failed_attempts, code) in [(0, 200), (3, 200), (4, 503)] {
            health.publish_repair("runs", Some(repair(failed_attempts)));
            let (found, body) = health.healthz();
            assert_eq!(found, code, "{body}");
            let json: Value = serde_json::from_str(&body).unwrap();
            let mut expected = json!({
                "reason": "gap: the slot is missing", "pass": "read", "fraction": 0.3333,
                "seconds_left": 9, "pieces_done": 1, "pieces": 3, "rows_read": 10,
                "rows_written": 2, "tombstones_written": 0, "rows_buried": 0,
            });
            if 0 < failed_attempts {
                expected["failing"] = json!({ "attempts": failed_attempts, "error": "no" });
            }
            assert_eq!(json["services"]["runs"]["repair"], expected);
        }
        health.publish_repair("runs", None);
        assert!(!health.healthz().1.contains("repair"));
    }

    #[test]
    fn the_end_of_a_service_is_told_with_reason_and_hint() {
        let reason = "slot `s` is gone";
        let hint = Some("Run: SELECT 1".to_owned());
        let failed = Condition { hint, ..Condition::because(ServiceState::Failed, reason) };
        let json = check(&[(failed, 503)]);
        assert_eq!(json["services"]["runs"]["reason"], reason);
        assert_eq!(json["status"], "unhealthy");
        assert_eq!(json["reasons"], json!(["`runs` failed: slot `s` is gone"]));
        assert_eq!(json["services"]["runs"]["hint"], "Run: SELECT 1");
        let json = check(&[(Condition::because(ServiceState::Stopped, reason), 503)]);
        assert_eq!(json["reasons"], json!(["`runs` is stopped: slot `s` is gone"]));
    }

    #[test]
    fn last_error_is_shown_and_explains_an_outage() {
        let health = board();
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
        let health = board();
        let since = health.services.lock()[0].since;
        health.publish("runs", ServiceState::Starting);
        assert_eq!(health.services.lock()[0].since, since);
        health.publish("runs", ServiceState::Streaming);
        assert!(since <= health.services.lock()[0].since);
    }

    #[test]
    fn changes_are_told_with_reasons_and_without_secrets() {
        let metrics = Arc::new(Metrics::new(&["runs"]));
        let mask = Mask::new([crate::secret::Secret::new("hunter22")]);
        let health = Health::with_mask(metrics, mask);
        health.publish("runs", Condition::because(ServiceState::Streaming, "go"));
        health.publish("runs", Condition::because(ServiceState::Streaming, "on"));
        health.publish_leader("runs", Who::ThisProcess);
        let text = "user:hunter22 was refused";
        health.report_error("runs", text, Some(text));
        let hint = Some(text.to_owned());
        health
            .publish("runs", Condition { hint, ..Condition::because(ServiceState::Failed, text) });
        let (reasons, services) = health.overview();
        assert_eq!(reasons, ["`runs` failed: user:*** was refused"]);
        let shown = &services["runs"];
        let changes: Vec<_> = (shown.changes.iter().rev())
            .map(|change| (change.state.as_str(), change.reason.as_deref().unwrap_or("")))
            .collect();
        assert_eq!(
            changes,
            [
                ("starting", "the process has started"),
                ("streaming", "go"),
                ("failed", "user:*** was refused"),
            ]
        );
        assert_eq!(shown.leader.who, Who::ThisProcess);
        assert_eq!(shown.hint.as_deref(), Some("user:*** was refused"));
        assert!(!format!("{shown:?}{}", health.healthz().1).contains("hunter22"));
    }

    #[test]
    fn the_latest_changes_are_kept_and_long_texts_cut_between_characters() {
        let health = board();
        for n in 0..1000 {
            let state = [ServiceState::Starting, ServiceState::StandingBy][n % 2];
            health.publish("runs", Condition::because(state, "\u{e4}".repeat(n)));
        }
        let changes = &health.overview().1["runs"].changes;
        assert_eq!(changes.len(), CHANGES_MAX);
        let latest = changes[0].reason.as_deref().unwrap_or_default();
        assert_eq!(latest.chars().count(), REASON_CHARS_MAX + 3);
        assert!(latest.ends_with("\u{e4}..."), "{latest}");
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
