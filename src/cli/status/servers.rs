//! Asks Postgres, Redis and ClickHouse when no process answers. It only reads, each server within a
//! deadline; one that does not answer hides nothing of the others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use crate::clickhouse::Client;
use crate::clickhouse::own::repairs::RepairStatus;
use crate::clickhouse::own::{self, refused, repairs, state};
use crate::config::{Config, LockKind, ServiceConfig};
use crate::error::{Error, Result};
use crate::overview::{
    LeaderOverview, Overview, Repair, ServiceOverview, SourceServer, Wal, Who, unix_seconds,
};
use crate::postgres::advisory_lock;
use crate::postgres::primary::Primary;
use crate::postgres::slot::{self, SlotVerdict};
use crate::redis::lock::Holder;
use crate::secret::Mask;
use crate::threads::lock_keeper;
use crate::threads::watch::retained;

/// For each of the parties.
const TIMEOUT: Duration = Duration::from_secs(8);

pub(super) fn overview(config: &Config) -> Overview {
    let mask = Mask::new(config.secrets());
    let looks = std::thread::scope(|scope| {
        let looks: Vec<_> = (config.services.iter())
            .map(|service| (service, scope.spawn(|| Look::at(service))))
            .collect();
        let joined =
            |(service, look): (&ServiceConfig, std::thread::ScopedJoinHandle<'_, Look>)| {
                let name = service.name.as_str().to_owned();
                (name, look.join().unwrap_or_else(|_| Look::new(service)))
            };
        looks.into_iter().map(joined).collect::<Vec<_>>()
    });
    let mut reasons = Vec::new();
    let mut services = BTreeMap::new();
    for (name, look) in looks {
        let said = look.problems.iter().map(|problem| format!("`{name}`: {}", mask.hide(problem)));
        reasons.extend(said);
        services.insert(name, look.service);
    }
    Overview {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        source: SourceServer::Servers,
        instance: None,
        started_unix_seconds: None,
        now_unix_seconds: unix_seconds(SystemTime::now()),
        healthy: reasons.is_empty(),
        reasons,
        services,
    }
}

/// The status of a service, and what is wrong with it.
struct Look {
    service: ServiceOverview,
    problems: Vec<String>,
}

impl Look {
    fn new(config: &ServiceConfig) -> Look {
        let service = ServiceOverview {
            slot: config.slot.clone(),
            state: "unknown".to_owned(),
            ..ServiceOverview::default()
        };
        Look { service, problems: vec![] }
    }

    fn at(config: &ServiceConfig) -> Look {
        let mut look = Look::new(config);
        let asked = look.ask_postgres(config);
        look.note(asked);
        let asked = look.ask_redis(config);
        look.note(asked);
        let asked = look.ask_clickhouse(config);
        look.note(asked);
        look.service.healthy = look.problems.is_empty();
        look
    }

    fn note(&mut self, asked: Result<()>) {
        if let Err(error) = asked {
            self.problems.push(in_one(&error));
        }
    }

