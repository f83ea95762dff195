//! The state of ClickHouse's replication, for `walhouse check`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::super::client::Client;
use super::super::cluster::{engines, pairs};
use super::super::fresh::SERVER;
use super::super::hosts::ReplicationKind;
use super::super::params::ClickHouseParams;
use super::super::text::of_ours;
use crate::error::Result;

/// How often to ask the one address which server answers.
const ASKED_TIMES: usize = 4;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Which clusters there are.
    pub known: BTreeSet<String>,
    /// The configured name, with macros replaced.
    pub name: String,
    /// A number for each shard, once for each of its replicas.
    pub shards: Vec<String>,
    /// Macros that the default path and name of replicas need, and that are not defined.
    pub macros_missing: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    pub table: String,
    pub is_readonly: bool,
    pub total: u32,
    pub active: u32,
}

/// The name and the kind of each of the tables that is there.
pub fn kinds(
    client: &mut Client,
    tables: &[&str],
    deadline: Instant,
) -> Result<Vec<(String, ReplicationKind)>> {
    let kind = |(name, engine): (String, String)| (name, ReplicationKind::of_engine(&engine));
    Ok(engines(client, tables, deadline)?.into_iter().map(kind).collect())
}

pub fn replicas(client: &mut Client, tables: &[&str], deadline: Instant) -> Result<Vec<Replica>> {
    let sql = format!(
        "SELECT table, toString(is_readonly), toString(total_replicas), toString(active_replicas) \
         FROM system.replicas WHERE {} ORDER BY table",
        of_ours(client.database(), "table", tables)
    );
    let rows = client.query(&sql, &[], deadline)?;
    let replica = |row: Vec<Option<String>>| {
        let [table, is_readonly, total, active] = <[Option<String>; 4]>::try_from(row).ok()?;
        Some(Replica {
            table: table?,
            is_readonly: is_readonly? != "0",
            total: total?.parse().ok()?,
            active: active?.parse().ok()?,
        })
    };
    Ok(rows.into_iter().filter_map(replica).collect())
}

pub fn cluster(client: &mut Client, configured: &str, deadline: Instant) -> Result<Cluster> {
    let sql = "SELECT macro, substitution FROM system.macros";
    let macros = pairs(client.query(sql, &[], deadline)?);
    let mut name = configured.to_owned();
    for (key, value) in &macros {
        name = name.replace(&format!("{{{key}}}"), value);
    }
    let sql = "SELECT cluster, toString(shard_num) FROM system.clusters ORDER BY cluster";
    let clusters = pairs(client.query(sql, &[], deadline)?);
    // Only a server's own file can lack them; a version that does not show them has the usual ones.
    let sql = "SELECT name, value FROM system.server_settings \
               WHERE name IN ('default_replica_path', 'default_replica_name')";
    let mut defaults = pairs(client.query(sql, &[], deadline)?);
    if defaults.is_empty() {
        defaults.push((String::new(), "{shard} {replica}".to_owned()));
    }
    let needs = |wanted: &&str| {
        let mark = format!("{{{wanted}}}");
        defaults.iter().any(|(_, value)| value.contains(&mark))
    };
    let has = |wanted: &str| macros.iter().any(|(key, _)| key == wanted);
    let missing = ["shard", "replica"].into_iter().filter(needs).filter(|wanted| !has(wanted));
    Ok(Cluster {
        macros_missing: missing.map(str::to_owned).collect(),
        shards: (clusters.iter().filter(|(of, _)| *of == name))
            .map(|(_, shard)| shard.clone())
            .collect(),
        known: clusters.into_iter().map(|(cluster, _)| cluster).collect(),
        name,
    })
}

/// What distinguishes a table from another one of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub kind: ReplicationKind,
    /// Its path in ZooKeeper; of one that is not replicated the UUID of its server.
    pub place: String,
}

/// The tables that are there, at each host, or why there is no answer.
pub fn identities(
    params: &ClickHouseParams,
    tables: &[&str],
    deadline: impl Fn() -> Instant,
) -> Vec<(String, Result<BTreeMap<String, Identity>>)> {
    let here = |endpoint: &String| {
        let identities = || {
            let mut client = Client::connect(&params.at(endpoint))?;
            let server = server_uuid(&mut client, deadline())?;
            let sql = format!(
                "SELECT table, zookeeper_path FROM system.replicas WHERE {}",
                of_ours(client.database(), "table", tables)
            );
            let paths = pairs(client.query(&sql, &[], deadline())?);
            let paths: BTreeMap<_, _> = paths.into_iter().collect();
            let identity = |(table, kind): (String, ReplicationKind)| {
                let place = match kind {
                    ReplicationKind::Plain => server.clone(),
                    ReplicationKind::Replicated => paths.get(&table).cloned().unwrap_or_default(),
                    ReplicationKind::Shared | ReplicationKind::Elsewhere => String::new(),
                };
                (table, Identity { kind, place })
            };
            Ok(kinds(&mut client, tables, deadline())?.into_iter().map(identity).collect())
        };
        (endpoint.clone(), identities())
    };
    params.hosts.all().iter().map(here).collect()
}

/// How many servers answer at the one address, as far as a few connections show.
pub fn servers_behind(params: &ClickHouseParams, deadline: Instant) -> Result<usize> {
    let mut found = BTreeSet::new();
    for _ in 0..ASKED_TIMES {
        // Each client has connections of its own.
        found.insert(server_uuid(&mut Client::connect(params)?, deadline)?);
    }
    Ok(found.len())
}

fn server_uuid(client: &mut Client, deadline: Instant) -> Result<String> {
    let rows = client.query(SERVER, &[], deadline)?;
    Ok(rows.into_iter().flatten().flatten().next().unwrap_or_default())
}
