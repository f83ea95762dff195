//! The tables in ClickHouse as a service saw them, kept across sessions: one dropped or replaced
//! meanwhile needs a repair, since its rows are gone.

use std::collections::BTreeSet;
use std::time::Instant;

use parking_lot::Mutex;

use crate::clickhouse::tables::{self, TablesLook};
use crate::clickhouse::{Client, own};
use crate::config::ServiceConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::mending::debt;
use crate::rows::Shape;
use crate::services::mapping::Mapping;

#[derive(Debug, Default)]
pub struct TablesSeen(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// A state was recorded: there is something that can have been lost.
    has_recorded: bool,
    /// Our own tables that this session did not find.
    dropped: Vec<&'static str>,
    look: TablesLook,
    /// Columns, as `table.column`, that took values in some session.
    columns: BTreeSet<String>,
    /// Some of them did not in a later one.
    has_gone: bool,
}

impl TablesSeen {
    pub fn on_recorded(&self) {
        self.0.lock().has_recorded = true;
    }

    /// Before our own tables are made.
    pub fn begin(&self, client: &mut Client, config: &ServiceConfig) -> Result<()> {
        let mut seen = self.0.lock();
        if seen.has_recorded {
            let deadline = Instant::now() + config.clickhouse.request_timeout;
            seen.dropped = tables::missing(client, &own::tables::names(), deadline)?;
        }
        Ok(())
    }

    /// The tables were refused for good: a column that is missing comes back without its values.
    pub fn refuse<T>(
        &self,
        client: &mut Client,
        config: &ServiceConfig,
        error: Error,
    ) -> Result<T> {
        let mut seen = self.0.lock();
        if error.kind() == ErrorKind::Setup && !seen.has_gone {
            // Also for a process that streams for the first time: another one has before it.
            let reason = format!("a table in ClickHouse had lost what it needs: {error}");
            let of = (config.name.as_str(), config.slot.as_str());
            debt::owe(client, of, &reason, config.clickhouse.request_timeout)?;
            seen.has_gone = true;
        }
        Err(error)
    }

    /// Once all of them are there; `made` are the target tables that were missing.
    pub fn compare(
        &self,
        client: &mut Client,
        config: &ServiceConfig,
        mapping: &dyn Mapping,
        shapes: &[Shape],
        made: &[&str],
        look: &TablesLook,
    ) -> Result<()> {
        let mut seen = self.0.lock();
        let mut columns = BTreeSet::new();
        for (target, shape) in mapping.targets().iter().zip(shapes) {
            let present = target.columns.iter().zip(&shape.present).filter(|(_, there)| **there);
            columns.extend(present.map(|(column, _)| format!("{}.{}", target.table, column.name)));
        }
        let mut lost = Vec::new();
        let is_target = |name: &str| mapping.targets().iter().any(|t| *t.table == *name);
        for (name, identity) in identities(&seen.look) {
            let now = identities(look).find(|(found, _)| *found == name);
            let is_other = now.is_some_and(|(_, now)| now != identity);
            // For created tables it is known already.
            if is_other && !made.contains(&name) && (is_target(name) || is_ours(name)) {
                lost.push(format!("`{name}` was replaced in ClickHouse"));
            }
        }
        if !seen.dropped.is_empty() {
            lost.push(format!("dropped in ClickHouse: `{}`", seen.dropped.join("`, `")));
        }
        let has_all = seen.columns.is_subset(&columns);
        if seen.has_gone && has_all && seen.has_recorded {
            lost.push("a column in ClickHouse was dropped and is there again".to_owned());
        }
        if !lost.is_empty() {
            debt::owe_whatever_is_recorded(client, config, &lost.join("; "))?;
        }
        seen.has_gone = !has_all;
        seen.dropped.clear();
        seen.columns.extend(columns);
        seen.look = look.clone();
        Ok(())
    }
}

fn is_ours(name: &str) -> bool {
    own::tables::names().contains(&name)
}

/// Without the columns.
fn identities(look: &TablesLook) -> impl Iterator<Item = (&str, &str)> {
    look.iter().map(|(name, look)| {
        (name.as_str(), look.split_once(": ").map_or(look.as_str(), |(identity, _)| identity))
    })
}
