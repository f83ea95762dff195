//! On what it was measured: figures say nothing without.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::stage::Stage;
use crate::support::database::detail;
use crate::walhouse::settings_of_the_caller;

pub fn about(stage: &Stage, runs: u32, scale: f64) -> Result<Value, String> {
    let mut client = stage.postgres.try_client().ok_or("connect to Postgres")?;
    let postgres = client.query_one("SHOW server_version", &[]);
    let postgres = postgres.map_err(|e| format!("ask Postgres: {}", detail(&e)))?;
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let memory = read("/proc/meminfo");
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let memory = memory.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    let settings: Vec<String> = settings_of_the_caller().map(|(n, v)| format!("{n}={v}")).collect();
    Ok(json!({
        "date": output(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])),
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory_gb": memory.unwrap_or(0) / (1 << 20),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        // Others who use the machine are in every figure.
        "load_at_start": read("/proc/loadavg").split(' ').next(),
        "postgres": postgres.get::<_, String>(0),
        "clickhouse": stage.ask("SELECT version()")?.trim(),
        "walhouse": output(Command::new(&stage.walhouse).arg("version")),
        "settings": settings,
        "runs": runs,
        "scale": scale,
    }))
}

/// For people, in a few lines.
pub fn text(about: &Value) -> String {
    let of = |name: &str| match &about[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    format!(
        "{}; {} cores of {}, {} GB, Linux {}, load {} when it began\n\
         {}; Postgres {}; ClickHouse {}\n\
         {} runs of each, interleaved; scale {}; settings {}",
        of("date"),
        of("cores"),
        of("cpu"),
        of("memory_gb"),
        of("kernel"),
        of("load_at_start"),
        of("walhouse"),
        of("postgres"),
        of("clickhouse"),
        of("runs"),
        of("scale"),
        of("settings"),
    )
}

fn read(file: &str) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

fn output(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}
