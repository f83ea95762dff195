//! `--NAME VALUE` pairs.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use crate::support::database::Database;
use crate::support::warehouse::Warehouse;

pub struct Arguments(BTreeMap<String, String>);

impl Arguments {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
        let mut pairs = BTreeMap::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or(format!("`{word}`: expected --NAME"))?;
            let value = words.next().ok_or(format!("{word}: a value is missing"))?;
            pairs.insert(name.to_owned(), value);
        }
        Ok(Arguments(pairs))
    }

    pub fn text(&self, name: &str) -> Result<&str, String> {
        self.0.get(name).map(String::as_str).ok_or(format!("--{name} is missing"))
    }

    pub fn number<T: FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        match self.0.get(name) {
            Some(text) => text.parse().map_err(|_| format!("--{name} `{text}` is not a number")),
            None => Ok(default),
        }
    }

    pub fn seconds(&self, name: &str, default: f64) -> Result<Duration, String> {
        let seconds = self.number(name, default)?;
        Duration::try_from_secs_f64(seconds).map_err(|e| format!("--{name} {seconds}: {e}"))
    }

    pub fn postgres(&self) -> Result<Database, String> {
        let text = self.text("postgres")?;
        Database::parse(text).ok_or(format!("--postgres `{text}` is not HOST:PORT,..."))
    }

    pub fn clickhouse(&self) -> Result<Warehouse, String> {
        self.text("clickhouse").map(Warehouse::at_url)
    }
}
