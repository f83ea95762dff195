//! What an INSERT comes to when its answer, its size or a view is at fault.

use serde_json::json;

use crate::support::oracle::{Scope, assert_same};
use crate::support::postgres::insert;
use crate::support::program::Program;
use crate::support::sample;
use crate::support::stage::Stage;

const OUTAGE: &str = r#"walhouse_insert_outage{service="runs"}"#;

/// In one transaction, so in few batches.
fn insert_runs(stage: &Stage, prefix: &str, count: u32) {
    let mut client = stage.postgres.client();
    let mut transaction = client.transaction().unwrap();
    for n in 0..count {
        let row = sample::with(sample::full_run(&format!("{prefix}{n:03}")), json!({}));
        insert(&mut transaction, "TaskRun", &row).unwrap();
    }
    transaction.commit().unwrap();
}

/// Goal: status 200 without ClickHouse's head is nobody's yes, whatever comes with it.
#[test]
fn an_answer_that_is_not_clickhouses_is_no_answer() {
    let stage = Stage::own();
    let mut program = Program::start(&stage.settings_runs());
    program.wait_streaming(&["runs"]);
    for (n, page) in ["", "back+soon", "Code"].iter().enumerate() {
        stage.clickhouse.add_fault(&format!("action=page&on=any&status=200&text={page}"));
        insert_runs(&stage, &format!("r{n}"), 20);
        program.wait_metric(OUTAGE, |outage| outage == 1.0);
        program.wait_for_log("no `X-ClickHouse-Query-Id`");
        stage.clickhouse.clear_faults();
        stage.settle(&mut program, &["runs"]);
        program.wait_metric(OUTAGE, |outage| outage == 0.0);
    }
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 2 * 60);
    program.stop();
}
