use super::checked::{check, traces};
use super::support::program::Program;
use super::support::sample;
use super::support::stage::{SERVICES, Stage};
use super::support::wait::{PATIENCE, until_true};

#[test]
fn a_sound_setup_has_no_warning_before_and_while_it_runs_and_nothing_stays() {
    let stage = Stage::take();
    // A single server has no standby that could keep the slots.
    let settings = stage.settings_of_defaults().with_both("*_REPLICATION_SLOT_FAILOVER", 0);
    let before = traces(&stage);
    let checked = check(&settings);
    checked.expect_sound();
    checked.expect("ok", "walhouse creates it when it starts");
    assert_eq!(traces(&stage), before, "before the first start");

    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    stage.postgres.insert("TaskRun", &sample::run("r1"));
    stage.settle(&mut program, &SERVICES);
    let before = traces(&stage);
    let checked = check(&settings);
    checked.expect_sound();
    checked.expect("ok", "another instance holds it");
    checked.expect("ok", "walhouse streams from it");
    checked.expect("ok", "accepted as a row of `task_runs_v2`");
    assert_eq!(traces(&stage), before, "while it runs");
    // It led and streamed all the while.
    assert_eq!(program.log_lines("leader lock lost"), 0);
    program.stop();

    let before = traces(&stage);
    check(&settings).expect_sound();
    let in_postgres = settings.clone().with("REPLICATION_LEADER_LOCK", "postgres");
    let checked = check(&in_postgres);
    checked.expect_sound();
    checked.expect("ok", "in Postgres, free");
    assert_eq!(traces(&stage), before, "after it has run");
}

#[test]
fn a_check_that_is_interrupted_leaves_no_trial_table() {
    let stage = Stage::own();
    let settings = stage.settings_of_defaults();
    stage.clickhouse.execute("CREATE DATABASE trigger_dev");
    let before = traces(&stage);
    stage.clickhouse.add_fault("action=delay_after&ms=2000&on=insert");
    let mut checking = Program::start_command(&settings, &["check"]);
    let trials = "SELECT count() FROM system.tables WHERE name LIKE 'walhouse_check_%'";
    until_true("a trial table is there", PATIENCE, || {
        assert!(!checking.has_ended(), "it ends before the trial");
        stage.clickhouse.value(trials) != "0"
    });
    checking.signal("INT");
    let status = checking.wait_end(PATIENCE);
    assert_eq!(status.code(), Some(130));
    assert_eq!(traces(&stage), before);
}

#[test]
fn people_get_a_line_each_and_bad_configuration_exits_with_64() {
    let stage = Stage::take();
    let settings = stage.settings_of_defaults();
    let output = Program::command(&settings, &["check"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(
        text.lines().any(|line| line.starts_with("ok       runs, sessions: wal_level: ")),
        "{text}"
    );
    assert!(text.ends_with("\n0 problems, 0 warnings\n"), "{text}");

    let wrong = settings.with("RUN_REPLICATION_FLUSH_BATCH_SIZE", "many").with("REDIS_PORT", "x");
    let checked = check(&wrong);
    assert_eq!(checked.code, 64);
    checked.expect("problem", "RUN_REPLICATION_FLUSH_BATCH_SIZE");
    checked.expect("problem", "REDIS_PORT");
    let output = Program::command(&wrong, &["check"]);
    assert_eq!(output.status.code(), Some(64));
}
