use super::checked::{assignment, check};
use super::support::clickhouse::Clickhouse;
use super::support::free_port;
use super::support::program::Program;
use super::support::stage::Stage;
use super::support::zookeeper::Zookeeper;

const CLUSTER: &str = "REPLICATION_CLICKHOUSE_CLUSTER";
const QUORUM: &str = "REPLICATION_CLICKHOUSE_INSERT_QUORUM";
const URL: &str = "SESSION_REPLICATION_CLICKHOUSE_URL";

#[test]
fn clusters_replicas_quorums_and_hosts() {
    let zookeeper = Zookeeper::start();
    let mut stage = Stage::own();
    stage.clickhouse = Clickhouse::start_front_with(Some(zookeeper.engine_config()));
    let settings = stage
        .settings_of_defaults()
        .with("SESSION_REPLICATION_SLOT_FAILOVER", 0)
        .without("RUN_REPLICATION_ENABLED");
    // A cluster that is there.
    let checked = check(&settings.clone().with(CLUSTER, "one"));
    checked.expect_sound();
    checked.expect("ok", "cluster: `one`: one shard, 1 replicas");
    let checked = check(&settings.clone().with(CLUSTER, "gone'"));
    assert!(checked.expect("problem", "knows no cluster `gone\\'`").hint.contains("one, two"));
    check(&settings.clone().with(CLUSTER, "two")).expect("problem", "has several shards");
    // Several hosts, before there are tables.
    let several = format!("http://127.0.0.1:{},127.0.0.1:{}", stage.clickhouse.port(), free_port());
    let several = settings.clone().with(URL, several);
    let checked = check(&several);
    checked.expect("problem", "missing tables would be created on only one of them");
    checked.expect("warning", "refused");

    let mut program = Program::start(&settings);
    program.wait_streaming(&["sessions"]);
    program.stop();
    check(&settings).expect_sound();
    let checked = check(&several);
    assert_eq!((checked.code, checked.bad().len()), (0, 1), "{checked:#?}");
    // A quorum that no table keeps.
    let quorum = settings.clone().with(QUORUM, 2);
    let hint = check(&quorum).expect("problem", "these tables are not replicated").hint;
    let (name, value) = assignment(&hint).expect("it names a variable");
    check(&quorum.with(name, value)).expect_sound();
    // The engine's replicas are read-only, and each is the only one.
    stage.clickhouse.execute("DROP TABLE trigger_dev.walhouse_adoptions SYNC");
    stage.clickhouse.execute(
        "CREATE TABLE trigger_dev.walhouse_adoptions (k String) \
         ENGINE = ReplicatedReplacingMergeTree ORDER BY k",
    );
    let checked = check(&settings.clone().with(QUORUM, 2));
    checked.expect("problem", "the replica of `walhouse_adoptions` is read-only");
    checked.expect("problem", "`walhouse_adoptions` has 1 replicas, but an insert must reach 2");
}
