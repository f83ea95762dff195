//! What is measured. Names are paths: `drain` means all that begin so.

use std::time::Duration;

use crate::backlog::Shape;
use crate::contender::Contender;
use crate::service::Service::{self, Runs, Sessions};

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub shows: &'static str,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Drain(Drain),
    /// Rows at a rate, for so long; the load is scaled by its time.
    Steady {
        service: Service,
        rate: u32,
        lasts: Duration,
    },
    /// So many rows, one at a time, each after the silence of one interval and more.
    Quiet {
        service: Service,
        rows: u32,
    },
    /// So many rows that are there before the first start.
    Copy {
        service: Service,
        rows: u64,
    },
    /// A load, and in the middle of it ClickHouse away for so long.
    Stopped {
        service: Service,
        rate: u32,
        away: Duration,
    },
}

#[derive(Debug, Clone, Copy)]
pub struct Drain {
    pub services: &'static [Service],
    pub shape: Shape,
    pub changes: u64,
    /// The last is what the others are compared with, if it is `Recvlogical`.
    pub contenders: &'static [Contender],
}

const ALL: &[Contender] = &[Contender::Clickhouse, Contender::Discard, Contender::Recvlogical];
const WITHOUT_CLICKHOUSE: &[Contender] = &[Contender::Discard, Contender::Recvlogical];
const SLOW: &[Contender] = &[Contender::Slow(Duration::from_secs(2))];
const MINUTE: Duration = Duration::from_secs(60);

const fn drain(
    name: &'static str,
    shows: &'static str,
    services: &'static [Service],
    shape: Shape,
    changes: u64,
    contenders: &'static [Contender],
) -> Case {
    Case { name, shows, kind: Kind::Drain(Drain { services, shape, changes, contenders }) }
}

const fn steady(name: &'static str, service: Service, rate: u32) -> Case {
    let shows = "commit to visible at a fixed rate of rows per second, parts per minute";
    Case { name, shows, kind: Kind::Steady { service, rate, lasts: MINUTE } }
}

const fn copy(name: &'static str, service: Service, rows: u64) -> Case {
    let shows = "rows that are there at a first start, against COPY to /dev/null";
    Case { name, shows, kind: Kind::Copy { service, rows } }
}

const S: &[Service] = &[Sessions];
const R: &[Service] = &[Runs];
const BOTH: &[Service] = &[Runs, Sessions];

const ONE_ROW: &str = "inserts of 400 B, one to a transaction";
const LARGE: &str = "inserts of 400 B, 10,000 to a transaction";
const ONE: &str = "inserts of 400 B, all in one transaction";
const TOAST: &str = "updates that leave a value of 8 kB outside of the row alone";
const MIX: &str = "60 inserts, 30 updates, 10 deletes to a transaction";
const R_ONE_ROW: &str = "inserts with an output of 2 kB, one to a transaction";
const R_LARGE: &str = "inserts with an output of 2 kB, 10,000 to a transaction";
const R_ONE: &str = "inserts with an output of 2 kB, all in one transaction";

