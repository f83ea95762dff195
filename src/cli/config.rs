//! `walhouse config`: the configuration as it holds, and where each value is from.

use std::fmt::Write;

use serde_json::json;

use crate::config::effective::{Origin, Setting};

/// One line for each variable: its assignment, which a shell or an environment file reads back
/// unless something is masked, and its origin.
pub(super) fn text(settings: &[Setting]) -> String {
    let mut out = String::new();
    for Setting { name, value, origin } in settings {
        let assignment = match value {
            Some(value) => format!("{name}={value}"),
            None => format!("# {name} is unset"),
        };
        let _ = match (value, origin) {
            (None, _) => writeln!(out, "{assignment}"),
            (Some(_), Origin::Environment) => writeln!(out, "{assignment}  # environment"),
            (Some(_), Origin::Variable(other)) => writeln!(out, "{assignment}  # from {other}"),
            (Some(_), Origin::Default) => writeln!(out, "{assignment}  # default"),
        };
    }
    out
}

pub(super) fn json(settings: &[Setting]) -> String {
    let list: Vec<_> = settings
        .iter()
        .map(|Setting { name, value, origin }| {
            let origin = match origin {
                Origin::Environment => "environment",
                Origin::Variable(other) => other,
                Origin::Default => "default",
            };
            json!({ "name": name, "value": value, "origin": origin })
        })
        .collect();
    format!("{:#}\n", json!({ "variables": list }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::effective::settings;

    #[test]
    fn each_variable_is_a_line_with_its_origin() {
        let lookup = |name: &str| (name == "REDIS_HOST").then(|| "r".to_owned());
        let text = text(&settings(lookup));
        for line in [
            "REDIS_HOST=r  # environment",
            "RUN_REPLICATION_REDIS_HOST=r  # from REDIS_HOST",
            "REDIS_PORT=6379  # default",
            "# DATABASE_URL is unset",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}");
        }
    }

    #[test]
    fn json_has_the_same() {
        let json: serde_json::Value =
            serde_json::from_str(&json(&settings(|_| None))).expect("it is JSON");
        let list = json["variables"].as_array().expect("it is a list");
        let port = list.iter().find(|one| one["name"] == "REDIS_PORT").expect("it is listed");
        assert_eq!((&port["value"], &port["origin"]), (&json!("6379"), &json!("default")));
    }
}
