//! Both sides compared, as often as patience allows.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use crate::arguments::Arguments;
use crate::support::oracle::{self, Report, Scope, What};
use crate::support::wait;

/// For both servers to answer at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

pub fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let (postgres, clickhouse) = (arguments.postgres()?, arguments.clickhouse()?);
    let patience = arguments.seconds("patience", 0.0)?;
    wait::within(ANSWER_TIMEOUT, || postgres.try_client())
        .ok_or("no primary answers, nothing to compare with")?;
    wait::within(ANSWER_TIMEOUT, || {
        clickhouse.ask("SELECT 1", &[]).ok().filter(|answer| answer.status == 200)
    })
    .ok_or("ClickHouse does not answer, nothing to compare")?;

    let compare = || oracle::compare(&postgres, &clickhouse, Scope::ALL);
    let mut last = None;
    let _ = wait::within(patience, || last.insert(compare()).is_clean().then_some(()));
    let mut report = last.expect("it compared once at least");
    if !report.is_clean() && !patience.is_zero() {
        // A look at a million rows may take longer than the patience, and began when it did.
        report = compare();
    }
    if !report.is_clean() {
        eprint!("{report}");
    }
    print(&report);
    // No rows at all would be equal as well.
    Ok(ExitCode::from(u8::from(!report.is_clean() || report.rows == 0)))
}

fn print(report: &Report) {
    let count = |is: fn(&What) -> bool| report.differences.iter().filter(|d| is(&d.what)).count();
    let counts = json!({
        "rows": report.rows,
        "lost": count(|what| matches!(what, What::Lost)),
        "wrong": count(|what| matches!(what, What::Wrong { .. })),
        "extra": count(|what| matches!(what, What::Extra)),
        "repeated": count(|what| matches!(what, What::Repeated(_))),
    });
    println!("{counts}");
}
