//! An overview with something in every field.

use super::*;

pub(super) const HOSTILE: &str = "<script>alert('x')</script> \"&\" \u{202e}<img src=x>";

pub(super) fn busy() -> Overview {
    let trouble = Trouble {
        error: format!("connect to Postgres: {HOSTILE}"),
        hint: Some(HOSTILE.to_owned()),
        at_unix_seconds: 1_700_000_000,
    };
    let service = ServiceOverview {
        slot: "task_runs_to_clickhouse_v1".to_owned(),
        state: "streaming".to_owned(),
        healthy: true,
        since_unix_seconds: Some(1_700_000_000),
        reason: Some("the stream is open".to_owned()),
        hint: None,
        leader: LeaderOverview { who: Who::ThisProcess, name: Some("host pid 7".to_owned()) },
        wal: Wal {
            server_lsn: Some("16/B374D848".to_owned()),
            server_seen_unix_seconds: Some(1_700_003_590),
            received_lsn: Some("16/B374D800".to_owned()),
            flushed_lsn: Some("16/B374C000".to_owned()),
            confirmed_lsn: Some("16/B3740000".to_owned()),
        },
        lag: Lag { bytes: Some(6216), seconds: Some(0.42), seconds_since_confirmed: Some(2.5) },
        retained_wal: RetainedWal {
            bytes: Some(48 << 20),
            growth_bytes_per_second: Some(2048.0),
            limit_bytes: Some(1 << 30),
            left_bytes: Some(900 << 20),
            seconds_left: Some(460_800.0),
        },
        throughput: Some(Throughput {
            rows_per_second: 1234.5,
            changes_per_second: 2000.0,
            bytes_per_second: 1_500_000.0,
        }),
        unflushed_bytes: Some(123_456),
        insert_outage: None,
        last_error: Some(trouble),
        refused_rows: BTreeMap::from([("task_runs_v2".to_owned(), 3)]),
        repair: Some(Repair {
            reason: "gap: the slot is missing".to_owned(),
            pass: "read".to_owned(),
            fraction: Some(0.4217),
            seconds_left: Some(95),
            pieces_done: 0,
            pieces: 0,
            rows_read: 12_345,
            rows_written: 67,
            tombstones_written: 8,
            failed_attempts: 2,
            error: Some("permission denied".to_owned()),
        }),
        notes: vec![format!("column `new` is not replicated {HOSTILE}")],
        changes: vec![StateChange {
            at_unix_seconds: 1_700_000_000,
            state: "streaming".to_owned(),
            reason: Some(HOSTILE.to_owned()),
        }],
        history: HistoryOverview {
            at_unix_seconds: vec![1_700_003_540, 1_700_003_560, 1_700_003_580],
            lag_seconds: vec![Some(0.1), None, Some(0.4)],
            rows_per_second: vec![None, Some(1000.0), Some(1234.5)],
            retained_wal_bytes: vec![Some(1 << 20), Some(2 << 20), Some(48 << 20)],
            unflushed_bytes: vec![0, 10, 123_456],
        },
    };
    Overview {
        version: "0.1.0".to_owned(),
        source: SourceServer::Process,
        instance: Some("host pid 7".to_owned()),
        started_unix_seconds: Some(1_699_990_000),
        now_unix_seconds: 1_700_003_600,
        healthy: true,
        reasons: vec![],
        services: BTreeMap::from([("runs".to_owned(), service)]),
    }
}
