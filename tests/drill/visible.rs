//! How long it takes until a new row is seen in ClickHouse.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postgres::Client;
use serde_json::json;

use crate::arguments::Arguments;
use crate::support::database::{Database, detail, insert};
use crate::support::warehouse::{DATABASE, Warehouse};
use crate::support::{sample, wait};

pub fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let (postgres, clickhouse) = (arguments.postgres()?, arguments.clickhouse()?);
    let now = unix_time();
    let since = arguments.seconds("since", now.as_secs_f64())?;
    let limit = arguments.seconds("within", 60.0)?.saturating_sub(now.saturating_sub(since));
    let elapsed = || unix_time().saturating_sub(since).as_secs_f64();

    let id = format!("marker-{}", now.as_nanos());
    let written = wait::within(limit, || write(&postgres, &id).then(elapsed));
    let visible = written.and_then(|_| {
        let left = limit.saturating_sub(unix_time().saturating_sub(now));
        wait::within(left, || is_visible(&clickhouse, &id).then(elapsed))
    });
    println!("{}", json!({"written": written, "visible": visible}));
    Ok(ExitCode::from(u8::from(visible.is_none())))
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970")
}

/// Whether it is known to be committed. What was asked before may be there already.
fn write(postgres: &Database, id: &str) -> bool {
    let try_it = |client: &mut Client| -> Result<(), postgres::Error> {
        let mut transaction = client.transaction()?;
        insert(&mut transaction, "TaskRun", &sample::run(id))?;
        insert(&mut transaction, "Session", &sample::session(id))?;
        transaction.commit()
    };
    let Some(mut client) = postgres.try_client() else { return false };
    match try_it(&mut client) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("write {id}: {}", detail(&error));
            error.code().is_some_and(|code| code.code() == "23505")
        }
    }
}

fn is_visible(clickhouse: &Warehouse, id: &str) -> bool {
    let sql = format!(
        "SELECT (SELECT count() FROM {DATABASE}.task_runs_v2 WHERE run_id = '{id}') > 0 \
         AND (SELECT count() FROM {DATABASE}.sessions_v1 WHERE session_id = '{id}') > 0"
    );
    clickhouse
        .ask(&sql, &[])
        .is_ok_and(|answer| answer.status == 200 && answer.text().trim() == "1")
}