pub const CASES: &[Case] = &[
    drain("drain/sessions/one-row", ONE_ROW, S, Shape::Inserts(1), 300_000, ALL),
    drain("drain/sessions/10k-row", LARGE, S, Shape::Inserts(10_000), 1_000_000, ALL),
    drain("drain/sessions/1m-row", ONE, S, Shape::OneTransaction, 1_000_000, ALL),
    drain("drain/sessions/toast", TOAST, S, Shape::UnchangedToast, 50_000, ALL),
    drain("drain/sessions/mix", MIX, S, Shape::Mix, 300_000, ALL),
    drain("drain/runs/one-row", R_ONE_ROW, R, Shape::Inserts(1), 100_000, ALL),
    drain("drain/runs/10k-row", R_LARGE, R, Shape::Inserts(10_000), 200_000, ALL),
    drain("drain/runs/1m-row", R_ONE, R, Shape::OneTransaction, 1_000_000, ALL),
    drain("drain/runs/toast", TOAST, R, Shape::UnchangedToast, 30_000, ALL),
    drain("drain/runs/mix", MIX, R, Shape::Mix, 100_000, ALL),
    steady("steady/sessions/200", Sessions, 200),
    steady("steady/sessions/2000", Sessions, 2000),
    steady("steady/sessions/10000", Sessions, 10_000),
    steady("steady/runs/200", Runs, 200),
    steady("steady/runs/2000", Runs, 2000),
    steady("steady/runs/10000", Runs, 10_000),
    Case {
        name: "steady/sessions/quiet",
        shows: "commit to visible of a single row on a quiet database",
        kind: Kind::Quiet { service: Sessions, rows: 20 },
    },
    Case {
        name: "steady/runs/quiet",
        shows: "the same",
        kind: Kind::Quiet { service: Runs, rows: 20 },
    },
    copy("copy/sessions", Sessions, 1_000_000),
    copy("copy/runs", Runs, 200_000),
    drain("memory/10m-row", ONE, S, Shape::OneTransaction, 10_000_000, ALL),
    drain("memory/64mb", "runs with an output of 64 MB", R, Shape::HugeValues, 8, ALL),
    Case {
        name: "memory/stopped",
        shows: "ClickHouse away for a minute, 2,000 runs per second all the while",
        kind: Kind::Stopped { service: Runs, rate: 2000, away: MINUTE },
    },
    drain("memory/slow", "every insert takes 2 s", R, Shape::Inserts(100), 200_000, SLOW),
    drain("scale/1m", LARGE, S, Shape::Inserts(10_000), 1_000_000, WITHOUT_CLICKHOUSE),
    drain("scale/4m", LARGE, S, Shape::Inserts(10_000), 4_000_000, WITHOUT_CLICKHOUSE),
    drain("scale/16m", LARGE, S, Shape::Inserts(10_000), 16_000_000, WITHOUT_CLICKHOUSE),
    drain("scale/together", "both services", BOTH, Shape::Inserts(1000), 400_000, ALL),
];

/// A small set that ends within minutes, and what must hold in it on any machine: about twice what is
/// measured, so that only a regression that matters breaks it.
pub const CI: &[(Case, Guards)] = &[
    (
        drain("ci/sessions/one-row", ONE_ROW, S, Shape::Inserts(1), 60_000, ALL),
        Guards { wall_ratio: 2.0, cpu_ratio: 6.0, peak_mb: 60.0 },
    ),
    (
        drain("ci/sessions/10k-row", LARGE, S, Shape::Inserts(10_000), 200_000, WITHOUT_CLICKHOUSE),
        Guards { wall_ratio: 3.0, cpu_ratio: 7.0, peak_mb: 90.0 },
    ),
    (
        drain("ci/runs/10k-row", R_LARGE, R, Shape::Inserts(10_000), 40_000, WITHOUT_CLICKHOUSE),
        Guards { wall_ratio: 4.0, cpu_ratio: 12.0, peak_mb: 150.0 },
    ),
];

/// Of walhouse whose inserts are discarded, against `pg_recvlogical` in the same round.
#[derive(Debug, Clone, Copy)]
pub struct Guards {
    pub wall_ratio: f64,
    pub cpu_ratio: f64,
    pub peak_mb: f64,
}

/// The cases of these names, in the order of the list; all of them for none.
pub fn named(names: &[&str]) -> Result<Vec<Case>, String> {
    let is = |case: &Case, name: &str| {
        case.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    for name in names {
        if !CASES.iter().any(|case| is(case, name)) {
            return Err(format!("there is no case `{name}`, see scripts/bench list"));
        }
    }
    let wanted = |case: &&Case| names.is_empty() || names.iter().any(|name| is(case, name));
    Ok(CASES.iter().filter(wanted).copied().collect())
}
