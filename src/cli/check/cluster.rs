//! Several hosts, a cluster, replicated tables, a quorum: whether they fit together.

use std::collections::BTreeMap;
use std::time::Instant;

use super::without_query_id;
use crate::clickhouse::client::quote_name;
use crate::clickhouse::hosts::ReplicationKind;
use crate::clickhouse::params::{ClickHouseParams, Quorum};
use crate::clickhouse::survey::cluster::{self, Cluster, Identity, Replica};
use crate::clickhouse::survey::{self, Grant};
use crate::clickhouse::{Client, own};
use crate::error::Result;
use crate::finding::{Finding, Level};

const ABOUT: &str = "cluster";
const QUORUM: &str = "quorum";

/// If neither a cluster nor replication is in use, it asks and reports nothing.
pub(super) fn look(
    client: &mut Client,
    user: &str,
    targets: &[&str],
    creates: bool,
    deadline: impl Fn() -> Instant,
) -> Result<Vec<Finding>> {
    let params = client.params().clone();
    let tables: Vec<&str> = targets.iter().copied().chain(own::tables::names()).collect();
    let kinds = cluster::kinds(client, &tables, deadline())?;
    let is_replicated = kinds.iter().any(|(_, kind)| *kind == ReplicationKind::Replicated);
    let mut found = Vec::new();
    if let Some(name) = &params.cluster {
        found.extend(judge_cluster(&cluster::cluster(client, name, deadline())?));
        let grant = survey::grant_on(client, "CLUSTER", "*.*", deadline())?;
        found.extend(denied(grant, user, "CLUSTER", "*.*"));
    }
    if is_replicated {
        let replicas = cluster::replicas(client, &tables, deadline())?;
        found.extend(judge_replicas(&replicas, params.quorum));
        let all = format!("{}.*", quote_name(client.database()));
        let grant = survey::grant_on(client, "SYSTEM SYNC REPLICA", &all, deadline())?;
        let finding = denied(grant, user, "SYSTEM SYNC REPLICA", &all);
        // With one host it is only missed behind a balancer.
        let level = if params.hosts.count() == 1 { Level::Warning } else { Level::Problem };
        found.extend(finding.map(|finding| Finding { level, ..finding }));
    }
    found.extend(judge_quorum(&kinds, params.quorum));
    if 1 < params.hosts.count() {
        if creates && params.cluster.is_none() && kinds.len() < tables.len() {
            found.push(Finding::problem(
                ABOUT,
                "several hosts are named, and missing tables would be created on only one of them",
                "Set REPLICATION_CLICKHOUSE_CLUSTER, or create the tables on each host.",
            ));
        }
        found.extend(hosts(&params, &tables, deadline));
    } else if is_replicated && 1 < cluster::servers_behind(&params, deadline())? {
        found.push(Finding::warning(
            ABOUT,
            format!(
                "several servers answer at {}: one may lack rows that another has accepted",
                params.hosts
            ),
            "Name each host in *_REPLICATION_CLICKHOUSE_URL, as in http://a:8123,b:8123.",
        ));
    }
    Ok(found)
}

fn denied(grant: Grant, user: &str, privilege: &str, on: &str) -> Option<Finding> {
    (grant == Grant::Denied).then(|| {
        Finding::problem(
            "privileges",
            format!("user `{user}` has no {privilege}"),
            format!("Run on ClickHouse: GRANT {privilege} ON {on} TO {}", quote_name(user)),
        )
    })
}