    fn ask_postgres(&mut self, config: &ServiceConfig) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        let name = "walhouse/status";
        let (_, mut sql) = Primary::find(&config.postgres, name, None, deadline, || Ok(()))?;
        if matches!(config.lock.kind, LockKind::Postgres) {
            let holder = advisory_lock::holder(&mut sql, &config.slot, deadline)?;
            let who = if holder.is_some() { Who::Somebody } else { Who::Nobody };
            self.service.leader = LeaderOverview { who, name: holder };
        }
        let (service, slot) = (&mut self.service, &config.slot);
        let Some(found) = slot::inspect(&mut sql, slot, deadline)? else {
            service.state = "no_slot".to_owned();
            self.problems.push(format!("slot `{slot}` does not exist; a first start creates it"));
            return Ok(());
        };
        let verdict = slot::verdict(&sql, &found);
        if let Some(retained) = slot::retained(&mut sql, slot, deadline)? {
            let confirmed = retained.confirmed_flush_lsn.map(|lsn| lsn.to_string());
            service.wal = Wal {
                server_lsn: Some(retained.flushed.to_string()),
                server_seen_unix_seconds: Some(unix_seconds(SystemTime::now())),
                confirmed_lsn: confirmed,
                ..Wal::default()
            };
            service.lag.bytes = service.wal.behind(&service.wal.confirmed_lsn);
            service.retained_wal = retained::shown(&retained);
            service.reason = retained.active_pid.map(|pid| match &retained.active_name {
                Some(name) => format!("process {pid} streams from the slot: {name}"),
                None => format!("process {pid} streams from the slot"),
            });
        }
        let is_active = found.active;
        match verdict {
            SlotVerdict::Usable if is_active => service.state = "streaming".to_owned(),
            SlotVerdict::Usable => {
                service.state = "not_streaming".to_owned();
                self.problems.push(format!("nobody streams from slot `{slot}`"));
            }
            SlotVerdict::Invalidated { reason } => {
                service.state = "slot_lost".to_owned();
                self.problems.push(format!(
                    "slot `{slot}` was invalidated: {reason}; the next start creates it again and \
                     repairs"
                ));
            }
            SlotVerdict::InCreation => {
                service.state = "slot_in_creation".to_owned();
                self.problems.push(format!("slot `{slot}` waits for transactions to end"));
            }
            SlotVerdict::Physical
            | SlotVerdict::WrongPlugin { .. }
            | SlotVerdict::OtherDatabase { .. }
            | SlotVerdict::Temporary
            | SlotVerdict::TwoPhase
            | SlotVerdict::OnStandby => {
                service.state = "slot_unusable".to_owned();
                self.problems.push(format!(
                    "slot `{slot}` cannot be used by a service; walhouse says why when it starts"
                ));
            }
        }
        Ok(())
    }

    fn ask_redis(&mut self, config: &ServiceConfig) -> Result<()> {
        let LockKind::Redis(params) = &config.lock.kind else { return Ok(()) };
        let mut lock = lock_keeper::redis_lock(config, params);
        self.service.leader.who = match lock.holder(Instant::now() + TIMEOUT)? {
            Holder::Nobody => Who::Nobody,
            Holder::Us { .. } | Holder::Another { .. } => Who::Somebody,
        };
        Ok(())
    }

    fn ask_clickhouse(&mut self, config: &ServiceConfig) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        let mut client = Client::connect(&config.clickhouse)?;
        let missing = own::tables::absent_names(&mut client, deadline)?;
        let read = [state::TABLE.name, repairs::TABLE.name, refused::TABLE.name];
        if read.iter().any(|table| missing.contains(table)) {
            self.problems.push("ClickHouse has no table of walhouse's own yet".to_owned());
            return Ok(());
        }
        let (name, slot) = (config.name.as_str(), &config.slot);
        let service = &mut self.service;
        if let Some(row) = state::TABLE.read(&mut client, name, slot, deadline)? {
            if service.leader.who == Who::Somebody && service.leader.name.is_none() {
                service.leader.name = Some(format!("{}, or its successor", row.instance));
            }
            service.wal.flushed_lsn = Some(row.confirmed.to_string());
        }
        let repair = repairs::TABLE.read(&mut client, name, slot, deadline)?;
        service.repair =
            repair.filter(|row| row.status == RepairStatus::Running).map(|row| Repair {
                reason: row.reason,
                // Such as `read ...`: only the process knows its progress.
                pass: row.position.split(' ').next().unwrap_or_default().to_owned(),
                rows_read: row.rows_read,
                rows_written: row.rows_written,
                tombstones_written: row.tombstones_written,
                ..Repair::default()
            });
        service.refused_rows = refused::counts(&mut client, name, deadline)?;
        Ok(())
    }
}

/// With its hint, as one text.
fn in_one(error: &Error) -> String {
    match error.hint_text() {
        Some(hint) => format!("{error}. {hint}"),
        None => error.to_string(),
    }
}
