//! When each row was first seen in ClickHouse.

use crate::clock::unix_time;
use crate::rows::CREATED_SINCE_MS;
use crate::service::Service;
use crate::stage::Stage;
use crate::support::warehouse::DATABASE;

pub struct Watch<'a> {
    stage: &'a Stage,
    service: Service,
    /// Which rows were seen, by number; the first is not used.
    seen: Vec<bool>,
    /// All up to this one were.
    unbroken: usize,
    /// Milliseconds from commit to visible, by number.
    latencies: Vec<f64>,
}

impl<'a> Watch<'a> {
    /// For this many rows at the most.
    pub fn new(stage: &'a Stage, service: Service, rows: u64) -> Watch<'a> {
        let rows = rows as usize + 1;
        Watch { stage, service, seen: vec![false; rows], unbroken: 0, latencies: vec![0.0; rows] }
    }

    /// What is new; the answer's arrival is when it was seen, so the time that asking took counts
    /// against walhouse.
    pub fn look(&mut self) -> Result<(), String> {
        // Rows are asked for by when they were created, which is what tells them apart.
        let answer = self.stage.ask(&format!(
            "SELECT toUnixTimestamp64Milli(created_at) - {CREATED_SINCE_MS},
                    toUnixTimestamp64Milli(updated_at)
             FROM {DATABASE}.{} WHERE fromUnixTimestamp64Milli({}) < created_at",
            self.service.targets()[0],
            CREATED_SINCE_MS + self.unbroken as u64
        ))?;
        let now_ms = unix_time().as_secs_f64() * 1e3;
        for line in answer.lines() {
            let row = line.split_once('\t');
            let row =
                row.and_then(|(n, at)| Some((n.parse::<usize>().ok()?, at.parse::<f64>().ok()?)));
            let (number, committed_ms) =
                row.ok_or_else(|| format!("a row of ClickHouse: {line}"))?;
            let seen = self.seen.get_mut(number).ok_or("ClickHouse has a row of nobody")?;
            if !*seen {
                *seen = true;
                self.latencies[number] = now_ms - committed_ms;
            }
        }
        while self.seen.get(self.unbroken + 1) == Some(&true) {
            self.unbroken += 1;
        }
        Ok(())
    }

    /// All rows up to this number were seen.
    pub fn unbroken(&self) -> u64 {
        self.unbroken as u64
    }

    /// Of the rows from `first` on that were seen.
    pub fn latencies(&self, first: u64) -> impl Iterator<Item = f64> {
        let all = self.latencies.iter().zip(&self.seen).skip(first as usize);
        all.filter(|(_, seen)| **seen).map(|(latency, _)| *latency)
    }
}

/// How many parts INSERTs have made in the table that has each row. Blocks are numbered by partition,
/// and merging makes no number.
pub fn parts_made(stage: &Stage, service: Service) -> Result<f64, String> {
    let answer = stage.ask(&format!(
        "SELECT sum(made) FROM (SELECT max(max_block_number) AS made FROM system.parts
         WHERE database = '{DATABASE}' AND table = '{}' GROUP BY partition)",
        service.targets()[0]
    ))?;
    answer.trim().parse().map_err(|_| format!("count parts: got {answer}"))
}
