//! What `scripts/bench` works with: measures walhouse against Postgres's own client, on servers that
//! the script has started.
//!
//! It measures from outside, as a user could: walhouse is the release binary with its defaults, its
//! costs are what the operating system says, and nothing in it knows of benchmarks. Every run is
//! checked for having lost nothing.

#[path = "../support"]
mod support {
    #![allow(dead_code, reason = "the tests use the rest of it")]

    pub mod database;
    pub mod http;
    pub mod reaper;
    pub mod wait;
    pub mod warehouse;
}

mod about;
#[path = "../drill/arguments.rs"]
#[allow(dead_code, reason = "the drills use the rest of it")]
mod arguments;
mod backlog;
mod cases;
mod check;
mod clock;
mod contender;
mod copy;
mod documents;
mod drain;
mod figures;
mod gate;
mod load;
mod process;
mod report;
mod rows;
mod service;
mod stage;
mod steady;
mod walhouse;
mod watch;

use std::process::ExitCode;

use arguments::Arguments;
use cases::{CI, Case, Guards, Kind};
use contender::Contender;
use report::Line;
use stage::Stage;

const USAGE: &str = "\
usage: bench list [--cases NAME,...]
       bench run|ci --postgres HOST:PORT --clickhouse URL --walhouse FILE --recvlogical FILE
                    --dir FOLDER [--clickhouse-pid N] [--cases NAME,...] [--runs N] [--scale F]
                    [--json FILE] [--perf FOLDER]

Both servers are written to and emptied. FOLDER takes the logs of what is measured.
";

const LEGEND: &str = "\
All of them share the cores. CPU and peak RSS are those of walhouse, or of pg_recvlogical; walsender
and ClickHouse are what the servers used beside that, in microseconds per change as well. Who throws
inserts away is not counted. Ratios are of neighbours in the same round; of a copy they are
against psql, and the wall time of walhouse is that of its process, from start to done.";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let result = Arguments::parse(words).and_then(|arguments| match command.as_str() {
        "list" => list(&arguments),
        "run" => run(&arguments),
        "ci" => ci(&arguments),
        _ => Err(USAGE.to_owned()),
    });
    result.unwrap_or_else(|problem| {
        eprintln!("error: {problem}");
        ExitCode::from(2)
    })
}

fn list(arguments: &Arguments) -> Result<ExitCode, String> {
    for Case { name, shows, kind } in wanted(arguments)? {
        let amount = match kind {
            Kind::Drain(drain) => format!("{} changes", drain.changes),
            Kind::Steady { rate, lasts, .. } => format!("{rate}/s, {} s", lasts.as_secs()),
            Kind::Quiet { rows, .. } => format!("{rows} rows"),
            Kind::Copy { rows, .. } => format!("{rows} rows"),
            Kind::Stopped { away, .. } => format!("{} s", away.as_secs()),
        };
        println!("{name:<24} {amount:>17}  {shows}");
    }
    Ok(ExitCode::SUCCESS)
}

fn wanted(arguments: &Arguments) -> Result<Vec<Case>, String> {
    let names = arguments.text("cases").map_or(vec![], |names| names.split(',').collect());
    cases::named(&names)
}

/// What all cases of one call have in common.
struct Bench {
    stage: Stage,
    runs: u32,
    scale: f64,
    lines: Vec<Line>,
}

impl Bench {
    fn begin(arguments: &Arguments, runs: u32) -> Result<Bench, String> {
        let stage = Stage::of(arguments)?;
        let (runs, scale) = (arguments.number("runs", runs)?, arguments.number("scale", 1.0)?);
        stage.check_clickhouse_is_new()?;
        rows::make(&stage.postgres)?;
        let about = about::about(&stage, runs, scale)?;
        println!("{}\n\n{}", about::text(&about), report::head());
        Ok(Bench { stage, runs, scale, lines: Vec::new() })
    }

    /// Prints its lines as well.
    fn case(&mut self, case: &Case) -> Result<Vec<Line>, String> {
        let Bench { stage, runs, scale, .. } = self;
        let (stage, name, runs, scale) = (&*stage, case.name, *runs, *scale);
        let lines = match case.kind {
            Kind::Drain(drain) => drain::run(stage, name, &drain, runs, scale),
            Kind::Steady { service, rate, lasts } => {
                steady::at_rate(stage, name, service, rate, lasts.mul_f64(scale), runs)
                    .map(|line| vec![line])
            }
            Kind::Quiet { service, rows } => {
                let rows = ((f64::from(rows) * scale) as u32).max(1);
                steady::quiet(stage, name, service, rows, runs).map(|line| vec![line])
            }
            Kind::Copy { service, rows } => {
                let rows = ((rows as f64 * scale) as u64).max(1);
                copy::run(stage, name, service, rows, runs)
            }
            Kind::Stopped { service, rate, away } => {
                steady::stopped(stage, name, service, rate, away.mul_f64(scale), runs)
                    .map(|line| vec![line])
            }
        }?;
        for line in &lines {
            println!("{}", line.text());
        }
        self.lines.extend(lines.iter().cloned());
        Ok(lines)
    }

    fn end(&self, arguments: &Arguments) -> Result<(), String> {
        let about = about::about(&self.stage, self.runs, self.scale)?;
        match arguments.text("json") {
            Ok(file) => report::write_json(file, &about, &self.lines),
            Err(_) => Ok(()),
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let cases = wanted(arguments)?;
    let mut bench = Bench::begin(arguments, 5)?;
    let mut failed = 0;
    for case in &cases {
        if let Err(problem) = bench.case(case) {
            println!("{}: FAILED: {problem}", case.name);
            failed += 1;
        }
    }
    bench.end(arguments)?;
    println!("\n{LEGEND}");
    Ok(ExitCode::from(u8::from(0 < failed)))
}

fn ci(arguments: &Arguments) -> Result<ExitCode, String> {
    let mut bench = Bench::begin(arguments, 3)?;
    let (mut passed, mut failed) = (0, 0);
    for (case, guards) in CI {
        let problems = match bench.case(case) {
            Ok(lines) => broken(&lines, guards),
            Err(problem) => vec![problem],
        };
        for problem in &problems {
            println!("{}: FAILED: {problem}", case.name);
        }
        if problems.is_empty() { passed += 1 } else { failed += 1 }
    }
    bench.end(arguments)?;
    println!("\n{passed} passed, {failed} failed");
    Ok(ExitCode::from(u8::from(0 < failed)))
}

fn broken(lines: &[Line], guards: &Guards) -> Vec<String> {
    let discard = lines.iter().find(|line| line.contender == Contender::Discard.name());
    let Some(line) = discard else { return vec!["it has no run to be guarded".to_owned()] };
    let checks = [
        ("wall time against pg_recvlogical", &line.wall_ratio, guards.wall_ratio),
        ("CPU time against pg_recvlogical", &line.cpu_ratio, guards.cpu_ratio),
        ("peak RSS in MB", &line.peak_mb, guards.peak_mb),
    ];
    let broken = checks.into_iter().filter_map(|(what, figure, most)| {
        let figure = figure.as_ref()?;
        (most < figure.median()).then(|| format!("{what}: {}, at most {most}", figure.text()))
    });
    broken.collect()
}
