//! The configuration as it holds, and where each value is from: what `walhouse config` prints.

use super::problems::{shown, shown_url};
use super::variables::{self, Preset, VariableKind};

/// The effective value of one variable, and its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub name: String,
    /// As it was written; without secrets. `None` is unset.
    pub value: Option<String>,
    pub origin: Origin,
}

/// Where a value is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The environment.
    Environment,
    /// The environment, under the name of the variable that this one falls back on.
    Variable(&'static str),
    Default,
}

/// The effective values in the environment of the process.
pub fn from_env() -> Vec<Setting> {
    settings(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
}

/// Every variable that has an effect, in the order of help and manual; values are not judged.
pub fn settings(lookup: impl Fn(&str) -> Option<String>) -> Vec<Setting> {
    let has_effect = |kind: &VariableKind| {
        !matches!(kind, VariableKind::Ignored | VariableKind::Unsupported { .. })
    };
    variables::all()
        .filter(|variable| has_effect(&variable.kind))
        .flat_map(|variable| variable.names())
        .map(|name| setting(&lookup, name))
        .collect()
}

fn setting(lookup: &impl Fn(&str) -> Option<String>, name: String) -> Setting {
    // Set to nothing is unset, except for an address, where it is off.
    let (variable, by, own) = variables::resolve(&name, |variable, name| {
        let means =
            |text: &String| !text.trim().is_empty() || variable.kind == VariableKind::Address;
        lookup(name).filter(means)
    });
    let (value, origin) = match (own, variable.preset) {
        (Some(text), _) if by == name => (Some(hidden(variable.kind, &text)), Origin::Environment),
        (Some(text), _) => (Some(hidden(variable.kind, &text)), Origin::Variable(variable.name)),
        (None, Preset::Rule(text)) => (Some(format!("({text})")), Origin::Default),
        (None, _) => (variable.preset_of(by).map(str::to_owned), Origin::Default),
    };
    Setting { value, origin, name }
}

fn hidden(kind: VariableKind, text: &str) -> String {
    match kind {
        VariableKind::Secret => "***".into(),
        VariableKind::PostgresUrl | VariableKind::ClickhouseUrl => shown_url(text),
        _ => shown(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(environment: &[(&str, &str)], name: &str) -> (Option<String>, Origin) {
        let lookup = |asked: &str| {
            environment.iter().find(|(set, _)| *set == asked).map(|(_, value)| value.to_string())
        };
        let list = settings(lookup);
        let one = list.into_iter().find(|setting| setting.name == name).expect("it is listed");
        (one.value, one.origin)
    }

    #[test]
    fn a_value_comes_from_its_name_its_fallback_or_the_default() {
        let some = |text: &str| Some(text.to_owned());
        let redis = [("REDIS_HOST", "r"), ("RUN_REPLICATION_REDIS_HOST", " ")];
        assert_eq!(found(&redis, "REDIS_HOST"), (some("r"), Origin::Environment));
        assert_eq!(
            found(&redis, "RUN_REPLICATION_REDIS_HOST"),
            (some("r"), Origin::Variable("REDIS_HOST"))
        );
        assert_eq!(found(&[], "REDIS_PORT"), (some("6379"), Origin::Default));
        assert_eq!(found(&[], "REDIS_HOST"), (None, Origin::Default));
        let (slot, _) = found(&[], "SESSION_REPLICATION_SLOT_NAME");
        assert_eq!(slot, some("sessions_to_clickhouse_v1"));
        let off = [("REPLICATION_HTTP_LISTEN", "")];
        assert_eq!(found(&off, "REPLICATION_HTTP_LISTEN"), (some(""), Origin::Environment));
    }

    #[test]
    fn each_service_has_its_own_default_and_a_fallback_is_one_variable() {
        for variable in variables::all() {
            for name in variable.names() {
                match variable.preset {
                    Preset::PerService(_) => {
                        let (value, origin) = found(&[], &name);
                        assert!(value.is_some() && origin == Origin::Default, "{name}");
                    }
                    Preset::Variable(other) => {
                        assert_eq!(variables::find(other).map(|v| v.name), Some(other));
                    }
                    Preset::Unset | Preset::Value(_) | Preset::Rule(_) => {}
                }
            }
        }
    }

    #[test]
    fn no_secret_is_shown() {
        let secret = "sEcReT";
        let url = format!("postgres://u:{secret}@h:5432/d?password={secret}");
        let keys = format!("host=h password={secret} user=u");
        let clickhouse = format!("http://u:{secret}@h:8123/?password={secret}&x=1");
        for database in [&url, &keys] {
            let lookup = |asked: &str| match variables::find(asked).map(|v| v.kind) {
                Some(VariableKind::PostgresUrl) => Some(database.clone()),
                Some(VariableKind::ClickhouseUrl) => Some(clickhouse.clone()),
                Some(VariableKind::Secret) => Some(secret.into()),
                _ => None,
            };
            for setting in settings(lookup) {
                assert!(!format!("{setting:?}").contains(secret), "{setting:?}");
            }
        }
    }
}
