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

/// A set-up that is sound but for what is planted in it.
pub struct Bench {
    pub stage: Stage,
    pub settings: Settings,
}

impl Bench {
    /// What `plant` does is found, and the hint that comes with it mends it.
    #[track_caller]
    pub fn case(&mut self, level: &str, words: &str, plant: impl FnOnce(&mut Bench)) {
        self.case_until(level, words, plant, Checked::expect_sound);
    }

    #[track_caller]
    pub fn case_until(
        &mut self,
        level: &str,
        words: &str,
        plant: impl FnOnce(&mut Bench),
        is_mended: impl FnOnce(&Checked),
    ) {
        println!("{level}: {words}");
        plant(self);
        let checked = check(&self.settings);
        let finding = checked.expect(level, words);
        assert_eq!(checked.code, i32::from(level == "problem"), "{checked:#?}");
        println!("    {}\n    {}", finding.text, finding.hint);
        self.apply(&finding.hint);
        is_mended(&check(&self.settings));
    }

    /// Does what a hint says, to the letter.
    #[track_caller]
    pub fn apply(&mut self, hint: &str) {
        if let Some(key) = hint.strip_prefix("Run: redis-cli DEL ") {
            let deleted: u32 =
                redis::cmd("DEL").arg(key).query(&mut self.stage.redis.client()).unwrap();
            assert_eq!(deleted, 1, "{hint}");
            return;
        }
        if let Some(rest) = hint.strip_prefix("Run: ACL ") {
            let mut command = redis::cmd("ACL");
            command.arg(rest.split(' ').collect::<Vec<_>>());
            return command.exec(&mut self.stage.redis.client()).unwrap();
        }
        if let Some((_, rest)) = hint.split_once("`walhouse adopt ") {
            let (service, _) = rest.split_once('`').expect("the command ends");
            let output = Program::command(&self.settings, &["adopt", service]);
            assert!(output.status.success(), "{output:?}");
            return;
        }
        let mut restarts = false;
        for statement in statements(hint) {
            let is_of_clickhouse = hint.starts_with("Run on ClickHouse: ")
                || statement.starts_with("CREATE TABLE IF NOT EXISTS `");
            if is_of_clickhouse {
                self.stage.clickhouse.execute(&statement);
                continue;
            }
            self.stage.postgres.execute(&statement);
            let set = statement.strip_prefix("ALTER SYSTEM SET ");
            if let Some((name, value)) = set.and_then(|set| set.split_once(" = ")) {
                let value = value.trim_matches('\'').replace("''", "'");
                // The file that the statement has written is rewritten with a restart.
                self.stage.postgres.set(name, &value);
                restarts |= hint.ends_with("; and restart Postgres.");
            }
        }
        if restarts {
            self.stage.postgres.restart(super::support::postgres::Stop::Fast);
        }
    }
}

/// The statements of a hint, one by one.
#[track_caller]
pub fn statements(hint: &str) -> Vec<String> {
    const BEGINNINGS: [&str; 5] = [
        "Run: ",
        "Run on ClickHouse: ",
        "Run as the owner of the table: ",
        " run: ",
        "To end it: ",
    ];
    const ENDS: [&str; 3] = ["; and restart", "; or", "; walhouse creates"];
    let begin = BEGINNINGS.iter().find_map(|text| Some(hint.find(text)? + text.len()));
    let mut sql = &hint[begin.unwrap_or_else(|| panic!("no statement in `{hint}`"))..];
    for end in ENDS {
        sql = sql.split_once(end).map_or(sql, |(sql, _)| sql);
    }
    let mut statements = vec![String::new()];
    let mut quote = None;
    for c in sql.chars() {
        match (c, quote) {
            (';', None) => {
                statements.push(String::new());
                continue;
            }
            ('"' | '\'' | '`', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            _ => {}
        }
        statements.last_mut().expect("it has one").push(c);
    }
    let trimmed = statements.iter().map(|sql| sql.trim().to_owned());
    trimmed.filter(|sql| !sql.is_empty()).collect()
}

/// The variables that a hint names with their values, as in `Set A=b`.
pub fn assignment(hint: &str) -> Option<(&str, &str)> {
    let (_, rest) = hint.split_once("et ")?;
    rest.split([' ', ',', ';'])
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name, value.trim_end_matches('.')))
        .find(|(name, _)| name.contains("REPLICATION"))
}
