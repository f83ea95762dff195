use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::program::{Program, Settings};
use super::support::stage::Stage;

/// All parties together, on a busy machine.
const TIME_MAX: Duration = Duration::from_secs(40);

#[derive(Debug)]
pub struct Checked {
    pub code: i32,
    pub findings: Vec<Finding>,
}

#[derive(Debug, Clone)]
pub struct Finding {
    pub level: String,
    pub text: String,
    pub hint: String,
}

/// What `walhouse check --json` says.
#[track_caller]
pub fn check(settings: &Settings) -> Checked {
    let started_at = Instant::now();
    let output = Program::command(settings, &["check", "--json"]);
    assert!(started_at.elapsed() < TIME_MAX, "it took {:?}", started_at.elapsed());
    read(&output)
}

#[track_caller]
fn read(output: &Output) -> Checked {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
    let document: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}{stderr}", String::from_utf8_lossy(&output.stdout)));
    let text =
        |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    let list = document["findings"].as_array().expect("it has findings");
    let findings = list.iter().map(|finding| Finding {
        level: text(finding, "level"),
        text: format!("{}: {}", text(finding, "about"), text(finding, "text")),
        hint: text(finding, "hint"),
    });
    Checked { code: output.status.code().expect("it exits"), findings: findings.collect() }
}

impl Checked {
    pub fn bad(&self) -> Vec<&Finding> {
        self.findings.iter().filter(|finding| finding.level != "ok").collect()
    }

    pub fn find(&self, level: &str, words: &str) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.level == level && finding.text.contains(words))
    }

    /// The one finding with these words; each problem has a hint.
    #[track_caller]
    pub fn expect(&self, level: &str, words: &str) -> Finding {
        let found = self.find(level, words);
        let found = found.unwrap_or_else(|| panic!("no {level} with `{words}`: {self:#?}"));
        assert!(!found.hint.is_empty() || level == "ok", "{found:?}");
        found.clone()
    }

    #[track_caller]
    pub fn expect_sound(&self) {
        let bad = self.bad();
        assert!(bad.is_empty() && self.code == 0, "exit code {}: {bad:#?}", self.code);
    }
}

/// Everything that a check must not leave behind.
pub fn traces(stage: &Stage) -> String {
    let slots = stage.postgres.rows("SELECT slot_name FROM pg_replication_slots ORDER BY 1");
    let publications = stage.postgres.rows("SELECT pubname FROM pg_publication ORDER BY 1");
    let locks = stage.postgres.rows("SELECT pid FROM pg_locks WHERE locktype = 'advisory'");
    let tables = stage.clickhouse.rows(
        "SELECT database, name FROM system.tables \
         WHERE database NOT IN ('system', 'INFORMATION_SCHEMA', 'information_schema') ORDER BY 1, 2",
    );
    let databases = stage.clickhouse.rows("SELECT name FROM system.databases ORDER BY 1");
    let keys = stage.redis.keys();
    format!("{slots:?} {publications:?} {locks:?} {tables:?} {databases:?} {keys:?}")
}