fn judge_cluster(cluster: &Cluster) -> Vec<Finding> {
    let name = cluster.name.escape_debug().to_string();
    if cluster.shards.is_empty() {
        let known: Vec<&str> = cluster.known.iter().map(String::as_str).collect();
        let hint = match known.as_slice() {
            [only] => format!("Set REPLICATION_CLICKHOUSE_CLUSTER={only}"),
            [] => "Add it to <remote_servers> of every ClickHouse.".to_owned(),
            known => format!("Set REPLICATION_CLICKHOUSE_CLUSTER to one of {}.", known.join(", ")),
        };
        let text = format!("ClickHouse knows no cluster `{name}`");
        return vec![Finding::problem(ABOUT, text, hint)];
    }
    let mut found = Vec::new();
    if cluster.shards.iter().any(|shard| *shard != cluster.shards[0]) {
        found.push(Finding::problem(
            ABOUT,
            format!("cluster `{name}` has several shards, and all rows go to one of them"),
            "Name a cluster with one shard; or create Distributed tables over the shards yourself.",
        ));
    }
    if !cluster.macros_missing.is_empty() {
        let macros = cluster.macros_missing.join("`, `");
        found.push(Finding::problem(
            ABOUT,
            format!("the paths of replicas need the macros `{macros}`, which are not defined"),
            "Define them in <macros> of every ClickHouse, <replica> differently on each.",
        ));
    }
    if found.is_empty() {
        let text = format!("`{name}`: one shard, {} replicas", cluster.shards.len());
        found.push(Finding::ok(ABOUT, text));
    }
    found
}

fn judge_replicas(replicas: &[Replica], quorum: Option<Quorum>) -> Vec<Finding> {
    let mut found = Vec::new();
    for Replica { table, is_readonly, total, active } in replicas {
        if *is_readonly {
            found.push(Finding::problem(
                ABOUT,
                format!("the replica of `{table}` is read-only"),
                "See `zookeeper_exception` of system.replicas and the log of the server; SYSTEM \
                 RESTORE REPLICA if its metadata is lost.",
            ));
        }
        let wanted = match quorum {
            Some(Quorum::Replicas(replicas)) if 1 < replicas => replicas,
            Some(Quorum::Auto) => total / 2 + 1,
            _ => continue,
        };
        if *total < wanted {
            found.push(Finding::problem(
                QUORUM,
                format!("`{table}` has {total} replicas, but an insert must reach {wanted}"),
                format!("Set REPLICATION_CLICKHOUSE_INSERT_QUORUM={total}, or add replicas."),
            ));
        } else if *active < wanted {
            found.push(Finding::warning(
                QUORUM,
                format!("{active} replicas of `{table}` are up, but an insert must reach {wanted}"),
                "Start the other replicas: nothing is confirmed before that.",
            ));
        }
    }
    found
}

fn judge_quorum(kinds: &[(String, ReplicationKind)], quorum: Option<Quorum>) -> Option<Finding> {
    if !quorum.is_some_and(Quorum::asks_for_others) {
        return None;
    }
    let plain: Vec<&str> = (kinds.iter())
        .filter(|(_, kind)| *kind == ReplicationKind::Plain)
        .map(|(name, _)| name.as_str())
        .collect();
    (!plain.is_empty()).then(|| {
        Finding::problem(
            QUORUM,
            format!(
                "a quorum is configured, but these tables are not replicated: `{}`",
                plain.join("`, `")
            ),
            "Set REPLICATION_CLICKHOUSE_INSERT_QUORUM=1, or make them Replicated.",
        )
    })
}

fn hosts(
    params: &ClickHouseParams,
    tables: &[&str],
    deadline: impl Fn() -> Instant,
) -> Vec<Finding> {
    let (mut found, mut seen) = (Vec::new(), Vec::new());
    for (endpoint, identities) in cluster::identities(params, tables, deadline) {
        match identities {
            Ok(identities) => {
                found.push(Finding::ok(ABOUT, format!("{endpoint} answers")));
                seen.push((endpoint, identities));
            }
            Err(error) => found.push(Finding::warning(
                ABOUT,
                without_query_id(&error.to_string()),
                "Start that host, or take it out of *_REPLICATION_CLICKHOUSE_URL.",
            )),
        }
    }
    found.extend(judge_identities(&seen));
    found
}

