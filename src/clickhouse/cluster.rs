//! Tables on every replica: the CREATE statement with `REPLICATION_CLICKHOUSE_CLUSTER`, and what
//! its answer says about hosts that have not run it yet.
//!
//! ClickHouse puts a statement ON CLUSTER into a queue in ZooKeeper, from which each host runs it.
//! A host that is down does so when it is back: walhouse logs that, and waits only some seconds. A
//! refusal is an error.

use std::time::{Duration, Instant};

use super::client::{Client, TextRow, quote_bytes, quote_name};
use super::fresh;
use super::hosts::ReplicationKind;
use super::params::{ClickHouseParams, Quorum};
use super::text::of_ours;
use crate::error::{Error, ErrorKind, Result};

/// Hosts that are up take much less, and each table of a first start may wait as long.
const HOSTS_TIMEOUT: Duration = Duration::from_secs(5);

/// `CREATE TABLE IF NOT EXISTS` with the table's name, and where to.
pub(super) fn create_table(client: &Client, table: &str) -> String {
    let table = client.qualified(table);
    format!("CREATE TABLE IF NOT EXISTS {table}{}", on_cluster(client.params()))
}

pub(super) fn create_database(client: &Client) -> String {
    let database = quote_name(client.database());
    format!("CREATE DATABASE IF NOT EXISTS {database}{}", on_cluster(client.params()))
}

/// A ReplacingMergeTree with these arguments. Path and replica are the server's default ones.
pub(super) fn replacing(client: &Client, arguments: &str) -> String {
    let replicated = if client.params().cluster.is_some() { "Replicated" } else { "" };
    format!("{replicated}ReplacingMergeTree({arguments})")
}

/// With a blank in front; a literal, so that macros such as `{cluster}` are replaced by the server.
fn on_cluster(params: &ClickHouseParams) -> String {
    let quoted = params.cluster.as_ref().map(|name| quote_bytes(name.as_bytes()));
    quoted.map_or(String::new(), |name| format!(" ON CLUSTER {name}"))
}

/// Runs a statement of [`create_table`] or [`create_database`].
pub(super) fn create(client: &mut Client, sql: &str, deadline: Instant) -> Result<()> {
    if client.params().cluster.is_none() {
        if 1 < client.hosts().count() {
            let doing = format!("create tables at `{}`", client.endpoint());
            return Err(Error::new(ErrorKind::Setup, doing)
                .because("several hosts are named, and it would be created on only this one")
                .hint(format!(
                    "Set REPLICATION_CLICKHOUSE_CLUSTER, or make it Replicated on each host. For \
                     one server it is: {sql}"
                )));
        }
        return client.execute(sql, deadline);
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = HOSTS_TIMEOUT.min(left / 2).as_secs().max(1).to_string();
    let settings = [
        ("distributed_ddl_task_timeout", timeout.as_str()),
        ("distributed_ddl_output_mode", "null_status_on_timeout"),
    ];
    let answer = client.query_with(sql, &[], &settings, deadline)?;
    let missing = not_done(&answer);
    if !missing.is_empty() {
        let hosts = missing.join("`, `");
        log::warn!(
            "clickhouse: not done yet on `{hosts}`, which may be down and will catch up: {}",
            sql.lines().next().unwrap_or_default().trim_end_matches(" (")
        );
    }
    Ok(())
}

/// Replicated tables keep a quorum; others silently ignore it.
pub fn check_quorum(client: &mut Client, tables: &[&str], deadline: Instant) -> Result<()> {
    if !client.params().quorum.is_some_and(Quorum::asks_for_others) {
        return Ok(());
    }
    for (name, engine) in engines(client, tables, deadline)? {
        if ReplicationKind::of_engine(&engine) == ReplicationKind::Plain {
            let doing = format!("use {} at `{}`", client.qualified(&name), client.endpoint());
            return Err(fresh::without_quorum(doing, &engine));
        }
    }
    Ok(())
}

/// The name and the engine of each of the tables that is there.
pub(super) fn engines(
    client: &mut Client,
    tables: &[&str],
    deadline: Instant,
) -> Result<Vec<(String, String)>> {
    let sql = format!(
        "SELECT name, engine FROM system.tables WHERE {} ORDER BY name",
        of_ours(client.database(), "name", tables)
    );
    Ok(pairs(client.query(&sql, &[], deadline)?))
}

/// Rows of two values.
pub(super) fn pairs(rows: Vec<TextRow>) -> Vec<(String, String)> {
    let pair = |row: TextRow| {
        let [one, other] = <[Option<String>; 2]>::try_from(row).ok()?;
        Some((one?, other?))
    };
    rows.into_iter().filter_map(pair).collect()
}

/// The hosts without a status: host, port, status, error, and how many are left.
fn not_done(answer: &[TextRow]) -> Vec<String> {
    let host = |row: &TextRow| match row.as_slice() {
        [Some(host), Some(port), None, ..] => Some(format!("{host}:{port}")),
        _ => None,
    };
    answer.iter().filter_map(host).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(cluster: Option<&str>) -> Client {
        let (params, _) =
            ClickHouseParams::parse("http://127.0.0.1:1", "trigger_dev").expect("it is a URL");
        Client::connect(&ClickHouseParams { cluster: cluster.map(str::to_owned), ..params })
            .expect("a client")
    }

    #[test]
    fn statements_say_where_to() {
        let alone = client(None);
        assert_eq!(create_table(&alone, "t"), "CREATE TABLE IF NOT EXISTS `trigger_dev`.`t`");
        assert_eq!(replacing(&alone, "v"), "ReplacingMergeTree(v)");
        let hostile = client(Some("c' (x) {m}\\"));
        assert_eq!(
            create_table(&hostile, "t"),
            "CREATE TABLE IF NOT EXISTS `trigger_dev`.`t` ON CLUSTER 'c\\' (x) {m}\\\\'"
        );
        assert_eq!(
            create_database(&client(Some("c"))),
            "CREATE DATABASE IF NOT EXISTS `trigger_dev` ON CLUSTER 'c'"
        );
        assert_eq!(replacing(&hostile, "v"), "ReplicatedReplacingMergeTree(v)");
    }

    #[test]
    fn hosts_without_a_status_are_named() {
        let row = |values: [Option<&str>; 6]| values.map(|v| v.map(str::to_owned)).to_vec();
        let answer = [
            row([Some("a"), Some("9000"), Some("0"), Some(""), Some("1"), Some("0")]),
            row([Some("b"), Some("9000"), None, None, Some("1"), Some("0")]),
        ];
        assert_eq!(not_done(&answer), ["b:9000"]);
        assert_eq!(not_done(&[]), [] as [String; 0]);
    }
}
