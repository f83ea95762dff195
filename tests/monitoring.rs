//! What is in `scripts/monitoring`, and `/metrics` itself, read by Prometheus's own tool.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use walhouse::cli::manual::find;
use walhouse::metrics::{Metrics, ServerWal};
use walhouse::overview::RetainedWal;
use walhouse::wal::Lsn;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn file(name: &str) -> PathBuf {
    root().join("scripts/monitoring").join(name)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

/// What promtool says, which must be content.
#[track_caller]
fn promtool(arguments: &[&str], stdin: &str) -> String {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed: it comes with Debian's package prometheus");
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}: {text}");
    text
}

/// `/metrics` of a process in which everything was counted once.
fn metrics() -> String {
    let metrics = Metrics::new(&["runs"]);
    let runs = metrics.service("runs");
    runs.table("t").rows_inserted.inc();
    runs.adjusted_values("c").inc();
    runs.on_confirmed(Lsn(1));
    runs.on_server_wal(ServerWal {
        retained: RetainedWal { bytes: Some(1), left_bytes: Some(1), ..RetainedWal::default() },
        ..ServerWal::default()
    });
    metrics.encode()
}

/// The names of its samples.
fn names() -> BTreeSet<String> {
    let text = metrics();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line[..line.find(['{', ' ']).unwrap()].to_owned()).collect()
}

/// The words of an expression that are names of ours.
fn names_in(expression: &str) -> BTreeSet<String> {
    expression
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("walhouse_"))
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn assert_known(expression: &str, known: &BTreeSet<String>) {
    let unknown: Vec<String> = names_in(expression).difference(known).cloned().collect();
    assert!(unknown.is_empty(), "{unknown:?} of {expression} is no metric of walhouse");
}

#[test]
fn metrics_keep_to_the_conventions_of_prometheus() {
    // It complains on stdout, and still succeeds where it only advises.
    let said = promtool(&["check", "metrics"], &metrics());
    assert_eq!(said.trim(), "");
}

#[test]
fn alerts_are_rules_and_do_as_they_say() {
    promtool(
        &["check", "rules", "--lint=all", "--lint-fatal", "scripts/monitoring/alerts.yml"],
        "",
    );
    promtool(&["test", "rules", "scripts/monitoring/alerts_test.yml"], "");
}

/// The alerts of the file: name and the lines of each.
fn alerts() -> Vec<(String, String)> {
    let text = read(&file("alerts.yml"));
    let alerts: Vec<(String, String)> = (text.split("      - alert: ").skip(1))
        .map(|rule| (rule.lines().next().unwrap().to_owned(), rule.to_owned()))
        .collect();
    assert!(10 < alerts.len(), "alerts are found");
    alerts
}

#[test]
fn every_alert_is_tried_both_ways_and_explains_itself() {
    let tests = read(&file("alerts_test.yml"));
    let known = names();
    let page = find("monitoring").expect("it is a topic").text;
    for (name, rule) in alerts() {
        // The texts also name tables.
        assert_known(rule.split("annotations:").next().unwrap(), &known);
        let quiet = format!("alertname: {name}\n        exp_alerts: []");
        let fires = format!("alertname: {name}\n        exp_alerts:\n          - exp_labels:");
        assert!(tests.contains(&quiet), "{name} is not shown to stay quiet");
        assert!(tests.contains(&fires), "{name} is not shown to fire");
        for field in ["severity: ", "summary: ", "description: "] {
            assert!(rule.contains(field), "{name} has no {field}");
        }
        let runbook = rule.split("runbook: walhouse help ").nth(1).map(|rest| rest.trim());
        let topic = runbook.and_then(|rest| rest.lines().next());
        let topic = topic.unwrap_or_else(|| panic!("{name} names no topic of the manual"));
        assert!(find(topic).is_some(), "{name}: there is no topic {topic}");
        assert!(page.contains(&format!("`{name}`")), "monitoring.md does not list {name}");
    }
}

/// Goal: Grafana can load the dashboard, and every panel of it shows something. Method: what is
/// asked of Prometheus is put into rules, which promtool parses.
#[test]
fn the_dashboard_asks_for_what_there_is() {
    let dashboard: Value = serde_json::from_str(&read(&file("grafana-dashboard.json"))).unwrap();
    let known = names();
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    let mut asked = BTreeSet::new();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    let panels = dashboard["panels"].as_array().unwrap();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is there twice");
        let at = |field: &str| panel["gridPos"][field].as_u64().unwrap();
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(x < 24 && taken.insert((x, y)), "{title} lies on another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            assert_known(expression, &known);
            assert!(!names_in(expression).is_empty(), "{title}: {expression}");
            asked.extend(names_in(expression));
            let expression = expression
                .replace("$__rate_interval", "5m")
                .replace("$service", ".*")
                .replace("$instance", ".*");
            assert!(!expression.contains('$'), "{title}: an unknown variable in {expression}");
            let number = rules.lines().count();
            rules.push_str(&format!("      - record: r{number}\n        expr: |-\n"));
            rules.push_str(&format!("          {expression}\n"));
        }
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard-rules.yml");
    fs::write(&target, rules).unwrap();
    promtool(&["check", "rules", target.to_str().unwrap()], "");
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            assert_known(variable["definition"].as_str().unwrap(), &known);
        }
    }
    // Nothing that is measured is left out, but the times behind another metric.
    let base = |name: &str| {
        let ends = ["_bucket", "_sum", "_count"];
        ends.iter().fold(name.to_owned(), |n, end| n.trim_end_matches(end).to_owned())
    };
    let asked: BTreeSet<String> = asked.iter().map(|name| base(name)).collect();
    let known: BTreeSet<String> = known.iter().map(|name| base(name)).collect();
    let left: Vec<&String> = known.difference(&asked).collect();
    assert_eq!(left, ["walhouse_confirmed_timestamp_seconds"]);
}