/// Each host, and for each table what distinguishes it from another of that name.
fn judge_identities(seen: &[(String, BTreeMap<String, Identity>)]) -> Option<Finding> {
    let (first, ours) = seen.first()?;
    let differs = |theirs: &BTreeMap<String, Identity>| {
        let all = ours.iter().chain(theirs).map(|(table, _)| table);
        all.into_iter().find(|table| ours.get(*table) != theirs.get(*table)).cloned()
    };
    let (other, table) = seen.iter().find_map(|(host, theirs)| Some((host, differs(theirs)?)))?;
    let is_plain = [ours.get(&table), seen.iter().find_map(|(_, of)| of.get(&table))]
        .into_iter()
        .flatten()
        .any(|identity| identity.kind == ReplicationKind::Plain);
    let text = match is_plain {
        true => format!("the hosts are different servers, and `{table}` is not replicated"),
        false => format!("`{table}` at {other} is not a replica of the one at {first}"),
    };
    Some(Finding::problem(
        ABOUT,
        text,
        "Make the tables replicas of each other on every host, or name only one host.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(found: &[Finding]) -> Vec<Level> {
        found.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn a_cluster_has_to_be_one_shard_with_its_macros() {
        let sound = Cluster {
            known: ["c".to_owned()].into(),
            name: "c".into(),
            shards: vec!["1".into(), "1".into()],
            macros_missing: vec![],
        };
        assert_eq!(levels(&judge_cluster(&sound)), [Level::Ok]);
        let sharded = Cluster { shards: vec!["1".into(), "2".into()], ..sound.clone() };
        assert_eq!(levels(&judge_cluster(&sharded)), [Level::Problem]);
        let bare = Cluster { macros_missing: vec!["replica".into()], ..sound.clone() };
        assert_eq!(levels(&judge_cluster(&bare)), [Level::Problem]);
        let unknown = judge_cluster(&Cluster { name: "d".into(), shards: vec![], ..sound });
        let hint = unknown[0].hint.as_deref();
        assert_eq!(hint, Some("Set REPLICATION_CLICKHOUSE_CLUSTER=c"));
    }

    #[test]
    fn a_quorum_needs_replicas_that_are_there_and_up() {
        let replica =
            |total, active| Replica { table: "t".into(), is_readonly: false, total, active };
        let of = |total, active, quorum| levels(&judge_replicas(&[replica(total, active)], quorum));
        assert_eq!(of(2, 2, Some(Quorum::Replicas(2))), []);
        assert_eq!(of(2, 1, Some(Quorum::Replicas(2))), [Level::Warning]);
        assert_eq!(of(1, 1, Some(Quorum::Replicas(2))), [Level::Problem]);
        assert_eq!(of(3, 1, Some(Quorum::Auto)), [Level::Warning]);
        assert_eq!(of(3, 1, Some(Quorum::Replicas(1))), []);
        assert_eq!(of(3, 1, None), []);
        let plain = [("t".to_owned(), ReplicationKind::Plain)];
        assert!(judge_quorum(&plain, Some(Quorum::Auto)).is_some());
        assert!(judge_quorum(&plain, Some(Quorum::Replicas(1))).is_none());
        let shared = [("t".to_owned(), ReplicationKind::Shared)];
        assert!(judge_quorum(&shared, Some(Quorum::Auto)).is_none());
    }

    #[test]
    fn hosts_have_to_have_the_same_tables() {
        let of = |kind, place: &str| {
            BTreeMap::from([("t".to_owned(), Identity { kind, place: place.to_owned() })])
        };
        let judge =
            |one, other| judge_identities(&[("a".to_owned(), one), ("b".to_owned(), other)]);
        let text = |finding: Option<Finding>| finding.expect("they differ").text;
        use ReplicationKind::{Elsewhere, Plain, Replicated};
        assert_eq!(judge(of(Replicated, "/1"), of(Replicated, "/1")), None);
        assert_eq!(judge(of(Plain, "uuid"), of(Plain, "uuid")), None);
        assert_eq!(judge(of(Elsewhere, ""), of(Elsewhere, "")), None);
        assert!(text(judge(of(Replicated, "/1"), of(Replicated, "/2"))).contains("not a replica"));
        assert!(text(judge(of(Replicated, "/1"), BTreeMap::new())).contains("not a replica"));
        assert!(text(judge(of(Plain, "1"), of(Plain, "2"))).contains("different servers"));
        assert!(text(judge(of(Replicated, "/1"), of(Plain, "2"))).contains("`t`"));
    }
}
