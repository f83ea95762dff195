//! Postgres: which host is the primary, our privileges there, and our slot and publication on it.

use std::thread;
use std::time::Instant;

use super::{is_near, now_ms, step, table};
use crate::config::{LockKind, ServiceConfig};
use crate::delivery::connecting::{application_name, application_name_of, startup_options};
use crate::error::{Error, ErrorKind, Result};
use crate::finding::{Finding, Level};
use crate::postgres::advisory_lock;
use crate::postgres::connection::Connection;
use crate::postgres::failover_slot::{self, Failover, FindingWeight};
use crate::postgres::params::{PostgresParams, TargetSession};
use crate::postgres::primary::Primary;
use crate::postgres::server::Server;
use crate::postgres::slot::{self, Held, SlotVerdict};
use crate::postgres::sql::{Sql, Texts};
use crate::postgres::startup;
use crate::postgres::survey::{self, PostgresFacts, judge};

/// How our own sessions are called in `pg_stat_activity`.
const APPLICATION_NAME: &str = "walhouse/check";
const AGAIN: &str = "Run `walhouse check` again; if the problem persists, see Postgres's log.";
const AWAY: &str = "Set DATABASE_URL to the host and port of Postgres, start Postgres, and allow \
                    connections from this host in firewalls and listen_addresses.";

/// Sessions with the primary, for what needs ClickHouse as well.
pub(super) struct ReachedPostgres {
    pub sql: Sql,
    /// `None` where replication is not possible.
    pub connection: Option<Connection>,
    /// The kind of the slot was already reported.
    pub slot_is_refused: bool,
}

/// `slots` are those of all services on this server.
pub(super) fn look(
    service: &ServiceConfig,
    slots: &[&str],
) -> (Vec<Finding>, Option<ReachedPostgres>) {
    let params = &service.postgres;
    let mut found = Vec::new();
    if 1 < params.hosts.len() {
        found.extend(hosts(params));
    }
    let reached = Primary::find(params, APPLICATION_NAME, None, step(), || Ok(()));
    let (primary, sql) = match reached {
        Ok(reached) => reached,
        Err(error) => {
            found.push(not_reached(service, error));
            return (found, None);
        }
    };
    let looking = Looking { service, slots, primary, sql, found };
    looking.run()
}

/// Checks each host of the list separately.
fn hosts(params: &PostgresParams) -> Vec<Finding> {
    let ask = |params: PostgresParams| -> Result<String> {
        let mut sql = Sql::connect(&params, APPLICATION_NAME, step())?;
        let server = Server::inspect(&mut sql, step())?;
        let role = if server.in_recovery { "a standby" } else { "a primary" };
        Ok(format!("{role}, on timeline {}", server.timeline))
    };
    thread::scope(|scope| {
        let asked: Vec<_> = (params.hosts.iter())
            .map(|host| {
                let params = PostgresParams {
                    hosts: vec![host.clone()],
                    target: TargetSession::Any,
                    ..params.clone()
                };
                (host, scope.spawn(move || ask(params)))
            })
            .collect();
        let told = asked.into_iter().map(|(host, answer)| match answer.join() {
            Ok(Ok(what)) => Finding::ok("host", format!("`{host}` is {what}")),
            // There may be a primary without it.
            Ok(Err(error)) => Finding::warning(
                "host",
                error.to_string(),
                error.hint_text().unwrap_or("Start it, or take it out of DATABASE_URL."),
            ),
            Err(_) => crate::cli::check::bug(),
        });
        told.collect()
    })
}

/// A start-up by our own protocol gives better hints for a refusal.
fn not_reached(service: &ServiceConfig, error: Error) -> Finding {
    if error.kind() != ErrorKind::Unreachable {
        let mut options = startup_options(service, APPLICATION_NAME, Texts::default());
        options.replication = false;
        if let Err(told) = startup::connect(&service.postgres, &options, step())
            && told.kind() == error.kind()
            && told.hint_text().is_some()
        {
            return Finding::of_error("Postgres", &told, AWAY);
        }
    }
    Finding::of_error("Postgres", &error, AWAY)
}

struct Looking<'a> {
    service: &'a ServiceConfig,
    slots: &'a [&'a str],
    primary: Primary,
    sql: Sql,
    found: Vec<Finding>,
}

