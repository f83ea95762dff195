//! Service `webhooks`: a source in partitions that come and go, and a target that drops old rows by
//! itself.

use serde_json::json;

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same};
use crate::support::program::{Program, Settings};
use crate::support::sample;
use crate::support::stage::{Stage, WEBHOOKS_SLOT};

const TABLE: &str = "webhook_deliveries_v1";
const SERVICE: &[&str] = &["webhooks"];

/// So many days ago, by the clock of the server.
fn day(stage: &Stage, ago: u32) -> String {
    let sql = format!("SELECT to_char(now() - interval '{ago} days', 'YYYY-MM-DD')");
    stage.postgres.value(&sql).expect("a day")
}

fn insert(stage: &Stage, id: &str, ago: u32) {
    let delivery = sample::full_delivery(id, &day(stage, ago));
    stage.postgres.insert("WebhookDelivery", &delivery);
}

fn begin(settings: &Settings) -> Program {
    let mut program = Program::start(settings);
    program.wait_streaming(SERVICE);
    program
}

/// What a command prints, and that it succeeds.
#[track_caller]
fn command(settings: &Settings, arguments: &[&str]) -> String {
    let output = Program::command(settings, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {text}{errors}");
    text
}

#[track_caller]
fn assert_equal(stage: &Stage, program: &mut Program, rows: usize) {
    stage.settle(program, SERVICE);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::WEBHOOKS), rows);
}

/// Goal: whatever is written to any partition arrives, under REPLICA IDENTITY DEFAULT too, where a
/// delete knows `id` and `createdAt` alone.
#[test]
fn deliveries_are_made_changed_moved_and_deleted() {
    let stage = Stage::take();
    let settings = stage.settings_webhooks();
    let checked = command(&settings, &["check"]);
    assert!(checked.contains("webhooks: publication"), "{checked}");
    let mut program = begin(&settings);
    for n in 0..6 {
        insert(&stage, &format!("d{n}"), n * 9);
    }
    let without = json!({"externalDeliveryId": null, "runId": null});
    let null = sample::with(sample::full_delivery("null", &day(&stage, 1)), without);
    stage.postgres.insert("WebhookDelivery", &null);
    let nobody = json!({"organizationId": ""});
    let nobody = sample::with(sample::full_delivery("nobody", &day(&stage, 1)), nobody);
    stage.postgres.insert("WebhookDelivery", &nobody);
    assert_equal(&stage, &mut program, 7);
    stage.postgres.update("WebhookDelivery", "d1", &json!({"status": "FAILED", "isTest": false}));
    stage.postgres.delete("WebhookDelivery", "d2");
    assert_equal(&stage, &mut program, 6);
    // Another day is another key of the target. Only the whole old row tells which one it was, and
    // Postgres calls it whole if the root says so, too.
    for table in ["WebhookDelivery", "WebhookDelivery_2025", "WebhookDelivery_2026"] {
        stage.postgres.execute(&format!("ALTER TABLE \"{table}\" REPLICA IDENTITY FULL"));
    }
    // The last one leads to another partition, as a DELETE and an INSERT, and past the TTL.
    for (days, rows) in [(20, 1), (3, 1), (400, 0)] {
        stage.postgres.execute(&format!(
            "UPDATE \"WebhookDelivery\" SET \"createdAt\" = \"createdAt\" - interval '{days} days'
             WHERE id = 'd3'"
        ));
        stage.settle(&mut program, SERVICE);
        let young = "delivery_id = 'd3' AND now() - INTERVAL 60 DAY < created_at";
        assert_eq!(stage.clickhouse.count(TABLE, young), rows, "{days} days");
    }
    let verified = command(&settings, &["verify", "webhooks", "--full"]);
    assert!(verified.contains("both sides are equal"), "{verified}");
    // Of what is lost, the rows that were made in these days come back.
    stage.clickhouse.execute(&format!("TRUNCATE TABLE {DATABASE}.{TABLE}"));
    let (from, to) = (day(&stage, 10), day(&stage, 0));
    command(&settings, &["backfill", "webhooks", "--from", &from, "--to", &to]);
    assert_eq!(stage.clickhouse.count(TABLE, "delivery_id IN ('d1', 'null')"), 2);
    assert_eq!(stage.clickhouse.count(TABLE, "1"), 2);
    program.stop();
    command(&settings, &["teardown", "webhooks", "--publication", "--yes"]);
    assert_eq!(stage.postgres.confirmed_flush(WEBHOOKS_SLOT), None);
}

