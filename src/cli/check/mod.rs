//! `walhouse check`: everything that can be known before a start, all of it at once.
//!
//! The servers are checked in parallel, each with its own deadlines, so that one that does not
//! answer hides no findings about the others. The functions that make a start refuse something
//! judge it here, too. The check leaves nothing behind: no slot, publication, table or lock.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

mod clickhouse;
mod cluster;
mod http;
mod interrupt;
mod limits;
mod lock;
mod postgres;
mod report;
mod table;

pub use report::CheckReport;

use crate::config::{Config, InitialBackfill, LockKind, Problems, ServiceConfig};
use crate::delivery::target_tables::mapping;
use crate::finding::Finding;
use crate::metrics::Metrics;
use crate::postgres::slot;
use crate::threads::start::old_rows;
use crate::threads::start::resume::{self, Foreseen, Parties};

/// One question to one party, connecting included.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
const UNKNOWN_VARIABLE: &str =
    "Correct or remove the variable; `walhouse help variables` lists all of them.";

pub fn check(config: &Config) -> CheckReport {
    interrupt::listen();
    let mut report = CheckReport::default();
    for warning in &config.warnings {
        report.add(None, Finding::warning("configuration", warning, UNKNOWN_VARIABLE));
    }
    for service in &config.services {
        report.add(None, Finding::ok("configuration", format!("service {service}")));
    }
    for (name, reason) in &config.off {
        let text = format!("service `{}` is off: {reason}", name.as_str());
        report.add(None, Finding::ok("configuration", text));
    }
    if let Some(at) = config.http_listen {
        report.add(None, http::look(at));
    }
    if let Some(finding) = limits::look() {
        report.add(None, finding);
    }
    let found: Vec<(&ServiceConfig, Vec<Finding>)> = thread::scope(|scope| {
        let looking: Vec<_> = (config.services.iter())
            .map(|service| (service, scope.spawn(|| look(config, service))))
            .collect();
        looking.into_iter().map(|(service, looks)| (service, joined(looks))).collect()
    });
    for (service, findings) in found {
        for finding in findings {
            report.add(Some(&service.name), finding);
        }
    }
    report
}

/// The configuration itself is wrong, so no server was asked.
pub fn refused(problems: &Problems) -> CheckReport {
    let mut report = CheckReport::default();
    for problem in &problems.list {
        let hint =
            format!("Set {}; `walhouse help variables` says what it accepts.", problem.variable);
        report.add(None, Finding::problem("configuration", problem.to_string(), hint));
    }
    for warning in &problems.warnings {
        report.add(None, Finding::warning("configuration", warning, UNKNOWN_VARIABLE));
    }
    report
}

fn look(config: &Config, service: &ServiceConfig) -> Vec<Finding> {
    // Other services on the same server need slots and walsenders there, too.
    let slots: Vec<&str> = (config.services.iter())
        .filter(|other| other.postgres == service.postgres)
        .map(|other| other.slot.as_str())
        .collect();
    let (mut found, source, target) = thread::scope(|scope| {
        let source = scope.spawn(|| postgres::look(service, &slots));
        let target = scope.spawn(|| clickhouse::look(service));
        let lock = scope.spawn(|| match &service.lock.kind {
            LockKind::Redis(params) => lock::look(service, params),
            LockKind::Postgres => Vec::new(),
        });
        let (mut found, source) = source.join().unwrap_or_else(|_| (vec![bug()], None));
        let (more, target) = target.join().unwrap_or_else(|_| (vec![bug()], None));
        found.extend(more);
        found.extend(joined(lock));
        (found, source, target)
    });
    if let (Some(source), Some(target)) = (source, target) {
        found.extend(outlook(service, source, target));
    }
    found
}

