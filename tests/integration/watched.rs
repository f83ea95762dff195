use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::http;
use crate::support::program::{Program, Settings};
use crate::support::sample;
use crate::support::stage::Stage;
use crate::support::wait::{PATIENCE, until, until_true};

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

/// Goal: whatever clients do to the port, rows arrive. Method: as many connections as it takes, some
/// silent, some that ask and never read, all the while.
#[test]
fn clients_that_hang_do_not_hurt_replication() {
    let stage = Stage::take();
    let mut program = stage.start();
    let at = program.http();
    let mut hanging = Vec::new();
    for n in 0..40 {
        let mut client = TcpStream::connect_timeout(&at, PATIENCE).unwrap();
        if n % 2 == 0 {
            // One that is turned away may be closed already.
            let _ = client.write_all(b"GET /status HTTP/1.1\r\n\r\n");
        }
        hanging.push(client);
    }
    stage.postgres.insert("TaskRun", &sample::full_run("a"));
    until_true("the row is there", PATIENCE, || {
        stage.clickhouse.count("task_runs_v2", "run_id = 'a'") == 1
    });
    drop(hanging);
    until_true("the port is free again", PATIENCE, || {
        http::request(at, "GET", "/status", "", b"", PATIENCE).is_ok_and(|a| a.status == 200)
    });
    program.stop();
}

/// Goal: with its lock in Postgres it is seen who leads, too.
#[test]
fn a_lock_in_postgres_is_seen() {
    let stage = Stage::take();
    let in_postgres = stage.settings_runs().with("REPLICATION_LEADER_LOCK", "postgres");
    let mut program = Program::start(&in_postgres);
    program.wait_streaming(&["runs"]);
    let off = in_postgres.with("REPLICATION_HTTP_LISTEN", "");
    let (text, _, code) = run(&off, &["status"]);
    assert_eq!(code, Some(0), "{text}");
    let leader = text.lines().find(|line| line.starts_with("leader"));
    assert!(leader.is_some_and(|line| line.contains("walhouse-leader-lock")), "{text}");
    program.stop();
    let (text, _, _) = run(&off, &["status"]);
    let leader = text.lines().find(|line| line.starts_with("leader"));
    assert!(leader.is_some_and(|line| line.contains("nobody")), "{text}");
}

/// Goal: what the slot keeps is seen just when it matters, while the stream is down.
#[test]
fn what_the_slot_keeps_is_seen_while_the_stream_is_down() {
    let mut stage = Stage::own();
    stage.start().stop();
    stage.clickhouse.stop();
    let mut program = Program::start(&stage.settings());
    let status = until_status(&mut program, "runs", "the slot was looked at", |status| {
        status["state"] == "backing_off" && status["retained_wal"]["bytes"].is_u64()
    });
    assert!(status["last_error"]["error"].is_string(), "{status:#}");
    assert_eq!(status["reason"], status["last_error"]["error"], "{status:#}");
    assert!(program.metric(r#"walhouse_retained_wal_bytes{service="runs"}"#).is_some());
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

/// What a command printed, to stdout and stderr, and its exit code.
fn run(settings: &Settings, arguments: &[&str]) -> (String, String, Option<i32>) {
    let output = Program::command(settings, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

#[test]
fn the_command_asks_the_process_that_runs() {
    let stage = Stage::take();
    let mut program = stage.start();
    let at = program.http();
    let settings = stage.settings().with("REPLICATION_HTTP_LISTEN", at);
    let (text, errors, code) = run(&settings, &["status"]);
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{text}");
    for words in ["healthy", "streaming", "this process", "runs", "sessions", "confirmed LSN"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let (text, _, code) = run(&settings, &["status", "--json"]);
    assert_eq!(code, Some(0));
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["source"], &json["healthy"]), (&json!("process"), &json!(true)));

    // By its URL it needs nothing else.
    let url = format!("http://{at}");
    let (text, _, code) = run(&Settings::default(), &["status", "--url", &url]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("streaming"), "{text}");
    program.stop();
    let (text, errors, code) = run(&Settings::default(), &["status", "--url", &url]);
    assert_eq!((code, text.as_str()), (Some(1), ""), "{errors}");
    assert!(errors.starts_with(&format!("walhouse: ask {url}: ")), "{errors}");
}

#[test]
fn without_a_process_the_servers_are_asked() {
    let stage = Stage::take();
    let off = stage.settings().with("REPLICATION_HTTP_LISTEN", "");
    let (text, errors, code) = run(&off, &["status"]);
    assert_eq!(code, Some(1));
    assert!(errors.contains("REPLICATION_HTTP_LISTEN is off; asking the servers"), "{errors}");
    assert!(text.contains("does not exist; a first start creates it"), "{text}");

    let mut program = stage.start();
    stage.postgres.insert("TaskRun", &sample::full_run("a"));
    stage.settle(&mut program, &["runs"]);
    let (text, _, code) = run(&off, &["status", "--json"]);
    assert_eq!(code, Some(0), "{text}");
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["source"], "servers");
    let service = &json["services"]["runs"];
    assert_eq!(service["state"], "streaming");
    assert_eq!(service["leader"]["who"], "somebody");
    assert!(lsn(&service["wal"]["server_lsn"]).is_some(), "{service:#}");
    assert!(lsn(&service["wal"]["confirmed_lsn"]).is_some(), "{service:#}");
    assert!(service["retained_wal"]["bytes"].is_u64(), "{service:#}");
    program.stop();

    let (text, _, code) = run(&off, &["status"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("UNHEALTHY") && text.contains("nobody streams from slot"), "{text}");
    assert!(text.lines().any(|l| l.starts_with("leader") && l.contains("nobody")), "{text}");
}

#[test]
fn a_server_that_is_away_hides_nothing_of_the_others() {
    let mut stage = Stage::own();
    stage.start().stop();
    stage.redis.kill();
    let secret = "s3cret-of-redis";
    let off = stage.settings().with("REPLICATION_HTTP_LISTEN", "").with("REDIS_PASSWORD", secret);
    let (text, errors, code) = run(&off, &["status"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("look at leader lock"), "{text}");
    assert!(text.contains("nobody streams from slot"), "{text}");
    assert!(text.lines().any(|l| l.starts_with("flushed LSN")), "{text}");
    assert!(!text.contains(secret) && !errors.contains(secret));
}

#[test]
fn wrong_arguments_and_configurations_are_told_from_bad_health() {
    for arguments in [
        &["status"][..],
        &["status", "--url", "https://localhost:9465"],
        &["status", "--url", "nonsense"],
        &["status", "--watch", "0"],
    ] {
        let (text, errors, code) = run(&Settings::default(), arguments);
        assert_eq!((code, text.as_str()), (Some(64), ""), "{arguments:?}: {errors}");
    }
}

/// Goal: a watch goes on until its reader has gone, and then ends.
#[test]
fn a_watch_looks_again_and_ends_with_its_reader() {
    let stage = Stage::take();
    let mut program = stage.start();
    let url = format!("http://{}", program.http());
    let arguments = ["status", "--json", "--watch", "1", "--url", &url];
    let mut watch = Program::command_going_on(&Settings::default(), &arguments);
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut times = Vec::new();
    for _ in 0..2 {
        let json: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        times.push(json["now_unix_seconds"].as_u64().unwrap());
    }
    assert!(times[0] < times[1], "{times:?}");
    drop(lines);
    until_true("the watch ends", PATIENCE, || watch.try_wait().unwrap().is_some());
    program.stop();
}
