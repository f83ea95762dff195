//! Takes typed values out of a lookup, by the table of variables, and keeps every problem.
//!
//! A refused value is recorded and replaced by its preset, so that reading goes on to the next one.
//! A name that is not in the table, or is read as another kind than it has there, is a bug.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use super::problems::{Problem, Problems, shown, shown_url};
use super::variables::{self, Variable, VariableKind};
use super::{BuiltIn, SERVICES, clickhouse, postgres, redis};
use crate::clickhouse::params::Quorum;
use crate::secret::Secret;

pub(super) struct VariableReader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

/// A value and the variable that it came from, which a fallback makes another than was asked for.
struct Found {
    variable: String,
    value: String,
}

impl<'a> VariableReader<'a> {
    pub fn new(lookup: &'a dyn Fn(&str) -> Option<String>) -> VariableReader<'a> {
        VariableReader { lookup, problems: Vec::new(), warnings: Vec::new() }
    }

    /// The value, unless there was a problem. Two services may have the same problem: it is
    /// reported once.
    pub fn finish<T>(mut self, read: impl FnOnce(Vec<String>) -> Option<T>) -> Result<T, Problems> {
        dedup(&mut self.problems);
        dedup(&mut self.warnings);
        if !self.problems.is_empty() {
            return Err(Problems { list: self.problems, warnings: self.warnings });
        }
        Ok(read(self.warnings).expect("what is missing was reported"))
    }

    pub fn problem(&mut self, variable: impl Into<String>, text: impl Into<String>) {
        self.problems.push(Problem { variable: variable.into(), text: text.into() });
    }

    pub fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    pub fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    /// Set, if only to nothing.
    pub fn raw(&self, name: &str) -> Option<String> {
        (self.lookup)(name)
    }

    /// Set to something.
    pub fn is_set(&self, name: &str) -> bool {
        self.raw(name).is_some_and(|value| is_something(&value))
    }

    /// Neither it nor its fallback is set.
    pub fn is_unset(&self, name: &str) -> bool {
        let own = |_: &Variable, name: &str| self.raw(name).filter(|value| is_something(value));
        variables::resolve(name, own).2.is_none()
    }

    pub fn flag(&mut self, name: &str) -> bool {
        let read = |text: &str| match text.trim() {
            "1" | "true" => Some(true),
            "0" | "false" => Some(false),
            _ => None,
        };
        self.read(name, read).expect("a flag has a preset")
    }

    pub fn integer(&mut self, name: &str) -> u64 {
        self.optional_integer(name).expect("the number has a preset")
    }

    pub fn optional_integer(&mut self, name: &str) -> Option<u64> {
        let VariableKind::Integer { min, max } = entry(name).kind else {
            unreachable!("`{name}` is an integer");
        };
        self.read(name, |text| whole_number(text.trim()).filter(|n| min <= *n && *n <= max))
    }

    pub fn size(&mut self, name: &str) -> usize {
        usize::try_from(self.integer(name)).unwrap_or(usize::MAX)
    }

    pub fn narrow<T: TryFrom<u64>>(&mut self, name: &str) -> T {
        T::try_from(self.integer(name)).ok().expect("the table's bounds fit in the type")
    }

    pub fn millis(&mut self, name: &str) -> Duration {
        Duration::from_millis(self.integer(name))
    }

    /// One of the table's choices, or `None` if that is the preset.
    pub fn choice(&mut self, name: &str) -> Option<&'static str> {
        let VariableKind::Choice(choices) = entry(name).kind else {
            unreachable!("`{name}` is a choice");
        };
        self.read(name, |text| choices.iter().copied().find(|choice| *choice == text.trim()))
    }

    pub fn log_level(&mut self, name: &str) -> log::LevelFilter {
        match self.choice(name) {
            Some("error") => log::LevelFilter::Error,
            Some("warn") => log::LevelFilter::Warn,
            Some("debug") => log::LevelFilter::Debug,
            Some(_) | None => log::LevelFilter::Info,
        }
    }

