use serde_json::{Value, json};

use crate::support::program::Program;
use crate::support::sample;
use crate::support::stage::Stage;
use crate::support::wait::{PATIENCE, until};

fn lsn(value: &Value) -> Option<u64> {
    let (high, low) = value.as_str()?.split_once('/')?;
    let half = |text| u64::from_str_radix(text, 16).ok();
    Some(half(high)? << 32 | half(low)?)
}

/// The status once `check` holds for the service.
#[track_caller]
fn until_status(
    program: &mut Program,
    service: &str,
    what: &str,
    check: impl Fn(&Value) -> bool,
) -> Value {
    let mut last = Value::Null;
    until(format!("/status: {what}"), PATIENCE, || {
        last = program.status()["services"][service].clone();
        check(&last).then(|| last.clone())
    })
}

#[test]
fn status_knows_the_server_the_slot_and_who_leads() {
    let stage = Stage::take();
    let mut program = stage.start();
    stage.postgres.insert("TaskRun", &sample::full_run("a"));
    stage.settle(&mut program, &["runs"]);
    let status = until_status(&mut program, "runs", "all of it is known", |status| {
        lsn(&status["wal"]["server_lsn"]).is_some()
            && status["retained_wal"]["bytes"].is_u64()
            && lsn(&status["wal"]["confirmed_lsn"]).is_some_and(|confirmed| 0 < confirmed)
    });
    assert_eq!(status["state"], "streaming");
    assert_eq!(status["leader"]["who"], "this_process");
    assert_eq!(status["retained_wal"]["limit_bytes"], Value::Null, "no limit is set");
    assert_eq!(status["refused_rows"]["task_runs_v2"], json!(0));
    let changes: Vec<&str> = (status["changes"].as_array().unwrap().iter())
        .map(|change| change["state"].as_str().unwrap())
        .collect();
    assert_eq!(changes[0], "streaming", "{changes:?}");
    assert_eq!(changes.last(), Some(&"starting"), "{changes:?}");
    // Idle, it catches up with the server, and is not late.
    let flushed = stage.postgres.flush_lsn();
    let status = until_status(&mut program, "runs", "it has caught up", |status| {
        lsn(&status["wal"]["flushed_lsn"]).is_some_and(|lsn| flushed <= lsn)
            && status["lag"]["seconds"] == json!(0.0)
    });
    let seen = lsn(&status["wal"]["server_lsn"]).unwrap();
    assert!(lsn(&status["wal"]["flushed_lsn"]).unwrap() <= seen, "{status:#}");
    program.stop();
}

/// Goal: an outage is seen while it lasts: lag and memory grow, its error is told, and all of it is
/// over afterwards.
#[test]
fn an_outage_is_seen_while_it_lasts() {
    let mut stage = Stage::own_with(&[("max_slot_wal_keep_size", "1GB")]);
    let mut program = stage.start();
    until_status(&mut program, "runs", "the server was looked at", |status| {
        status["retained_wal"]["limit_bytes"] == json!(1_u64 << 30)
            && status["retained_wal"]["left_bytes"].is_u64()
    });
    stage.clickhouse.stop();
    stage.postgres.insert("TaskRun", &sample::full_run("a"));
    let status = until_status(&mut program, "runs", "an outage is told", |status| {
        status["insert_outage"]["error"].is_string()
            && status["lag"]["seconds"].as_f64().is_some_and(|lag| 1.0 < lag)
            && status["unflushed_bytes"].as_u64().is_some_and(|bytes| 0 < bytes)
    });
    assert_eq!(status["state"], "streaming");
    stage.clickhouse.start_again();
    until_status(&mut program, "runs", "the outage is over", |status| {
        status["insert_outage"] == Value::Null && status["lag"]["seconds"] == json!(0.0)
    });
    program.stop();
}

#[test]
fn a_standby_says_that_another_leads() {
    let stage = Stage::take();
    let leader = stage.start();
    let mut standby = Program::start(&stage.settings());
    let status = until_status(&mut standby, "sessions", "it stands by", |status| {
        status["state"] == "standing_by" && status["leader"]["who"] == "another"
    });
    assert_eq!(status["reason"], "another instance leads");
    assert_eq!(status["lag"]["seconds"], Value::Null, "it is not its own");
    standby.stop();
    leader.stop();
}