/// Goal: what ClickHouse has dropped by its TTL is not missing, and nothing brings it back: neither
/// the initial backfill, nor `verify --repair`, nor `backfill`, nor a repair.
#[test]
fn rows_past_the_ttl_are_left_to_it() {
    let stage = Stage::take();
    for (id, ago) in [("new", 0), ("young", 58), ("old", 61), ("ancient", 400)] {
        insert(&stage, id, ago);
    }
    let settings =
        stage.settings_webhooks().with("WEBHOOK_DELIVERIES_REPLICATION_INITIAL_BACKFILL", 1);
    let mut program = begin(&settings);
    program.wait_for_log("webhooks: initial backfill: done");
    let ids = || {
        let sql = "SELECT arrayStringConcat(arraySort(groupArray(delivery_id)), ' ')";
        stage.clickhouse.value(&format!("{sql} FROM {DATABASE}.{TABLE} FINAL"))
    };
    assert_eq!(ids(), "new young");
    for arguments in [
        &["verify", "webhooks", "--full"][..],
        &["verify", "webhooks", "--full", "--repair"],
        &["backfill", "webhooks"],
    ] {
        let told = command(&settings, arguments);
        assert_eq!(ids(), "new young", "{arguments:?}: {told}");
    }
    let told = command(&settings, &["verify", "webhooks", "--full"]);
    assert!(told.contains("4 rows of Postgres and 2 keys of ClickHouse compared"), "{told}");
    assert!(told.contains("2 of them left out"), "{told}");
    // One that is past it in ClickHouse alone is not marked as deleted either: it goes by itself.
    stage.postgres.update("WebhookDelivery", "old", &json!({"status": "FAILED"}));
    stage.settle(&mut program, SERVICE);
    program.stop();
    stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{WEBHOOKS_SLOT}')"));
    stage.postgres.delete("WebhookDelivery", "old");
    let mut program = begin(&settings);
    let done = program.wait_for_log("webhooks: repair: done");
    assert!(done.contains(" 0 written, 0 marked as deleted"), "{done}");
    // The table says for how long, whatever ours would say.
    stage.clickhouse.execute(&format!(
        "ALTER TABLE {DATABASE}.{TABLE} MODIFY TTL created_at + INTERVAL 2 YEAR"
    ));
    program.stop();
    let program = begin(&settings);
    command(&settings, &["backfill", "webhooks"]);
    assert_eq!(ids(), "ancient new young");
    program.stop();
}

/// Goal: rows that come or go with a partition, of which the stream says nothing, are seen.
#[test]
fn partitions_come_and_go() {
    let stage = Stage::take();
    stage.postgres.execute(
        "DROP TABLE \"WebhookDelivery_2025\", \"WebhookDelivery_2026\";
         CREATE TABLE deliveries_old PARTITION OF \"WebhookDelivery\" DEFAULT",
    );
    let (from, to) = (day(&stage, 10), day(&stage, 5));
    let made = format!(
        "CREATE TABLE deliveries_of_days PARTITION OF \"WebhookDelivery\"
             FOR VALUES FROM ('{from}') TO ('{to}')"
    );
    stage.postgres.execute(&made);
    let settings = stage.settings_webhooks();
    let mut program = begin(&settings);
    for n in 0..20 {
        insert(&stage, &format!("d{n:02}"), n);
    }
    assert_equal(&stage, &mut program, 20);
    let mut repairs = 0;
    let mut repaired = |program: &mut Program, change: &str, rows: usize| {
        stage.postgres.execute(change);
        repairs += 1;
        program.wait_for_log_lines("webhooks: repair: done", repairs);
        assert_equal(&stage, program, rows);
    };
    let detach = "ALTER TABLE \"WebhookDelivery\" DETACH PARTITION deliveries_of_days";
    repaired(&mut program, detach, 15);
    let attach = format!(
        "UPDATE deliveries_of_days SET status = 'FAILED';
         ALTER TABLE \"WebhookDelivery\" ATTACH PARTITION deliveries_of_days
             FOR VALUES FROM ('{from}') TO ('{to}')"
    );
    repaired(&mut program, &attach, 20);
    // While nothing runs.
    program.stop();
    stage.postgres.execute(detach);
    let mut program = begin(&settings);
    program.wait_for_log("webhooks: repair: done");
    assert_equal(&stage, &mut program, 15);
    program.stop();
}