    pub fn slot(&mut self, name: &str) -> String {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let read = |text: &str| {
            ((1..=63).contains(&text.len()) && text.bytes().all(fits)).then(|| text.to_string())
        };
        self.read(name, read).expect("a slot name has a preset")
    }

    pub fn publication(&mut self, name: &str) -> String {
        let read = |text: &str| {
            ((1..=63).contains(&text.len()) && !text.contains('\0')).then(|| text.to_string())
        };
        self.read(name, read).expect("a publication name has a preset")
    }

    pub fn text(&mut self, name: &str) -> Option<String> {
        self.read(name, |text| (!text.contains('\0')).then(|| text.to_string()))
    }

    pub fn secret(&mut self, name: &str) -> Option<Secret> {
        self.read(name, |text| (!text.contains('\0')).then(|| Secret::new(text)))
    }

    /// Unlike elsewhere, set but empty means something: off.
    pub fn address(&mut self, name: &str) -> Option<SocketAddr> {
        if self.raw(name).is_some_and(|value| value.trim().is_empty()) {
            return None;
        }
        self.read(name, |text| text.trim().parse().ok())
    }

    pub fn postgres_url(&mut self, name: &str) -> Option<postgres::PostgresParams> {
        self.checked(name, postgres::PostgresParams::parse)
    }

    /// The tables live in `database`, whatever the URL says.
    pub fn clickhouse_url(
        &mut self,
        name: &str,
        database: &str,
    ) -> Option<clickhouse::ClickHouseParams> {
        self.checked(name, |text| clickhouse::ClickHouseParams::parse(text, database))
    }

    pub fn quorum(&mut self, name: &str) -> Option<Quorum> {
        self.read(name, Quorum::parse)
    }

    pub fn redis_host(&mut self, name: &str) -> Option<String> {
        self.checked(name, |text| redis::Params::parse_host(text).map(|host| (host, vec![])))
    }

    /// `least <= most`, where nothing is wrong with either alone.
    pub fn check_order(&mut self, least: &str, most: &str) {
        let (floor, value) = (self.integer(least), self.integer(most));
        if value < floor && !self.is_refused(least) && !self.is_refused(most) {
            self.problem(most, format!("expected at least `{least}` ({floor}), got `{value}`"));
        }
    }

    pub fn is_refused(&self, name: &str) -> bool {
        self.problems.iter().any(|problem| problem.variable == name)
    }

    /// Warns of what an operator of trigger.dev may expect and will not get.
    pub fn note_unsupported(&mut self, services: &[&BuiltIn]) {
        let mut about = "";
        for variable in variables::all() {
            let VariableKind::Unsupported { harmless } = variable.kind else { continue };
            if variable.about != "Likewise." {
                about = variable.about;
            }
            for name in variable.names() {
                // A service that is off lacks nothing.
                let belongs = |service: &BuiltIn| service.name().owns(&name);
                let is_off = SERVICES.iter().any(belongs) && !services.iter().any(|s| belongs(s));
                let Some(value) = self.raw(&name).filter(|_| !is_off) else {
                    continue;
                };
                if !value.trim().is_empty() && !harmless.contains(&value.trim()) {
                    self.warn(format!("`{name}` has no effect: {about}"));
                }
            }
        }
    }

    fn read<T>(&mut self, name: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let Found { variable, value } = self.find(name)?;
        if let Some(value) = read(&value) {
            return Some(value);
        }
        let kind = entry(&variable).kind;
        let text = match kind {
            VariableKind::Secret => "expected text without NUL bytes".into(),
            _ => format!("expected {}, got `{}`", kind.accepted(), shown(&value)),
        };
        self.refuse(variable, text);
        preset(name).and_then(read)
    }

