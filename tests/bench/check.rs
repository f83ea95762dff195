//! That a run was no fast way of losing rows: both sides have the same ones.

use crate::backlog::{Backlog, Shape};
use crate::service::Service;
use crate::stage::Stage;
use crate::support::database::detail;
use crate::support::warehouse::DATABASE;

/// How many rows there are, and a digest of which ones in which version. The full comparison of every
/// column is for the drills; it would take longer than what is measured.
pub fn both_sides(stage: &Stage, backlog: &Backlog<'_>, service: Service) -> Result<(), String> {
    let (postgres, clickhouse) = (in_postgres(stage, service)?, in_clickhouse(stage, service)?);
    if postgres != clickhouse {
        return Err(format!(
            "{}: Postgres has (rows, digest) {postgres:?}, ClickHouse {clickhouse:?}",
            service.name()
        ));
    }
    for table in &service.targets()[1..] {
        // A run that was only updated brings no payload.
        if backlog.shape != Shape::UnchangedToast {
            let rows = stage.ask(&format!("SELECT count() FROM {DATABASE}.{table} FINAL"))?;
            if rows.trim().parse() != Ok(postgres.0) {
                return Err(format!("`{table}` has {} rows, not {}", rows.trim(), postgres.0));
            }
        }
    }
    if backlog.shape == Shape::UnchangedToast {
        no_value_is_missing(stage, service)?;
    }
    Ok(())
}

fn in_postgres(stage: &Stage, service: Service) -> Result<(u64, i64), String> {
    let of = match service {
        Service::Runs => "status::text",
        Service::Sessions => "coalesce(\"closedReason\", '')",
    };
    let sql = format!(
        "SELECT count(*), coalesce(bit_xor(('x' || substr(md5(concat_ws('|', id, {of},
             (extract(epoch FROM \"updatedAt\") * 1000)::int8)), 1, 16))::bit(64)::int8), 0)
         FROM {}",
        service.table()
    );
    let mut client = stage.postgres.try_client().ok_or("connect to Postgres")?;
    let row = client.query_one(&sql, &[]);
    let row = row.map_err(|error| format!("count the rows of Postgres: {}", detail(&error)))?;
    Ok((row.get::<_, i64>(0) as u64, row.get(1)))
}

fn in_clickhouse(stage: &Stage, service: Service) -> Result<(u64, i64), String> {
    let (id, of) = match service {
        Service::Runs => ("run_id", "status"),
        Service::Sessions => ("session_id", "closed_reason"),
    };
    let answer = stage.ask(&format!(
        "SELECT count(), groupBitXor(reinterpretAsInt64(reverse(substring(MD5(concat(
             {id}, '|', {of}, '|', toString(toUnixTimestamp64Milli(updated_at)))), 1, 8))))
         FROM {DATABASE}.{} FINAL",
        service.targets()[0]
    ))?;
    let parse = || {
        let (rows, digest) = answer.trim().split_once('\t')?;
        Some((rows.parse().ok()?, digest.parse().ok()?))
    };
    parse().ok_or_else(|| format!("count the rows of ClickHouse: got {answer}"))
}

/// Each row had a large value before its UPDATE left it alone.
fn no_value_is_missing(stage: &Stage, service: Service) -> Result<(), String> {
    let value = match service {
        Service::Runs => "output",
        Service::Sessions => "metadata",
    };
    let lost = stage.ask(&format!(
        "SELECT countIf(length(toJSONString({value})) < 8000) FROM {DATABASE}.{} FINAL",
        service.targets()[0]
    ))?;
    match lost.trim() {
        "0" => Ok(()),
        lost => Err(format!("{}: {lost} rows have lost their `{value}`", service.name())),
    }
}
