//! The findings as lines for people and as JSON for programs.

use std::fmt::Write;

use serde_json::json;

use crate::config::ServiceName;
use crate::finding::{Finding, Level};

#[derive(Debug, Default)]
pub struct CheckReport {
    found: Vec<Told>,
}

/// Findings that several services share are reported once.
#[derive(Debug)]
struct Told {
    services: Vec<ServiceName>,
    finding: Finding,
}

impl CheckReport {
    /// `None` is of the process as a whole.
    pub fn add(&mut self, service: Option<&ServiceName>, mut finding: Finding) {
        if let (Some(service), Some(hint)) = (service, &mut finding.hint) {
            *hint = service.with_own_variables(hint);
        }
        let same = self.found.iter_mut().find(|told| told.finding == finding);
        match (same, service) {
            (Some(told), Some(service)) if !told.services.contains(service) => {
                told.services.push(service.clone());
            }
            (Some(_), _) => {}
            (None, service) => {
                self.found.push(Told { services: service.into_iter().cloned().collect(), finding });
            }
        }
    }

    fn count(&self, level: Level) -> usize {
        self.found.iter().filter(|told| told.finding.level == level).count()
    }

    pub fn has_problems(&self) -> bool {
        self.count(Level::Problem) != 0
    }

    /// A line each, and one for each hint.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for Told { services, finding } in &self.found {
            let level = finding.level.as_str();
            let names: Vec<&str> = services.iter().map(|name| name.as_str()).collect();
            let of = match names.is_empty() {
                true => String::new(),
                false => format!("{}: ", names.join(", ")),
            };
            let _ = writeln!(out, "{level:<8} {of}{}: {}", finding.about, line(&finding.text));
            if let Some(hint) = &finding.hint {
                let _ = writeln!(out, "         hint: {}", line(hint));
            }
        }
        let _ = writeln!(
            out,
            "{}, {}",
            counted(self.count(Level::Problem), "problem"),
            counted(self.count(Level::Warning), "warning")
        );
        out
    }

    pub fn json(&self) -> String {
        let list = self.found.iter().map(|Told { services, finding }| {
            let services: Vec<&str> = services.iter().map(|name| name.as_str()).collect();
            json!({
                "level": finding.level.as_str(),
                "services": services,
                "about": finding.about,
                "text": finding.text,
                "hint": finding.hint,
            })
        });
        let list: Vec<_> = list.collect();
        let document = json!({
            "problems": self.count(Level::Problem),
            "warnings": self.count(Level::Warning),
            "findings": list,
        });
        format!("{document:#}\n")
    }
}

/// Statements of several lines, and names with line breaks, stay on one.
fn line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join(" ").replace(|c: char| c.is_control(), " ")
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::config::{BuiltIn, SERVICES};

    fn report() -> CheckReport {
        let mut report = CheckReport::default();
        report.add(None, Finding::ok("configuration", "all set"));
        for service in &SERVICES.each_ref().map(BuiltIn::name)[..2] {
            report.add(Some(service), Finding::ok("wal_level", "logical"));
            report.add(
                Some(service),
                Finding::problem("slot", "it is\nphysical", "Set *_REPLICATION_SLOT_NAME."),
            );
        }
        report.add(
            ServiceName::find("runs").as_ref(),
            Finding::warning("clock", "late", "Run: x\n    y;"),
        );
        report
    }

    #[test]
    fn each_finding_is_a_line_and_what_is_common_is_told_once() {
        let expected = "\
ok       configuration: all set
ok       runs, sessions: wal_level: logical
problem  runs: slot: it is physical
         hint: Set RUN_REPLICATION_SLOT_NAME.
problem  sessions: slot: it is physical
         hint: Set SESSION_REPLICATION_SLOT_NAME.
warning  runs: clock: late
         hint: Run: x y;
2 problems, 1 warning
";
        assert_eq!(report().text(), expected);
        assert!(report().has_problems());
    }

    #[test]
    fn json_has_the_same() {
        let json: Value = serde_json::from_str(&report().json()).expect("it is JSON");
        assert_eq!((&json["problems"], &json["warnings"]), (&2.into(), &1.into()));
        let finding = &json["findings"][1];
        assert_eq!(finding["services"], json!(["runs", "sessions"]));
        assert_eq!((&finding["level"], &finding["hint"]), (&json!("ok"), &Value::Null));
    }
}
