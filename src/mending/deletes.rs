//! Whether rows that are gone from Postgres may be marked as deleted, or an operator has to agree
//! ([`may_delete`]).

use std::time::Instant;

use super::parties::{MendingContext, connect, sql_deadline};
use crate::clickhouse::Client;
use crate::clickhouse::own::{databases, state};
use crate::error::{Error, ErrorKind, Result};
use crate::machines::repair::{Count, may_delete};
use crate::postgres::server;

/// For each target table `None` if it may, else the error that asks for it.
pub fn ask(
    with: &MendingContext<'_>,
    slot: &str,
    counts: &[Count],
    of_fork: bool,
) -> Result<Vec<Option<Error>>> {
    let nothing_is_gone = counts.iter().all(|count| count.gone == 0);
    let others = match nothing_is_gone || 100 <= with.deletes_max_percent {
        true => Vec::new(),
        false => other_sources(with, slot)?,
    };
    let targets = with.member.targets().iter().zip(counts);
    let asked = |(target, count): (&crate::rows::target::Target, &Count)| {
        let is_left = may_delete(*count, with.deletes_max_percent, !others.is_empty(), of_fork);
        (!is_left).then(|| question(with, &target.table, *count, &others))
    };
    Ok(targets.map(asked).collect())
}

fn question(with: &MendingContext<'_>, table: &str, count: Count, others: &[String]) -> Error {
    let Count { alive, gone } = count;
    let cause = match others.is_empty() {
        true => format!("more than {} percent", with.deletes_max_percent),
        false => format!("and slot `{}` brings rows of another source", others.join("`, `")),
    };
    let doing =
        format!("mark rows of `{table}` as deleted for service `{}`", with.delivery.service);
    Error::new(ErrorKind::Lineage, doing)
        .because(format!("{gone} of {alive} are not in Postgres, {cause}: none was marked"))
        .hint(
            "If another source writes into this table, they are its rows: give each a ClickHouse \
             of its own. If they should be deleted (a TRUNCATE, rows deleted while nobody \
             streamed), set REPLICATION_REPAIR_DELETES_MAX_PERCENT=100 until both sides are equal.",
        )
}

/// The slots of other clusters, and of other databases of this one, from which this service has
/// written, too.
fn other_sources(with: &MendingContext<'_>, slot: &str) -> Result<Vec<String>> {
    let delivery = with.delivery;
    let mut client = Client::connect(delivery.clickhouse)?;
    let deadline = || Instant::now() + delivery.clickhouse.request_timeout;
    let cluster = with.primary.identity().system_identifier.to_string();
    let database = server::database(&mut connect(with)?, sql_deadline())?.oid.to_string();
    let clusters = state::others(&mut client, delivery.service, slot, deadline())?;
    let databases = databases::others(&mut client, delivery.service, slot, deadline())?;
    let is_other = |(other, of_cluster): &(String, String)| {
        let of_database = databases.iter().find(|(slot, _)| slot == other);
        *of_cluster != cluster || of_database.is_some_and(|(_, oid)| *oid != database)
    };
    Ok(clusters.into_iter().filter(is_other).map(|(slot, _)| slot).collect())
}