impl Looking<'_> {
    fn run(mut self) -> (Vec<Finding>, Option<ReachedPostgres>) {
        let before_ms = now_ms();
        let facts = match survey::look(&mut self.sql, step()) {
            Ok(facts) => facts,
            Err(error) => {
                self.found.push(Finding::of_error("Postgres", &error, AGAIN));
                return (self.found, None);
            }
        };
        let after_ms = now_ms();
        let name = self.primary.name();
        let (major, minor) = (facts.version_num / 10_000, facts.version_num % 10_000);
        let what = facts.provider.as_str();
        self.found.push(Finding::ok(
            "Postgres",
            format!("`{name}` is the primary: {what} {major}.{minor}"),
        ));
        self.found.push(judge::encryption(&facts, &name, is_near(&name)));
        self.found.push(judge::clock("Postgres", (before_ms, after_ms), facts.now_ms));
        self.wal_level(&facts);
        self.found.extend(judge::server(&facts, self.slots));
        let application_name = application_name(self.service);
        self.found.extend(judge::synchronous(&facts, &application_name));
        self.lock();
        let slot_is_refused = self.slot(&facts, &application_name);
        table::look(&mut self.sql, self.service, &facts, &mut self.found);
        let streams = self.streams();
        let senders = judge::senders(&facts, streams);
        let may_stream = facts.may_replicate && senders.level == Level::Ok;
        self.found.push(senders);
        let connection = if may_stream { self.replication(&application_name) } else { None };
        (self.found, Some(ReachedPostgres { sql: self.sql, connection, slot_is_refused }))
    }

    fn wal_level(&mut self, facts: &PostgresFacts) {
        let told = Server::inspect(&mut self.sql, step());
        self.found.push(match told.and_then(|server| server.check_wal_level()) {
            Ok(()) => Finding::ok("wal_level", "logical"),
            Err(error) if error.kind() == ErrorKind::Setup => {
                Finding::problem("wal_level", error.to_string(), facts.provider.set_wal_level())
            }
            Err(error) => Finding::of_error("wal_level", &error, AGAIN),
        });
    }

    /// Where there is no Redis.
    fn lock(&mut self) {
        if !matches!(self.service.lock.kind, LockKind::Postgres) {
            return;
        }
        let holder = advisory_lock::holder(&mut self.sql, &self.service.slot, step());
        self.found.push(match holder {
            Ok(None) => Finding::ok("leader lock", "in Postgres, free"),
            Ok(Some(who)) => Finding::ok(
                "leader lock",
                format!("in Postgres, held by {who}: this instance would stand by"),
            ),
            Err(error) => Finding::of_error("leader lock", &error, AGAIN),
        });
    }

    /// True if a start refuses the slot as it is.
    fn slot(&mut self, facts: &PostgresFacts, application_name: &str) -> bool {
        let name = &self.service.slot;
        let state = match slot::inspect(&mut self.sql, name, step()) {
            Ok(Some(state)) => state,
            Ok(None) => {
                let text =
                    format!("slot `{name}` does not exist yet: walhouse creates it when it starts");
                self.found.push(Finding::ok("slot", text));
                self.found.extend(judge::forgotten(facts));
                return false;
            }
            Err(error) => {
                self.found.push(Finding::of_error("slot", &error, AGAIN));
                return true;
            }
        };
        let verdict = slot::verdict(&self.sql, &state);
        let is_usable = verdict == SlotVerdict::Usable;
        match slot::usable(name, verdict) {
            Err(error) => {
                self.found.push(Finding::of_error("slot", &error, AGAIN));
                return true;
            }
            // The lineage, which knows what ClickHouse holds, decides what that means.
            Ok(Some(reason)) => {
                let text = format!("slot `{name}` is invalidated: {reason}");
                self.found.push(Finding::warning("slot", text, "The next start creates it again."));
            }
            Ok(None) => {}
        }
        self.found.extend(judge::nearly_lost(facts, name, state.wal_status.as_deref()));
        let held = slot::held(&mut self.sql, name, application_name, step());
        let mut is_refused = false;
        let by = match held {
            Ok(Held::ByNobody) => "free".to_owned(),
            Ok(Held::ByUs { pid }) => format!("walhouse streams from it (process {pid})"),
            Ok(Held::ByAnother(error)) | Err(error) => {
                self.found.push(Finding::of_error("slot", &error, AGAIN));
                is_refused = true;
                "in use".to_owned()
            }
        };
        if is_usable && !is_refused {
            let kept = slot::retained(&mut self.sql, name, step());
            let kept = kept.ok().flatten().as_ref().and_then(slot::Retained::bytes);
            let kept = kept.map_or(String::new(), |bytes| {
                format!(", and keeps {:.1} MB of WAL", bytes as f64 / 1e6)
            });
            self.found.push(Finding::ok("slot", format!("slot `{name}` is {by}{kept}")));
            self.failover(facts);
        }
        is_refused
    }

    fn failover(&mut self, facts: &PostgresFacts) {
        if self.service.failover == Failover::Off {
            return;
        }
        if facts.version_num < failover_slot::SINCE {
            if 1 < self.service.postgres.hosts.len() {
                let text = "this version has no failover slots: each promotion leaves a gap, which \
                            walhouse repairs by comparing the table";
                let hint = "Upgrade to Postgres 17 or newer.";
                self.found.push(Finding::warning("failover", text, hint));
            }
            return;
        }
        let looked = failover_slot::look(&mut self.sql, &self.service.slot, false, step());
        let facts = match looked {
            Ok(Some(facts)) => facts,
            Ok(None) => return,
            Err(error) => {
                self.found.push(Finding::of_error("failover", &error, AGAIN));
                return;
            }
        };
        if !facts.is_marked {
            self.found.push(Finding::ok("failover", "a start marks the slot for failover"));
            return;
        }
        let lacking = failover_slot::judge(&facts);
        if lacking.is_empty() {
            let text = "the slot survives a promotion, as far as the primary can tell";
            self.found.push(Finding::ok("failover", text));
        }
        for lack in lacking {
            self.found.push(match lack.weight {
                FindingWeight::Missing => Finding::warning("failover", lack.text, lack.hint),
                FindingWeight::Stalls => Finding::problem("failover", lack.text, lack.hint),
            });
        }
    }

    /// How many of the services on this server do not stream yet.
    fn streams(&mut self) -> u64 {
        let mut streams = 0;
        for slot in self.slots {
            let held = slot::held(&mut self.sql, slot, &application_name_of(slot), step());
            streams += u64::from(!matches!(held, Ok(Held::ByUs { .. })));
        }
        streams
    }

    /// A pooler in between shows here at the latest.
    fn replication(&mut self, application_name: &str) -> Option<Connection> {
        let options = startup_options(self.service, application_name, self.sql.texts());
        match self.primary.replication(&options, Instant::now() + crate::cli::check::STEP_TIMEOUT) {
            Ok((connection, _)) => {
                let text = "the server accepts replication connections, and there is no pooler in \
                            between";
                self.found.push(Finding::ok("replication", text));
                Some(connection)
            }
            Err(error) => {
                self.found.push(Finding::of_error("replication", &error, AGAIN));
                None
            }
        }
    }
}
