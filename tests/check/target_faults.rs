use super::checked::{Bench, assignment, check};
use super::support::program::Program;
use super::support::stage::{SESSIONS_SLOT, Stage};
use super::support::warehouse::DATABASE;

/// Sessions have been replicated once.
fn bench() -> Bench {
    let stage = Stage::own_with(&[]);
    let settings = stage
        .settings_of_defaults()
        .with("SESSION_REPLICATION_SLOT_FAILOVER", 0)
        .without("RUN_REPLICATION_ENABLED");
    let mut program = Program::start(&settings);
    program.wait_streaming(&["sessions"]);
    program.stop();
    check(&settings).expect_sound();
    Bench { stage, settings }
}

fn sql(statements: &str) -> impl FnOnce(&mut Bench) + '_ {
    move |bench| {
        for statement in statements.split(';') {
            bench.stage.clickhouse.execute(statement);
        }
    }
}

#[test]
fn tables_of_clickhouse() {
    let mut bench = bench();
    bench.case(
        "problem",
        "no column `friendly_id`",
        sql("ALTER TABLE trigger_dev.sessions_v1 DROP COLUMN friendly_id"),
    );
    bench.case(
        "problem",
        "column `closed_at` of `sessions_v1` is DateTime64(3)",
        sql("ALTER TABLE trigger_dev.sessions_v1 DROP COLUMN closed_at;
             ALTER TABLE trigger_dev.sessions_v1 ADD COLUMN closed_at DateTime64(3)"),
    );
    bench.case(
        "warning",
        "column `updated_at` of `sessions_v1` is DateTime",
        sql("ALTER TABLE trigger_dev.sessions_v1 MODIFY COLUMN updated_at DateTime"),
    );
    bench.case(
        "problem",
        "column `tags` of `sessions_v1` is String",
        sql("ALTER TABLE trigger_dev.sessions_v1 DROP COLUMN tags;
             ALTER TABLE trigger_dev.sessions_v1 ADD COLUMN tags String"),
    );
    // Set aside; the next start creates it again and fills it.
    bench.case(
        "warning",
        "is a MergeTree",
        sql("CREATE TABLE trigger_dev.plain AS trigger_dev.sessions_v1 ENGINE = MergeTree \
             ORDER BY session_id;
             DROP TABLE trigger_dev.sessions_v1;
             RENAME TABLE trigger_dev.plain TO trigger_dev.sessions_v1"),
    );
    bench.stage.clickhouse.execute("DROP TABLE trigger_dev.sessions_v1_old SYNC");
    let mut program = Program::start(&bench.settings);
    program.wait_streaming(&["sessions"]);
    program.stop();
    bench.case(
        "problem",
        "rows replace each other",
        sql("CREATE TABLE trigger_dev.plain AS trigger_dev.sessions_v1 \
             ENGINE = ReplacingMergeTree(_version, _is_deleted) ORDER BY organization_id;
             DROP TABLE trigger_dev.sessions_v1;
             RENAME TABLE trigger_dev.plain TO trigger_dev.sessions_v1"),
    );

    // Nothing is to be created.
    bench.settings = bench.settings.clone().with("REPLICATION_CREATE_TABLES", 0);
    let missing = "find table `trigger_dev`.`sessions_v1`: it does not exist";
    bench.case("problem", missing, |_| ());
    bench.case_until(
        "problem",
        "database `trigger_dev` is missing",
        |bench| bench.stage.clickhouse.reset(),
        |checked| {
            checked.expect("problem", missing);
            assert!(checked.find("problem", "database `").is_none(), "{checked:#?}");
        },
    );
    // Each table that is missing is told with its own statement.
    for finding in check(&bench.settings).bad() {
        bench.apply(&finding.hint);
    }
    check(&bench.settings).expect_sound();
}

#[test]
fn what_is_not_clickhouse_or_does_not_let_us_in() {
    let bench = {
        let stage = Stage::own();
        let settings = stage.settings_of_defaults().without("RUN_REPLICATION_ENABLED");
        Bench { stage, settings }
    };
    let right = bench.settings.clone();
    let name = "SESSION_REPLICATION_CLICKHOUSE_URL";
    let url = right.get(name).unwrap().to_owned();
    for (wrong, hint) in [
        ("http://127.0.0.1:1".to_owned(), "Point SESSION_REPLICATION_CLICKHOUSE_URL at"),
        (format!("http://127.0.0.1:{}", bench.stage.redis.port()), "HTTP interface"),
        (url.replace("//", "//somebody:else@"), "Check the user and the password"),
    ] {
        let checked = check(&right.clone().with(name, &wrong));
        assert_eq!(checked.code, 1);
        let finding = checked.expect("problem", "ClickHouse: ");
        assert!(finding.hint.contains(hint), "{wrong}: {finding:?}");
        // The others are told of all the same.
        checked.expect("ok", "wal_level: logical");
    }
    check(&right).expect_sound();
    // A refusal of the row itself. The trial table goes all the same.
    bench.stage.clickhouse.execute(&format!("CREATE DATABASE {DATABASE}"));
    bench.stage.clickhouse.add_fault("action=error&code=27&on=insert&count=1");
    check(&right).expect("problem", "insert a trial row");
    assert_eq!(bench.stage.clickhouse.fault_hits(), 1);
    bench.stage.clickhouse.clear_faults();
    let tables = format!("SELECT name FROM system.tables WHERE database = '{DATABASE}'");
    assert_eq!(bench.stage.clickhouse.rows(&tables), Vec::<Vec<serde_json::Value>>::new());
}

#[test]
fn gaps_and_foreign_clusters_are_foreseen() {
    let mut bench = bench();
    bench.stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{SESSIONS_SLOT}')"));
    let checked = check(&bench.settings);
    checked.expect("warning", "gap: the slot is missing");
    assert_eq!(checked.code, 0);
    let halts = bench.settings.clone().with("REPLICATION_GAP_STRATEGY", "halt");
    let finding = check(&halts).expect("problem", "gap: the slot is missing");
    assert!(finding.hint.contains("REPLICATION_GAP_STRATEGY is `halt`. Set it to `repair`"));
    let mended = halts.with("REPLICATION_GAP_STRATEGY", "repair");
    assert_eq!(check(&mended).code, 0);
    let mut program = Program::start(&mended);
    program.wait_streaming(&["sessions"]);
    program.wait_for_log("repair");
    program.stop();

    // From 17 on a slot can outlive its primary, if there is a standby to keep it.
    if 17 <= bench.stage.postgres.version() {
        let marked = mended.clone().with("SESSION_REPLICATION_SLOT_FAILOVER", 1);
        check(&marked).expect("ok", "a start marks the slot");
        let mut program = Program::start(&marked);
        program.wait_streaming(&["sessions"]);
        program.stop();
        let finding = check(&marked).expect("warning", "no standby is connected");
        let (name, value) = assignment(&finding.hint).expect("it names a variable");
        check(&marked.with(name, value)).expect_sound();
    }

    // ClickHouse was filled from elsewhere.
    bench.case_until(
        "problem",
        "foreign cluster",
        sql("INSERT INTO trigger_dev.walhouse_state SELECT * REPLACE ('7' AS system_identifier, \
             revision + 1 AS revision) FROM trigger_dev.walhouse_state FINAL"),
        |checked| {
            checked.expect("warning", "foreign cluster");
            assert_eq!(checked.code, 0, "{checked:#?}");
        },
    );
}