    fn checked<T, E: Display>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Result<(T, Vec<String>), E>,
    ) -> Option<T> {
        let Found { variable, value } = self.find(name)?;
        match parse(value.trim()) {
            Ok((parsed, warnings)) => {
                for warning in warnings {
                    self.warn(format!("`{variable}`: {warning}"));
                }
                Some(parsed)
            }
            Err(cause) => {
                let kind = entry(&variable).kind;
                let shown =
                    if kind == VariableKind::Host { shown(&value) } else { shown_url(&value) };
                let text = format!("expected {}, got `{shown}`: {cause}", kind.accepted());
                self.refuse(variable, text);
                None
            }
        }
    }

    /// A value may be read more than once; its problem is one.
    fn refuse(&mut self, variable: String, text: String) {
        if !self.is_refused(&variable) {
            self.problem(variable, text);
        }
    }

    /// The value that holds, and whose it is.
    fn find(&mut self, name: &str) -> Option<Found> {
        let (entry, variable, value) = variables::resolve(name, |_, name| {
            let value = self.raw(name).filter(|value| is_something(value))?;
            if value.contains(char::REPLACEMENT_CHARACTER) {
                self.refuse(name.into(), "expected text in UTF-8".into());
                return None;
            }
            Some(value)
        });
        let value = value.or_else(|| entry.preset_of(variable).map(str::to_owned))?;
        Some(Found { variable: variable.into(), value })
    }
}

/// An empty value counts as unset, as `FOO=` in an env file is meant.
fn is_something(value: &str) -> bool {
    !value.trim().is_empty()
}

fn entry(name: &str) -> &'static Variable {
    variables::find(name).expect("the variable is in the table")
}

/// The text that holds when nothing is set, at the end of all fallbacks.
fn preset(name: &str) -> Option<&'static str> {
    let (entry, name, _) = variables::resolve(name, |_, _| None);
    entry.preset_of(name)
}

/// `1000`, and as other readers of these variables have it, `1e3` and `1000.0`.
fn whole_number(text: &str) -> Option<u64> {
    // Above this, a float can no longer distinguish adjacent integers.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let number: f64 = text.parse().ok()?;
    let is_whole = number.fract() == 0.0 && (0.0..=EXACT_MAX).contains(&number);
    is_whole.then_some(number as u64)
}

fn dedup<T: PartialEq>(list: &mut Vec<T>) {
    let mut kept: Vec<T> = Vec::with_capacity(list.len());
    for item in list.drain(..) {
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    *list = kept;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_read_and_nonsense_is_not() {
        for (text, expected) in [
            ("0", Some(0)),
            ("+7", Some(7)),
            ("1e3", Some(1000)),
            ("12.0", Some(12)),
            ("18446744073709551615", Some(u64::MAX)),
            ("1.5", None),
            ("-1", None),
            ("0x10", None),
            ("1_000", None),
            ("inf", None),
            ("NaN", None),
            ("1e300", None),
            ("", None),
            ("10s", None),
        ] {
            assert_eq!(whole_number(text), expected, "{text}");
        }
    }

    #[test]
    fn every_preset_is_accepted_by_its_own_kind() {
        let nothing = |_: &str| None;
        for variable in variables::all() {
            for name in variable.names() {
                let mut reader = VariableReader::new(&nothing);
                match variable.kind {
                    VariableKind::Flag => drop(reader.flag(&name)),
                    VariableKind::Integer { .. } => drop(reader.optional_integer(&name)),
                    VariableKind::Choice(_) => drop(reader.choice(&name)),
                    VariableKind::Slot => drop(reader.slot(&name)),
                    VariableKind::Publication => drop(reader.publication(&name)),
                    VariableKind::Address => assert!(reader.address(&name).is_some()),
                    VariableKind::PostgresUrl => assert!(reader.postgres_url(&name).is_none()),
                    VariableKind::ClickhouseUrl => {
                        assert!(reader.clickhouse_url(&name, "d").is_none())
                    }
                    VariableKind::Quorum => assert!(reader.quorum(&name).is_none()),
                    VariableKind::Host => assert!(reader.redis_host(&name).is_none()),
                    VariableKind::Text => assert!(reader.text(&name).is_none()),
                    VariableKind::Secret => assert!(reader.secret(&name).is_none()),
                    VariableKind::Ignored | VariableKind::Unsupported { .. } => {}
                }
                assert_eq!(reader.problems, [], "{name}");
            }
        }
    }
}