/// Whether the stream would go on from where the last one ended.
fn outlook(
    service: &ServiceConfig,
    mut source: postgres::ReachedPostgres,
    mut target: clickhouse::ReachedClickHouse,
) -> Vec<Finding> {
    let Some(connection) = source.connection.as_mut() else { return Vec::new() };
    let name = service.name.as_str();
    let metrics = Metrics::new(&[name]);
    let parties = Parties {
        config: service,
        metrics: &metrics.service(name),
        mapping: &*mapping(service),
        shapes: &target.shapes,
        client: &mut target.client,
        sql: &mut source.sql,
        connection,
        given_up: None,
        may_write: &|| Ok(()),
    };
    vec![match resume::foresee(parties, &target.absent) {
        Ok(Foreseen::GoesOn { reason, is_first }) => {
            let mut found = vec![Finding::ok("lineage", reason)];
            if is_first && target.shapes.len() == mapping(service).targets().len() {
                found.extend(old_rows(service, &mut source, &mut target));
            }
            return found;
        }
        Ok(Foreseen::StartsOver { reason, repair: true }) => Finding::warning(
            "lineage",
            format!("{reason}: the stream starts over, and the whole table is compared meanwhile"),
            "Nothing; with REPLICATION_GAP_STRATEGY=halt the service would stop for you to decide.",
        ),
        Ok(Foreseen::StartsOver { reason, repair: false }) => Finding::warning(
            "lineage",
            format!("{reason}: the stream starts over, and the difference remains"),
            "Set REPLICATION_GAP_STRATEGY=repair to have it repaired.",
        ),
        // The check of the slot reports what is wrong with it.
        Ok(Foreseen::Stops(error)) => {
            Finding::of_error("lineage", &error, "See `walhouse help gaps-and-repair`.")
        }
        Err(_) if source.slot_is_refused => return Vec::new(),
        Err(error) => Finding::of_error("lineage", &error, "Run `walhouse check` again."),
    }]
}

/// Whether tables that are there lack rows that nothing would copy.
fn old_rows(
    service: &ServiceConfig,
    source: &mut postgres::ReachedPostgres,
    target: &mut clickhouse::ReachedClickHouse,
) -> Option<Finding> {
    const ABOUT: &str = "old rows";
    if service.initial_backfill == InitialBackfill::Off {
        return None;
    }
    let has_slot = slot::inspect(&mut source.sql, &service.slot, step());
    let looked = has_slot.and_then(|slot| {
        old_rows::look(
            &service.name,
            &*mapping(service),
            &mut source.sql,
            &mut target.client,
            slot.is_some(),
            service.clickhouse.request_timeout.min(STEP_TIMEOUT),
        )
    });
    Some(match looked {
        Ok(None) => Finding::ok(ABOUT, "ClickHouse has all rows of the sample"),
        Ok(Some(_)) if service.initial_backfill == InitialBackfill::Existing => {
            Finding::ok(ABOUT, "the first start copies those that ClickHouse lacks")
        }
        Ok(Some(lacking)) => Finding::warning(ABOUT, lacking.text, lacking.hint),
        Err(error) => Finding::of_error(ABOUT, &error, "Run `walhouse check` again."),
    })
}

fn joined(looks: thread::ScopedJoinHandle<'_, Vec<Finding>>) -> Vec<Finding> {
    looks.join().unwrap_or_else(|_| vec![bug()])
}

fn bug() -> Finding {
    Finding::problem("walhouse", "a thread of the check panicked", "Report it: this is a bug.")
}

fn step() -> Instant {
    Instant::now() + STEP_TIMEOUT
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Whether `host:port`, or a URL's host, is of this very machine.
fn is_near(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    is_loopback || name == "localhost" || name.starts_with('/')
}

/// Without an answer nothing can be looked up, and services with the same ClickHouse report the
/// same.
fn without_query_id(text: &str) -> String {
    let cut = text.split_once(" as query `").and_then(|(before, rest)| {
        let (_, after) = rest.split_once('`')?;
        Some(format!("{before}{after}"))
    });
    cut.unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_without_an_answer_has_no_name() {
        let text = "run `SELECT` as query `walhouse-1` at `http://h:1`: refused";
        assert_eq!(without_query_id(text), "run `SELECT` at `http://h:1`: refused");
        assert_eq!(without_query_id("as it is"), "as it is");
    }

    #[test]
    fn this_machine_is_known_by_its_names() {
        for near in ["127.0.0.1:5432", "localhost:5432", "[::1]:8123", "/run/postgresql:5432"] {
            assert!(is_near(near), "{near}");
        }
        for far in ["10.0.0.1:5432", "db.internal:5432", "localhost.example:1"] {
            assert!(!is_near(far), "{far}");
        }
    }
}
