//! ClickHouse as its clients see it: a server at a URL, asked over HTTP.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use serde_json::Value;

use super::http::{self, Answer};

/// Where the tables live.
pub const DATABASE: &str = "trigger_dev";

/// One statement of a test.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug, Clone)]
pub struct Warehouse {
    pub at: SocketAddr,
    /// Credentials as headers.
    headers: String,
}

impl Warehouse {
    pub fn at_port(port: u16) -> Warehouse {
        Warehouse { at: SocketAddr::from(([127, 0, 0, 1], port)), headers: String::new() }
    }

    #[track_caller]
    pub fn at_url(text: &str) -> Warehouse {
        let url = url::Url::parse(text).expect("the URL of ClickHouse is a URL");
        assert_eq!(url.scheme(), "http", "{text}: the tests speak plain HTTP");
        let host = url.host_str().expect("the URL of ClickHouse has a host");
        let port = url.port().unwrap_or(8123);
        let at = (host, port).to_socket_addrs().expect("its host resolves").next().unwrap();
        let decoded = |text| percent_encoding::percent_decode_str(text).decode_utf8().unwrap();
        let user = if url.username().is_empty() { "default" } else { url.username() };
        let headers = format!(
            "X-ClickHouse-User: {}\r\nX-ClickHouse-Key: {}\r\n",
            decoded(user),
            decoded(url.password().unwrap_or_default())
        );
        Warehouse { at, headers }
    }

    /// What the server answers, whatever it is.
    pub fn ask(&self, sql: &str, settings: &[(&str, &str)]) -> std::io::Result<Answer> {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(settings);
        let path = format!("/?{}", query.finish());
        http::request(self.at, "POST", &path, &self.headers, sql.as_bytes(), QUERY_TIMEOUT)
    }

    #[track_caller]
    fn answer(&self, sql: &str) -> String {
        // A URL's server may be of a version that still has to be told.
        let answer = self.ask(sql, &[]).unwrap_or_else(|e| panic!("{sql}: {e}"));
        assert_eq!(answer.status, 200, "{sql}: {}", answer.text());
        String::from_utf8(answer.body).expect("the answer is UTF-8")
    }

    #[track_caller]
    pub fn execute(&self, sql: &str) {
        self.answer(sql);
    }

    /// Each row as its values.
    #[track_caller]
    pub fn rows(&self, sql: &str) -> Vec<Vec<Value>> {
        let text = self.answer(&format!("{sql} FORMAT JSONCompactEachRow"));
        let parse = |line: &str| serde_json::from_str(line).expect("the server writes JSON");
        text.lines().map(parse).collect()
    }

    /// The first column of the first row as text; a null is an empty string.
    #[track_caller]
    pub fn value(&self, sql: &str) -> String {
        match self.rows(sql).into_iter().next().and_then(|row| row.into_iter().next()) {
            Some(Value::String(text)) => text,
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        }
    }

    #[track_caller]
    pub fn count(&self, table: &str, condition: &str) -> u64 {
        self.value(&format!("SELECT count() FROM {DATABASE}.{table} FINAL WHERE {condition}"))
            .parse()
            .expect("a count is a number")
    }

    #[track_caller]
    pub fn has_table(&self, table: &str) -> bool {
        self.value(&format!("EXISTS TABLE {DATABASE}.{table}")) == "1"
    }
}
