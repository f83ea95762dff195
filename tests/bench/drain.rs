//! How fast a backlog is drained: the contenders take turns, so that all of them meet the same
//! moments of the machine.

use std::time::Duration;

use crate::backlog::Backlog;
use crate::cases::Drain;
use crate::contender::{Contender, Sample};
use crate::figures::Figure;
use crate::report::Line;
use crate::stage::Stage;

const MB: f64 = 1024.0 * 1024.0;

/// A line for each contender.
pub fn run(
    stage: &Stage,
    name: &str,
    drain: &Drain,
    runs: u32,
    scale: f64,
) -> Result<Vec<Line>, String> {
    let changes = ((drain.changes as f64 * scale) as u64).max(1);
    let backlog = Backlog::write(stage, drain.services, drain.shape, changes)?;
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); drain.contenders.len()];
    for _ in 0..runs {
        for (contender, samples) in drain.contenders.iter().zip(&mut samples) {
            let sample = contender.drain(stage, &backlog);
            samples.push(sample.map_err(|e| format!("{}: {e}", contender.name()))?);
        }
    }
    let floor = drain.contenders.iter().position(|c| *c == Contender::Recvlogical);
    let floor = floor.map(|at| samples[at].clone());
    let lines = drain.contenders.iter().zip(&samples).map(|(contender, samples)| {
        line(name, contender.name(), backlog.changes, samples, floor.as_deref())
    });
    Ok(lines.collect())
}

/// `floor` is what each run is compared with.
pub fn line(
    name: &str,
    contender: &str,
    changes: u64,
    samples: &[Sample],
    floor: Option<&[Sample]>,
) -> Line {
    let of = |value: fn(&Sample) -> f64| Figure::of(samples.iter().map(value));
    // Each run against its neighbour of the same round.
    let against = |value: fn(&Sample) -> f64| {
        let pairs = samples.iter().zip(floor?);
        Figure::of(pairs.map(|(sample, floor)| value(sample) / value(floor)))
    };
    let wall = |sample: &Sample| sample.wall.as_secs_f64();
    let cpu = |sample: &Sample| sample.cpu.as_secs_f64();
    let per_change = |value: fn(&Sample) -> Option<Duration>| {
        let seconds = samples.iter().filter_map(value).map(|cpu| cpu.as_secs_f64());
        Figure::of(seconds).map(|cpu| cpu.scaled(1e6 / changes as f64))
    };
    Line {
        case: name.to_owned(),
        contender: contender.to_owned(),
        changes,
        wall_s: of(wall),
        wall_ratio: against(wall),
        cpu_us: per_change(|sample| Some(sample.cpu)),
        cpu_ratio: against(cpu),
        peak_mb: of(|sample| sample.peak_bytes as f64 / MB),
        walsender_us: per_change(|sample| Some(sample.walsender)),
        clickhouse_us: per_change(|sample| sample.clickhouse),
        ..Line::default()
    }
}
