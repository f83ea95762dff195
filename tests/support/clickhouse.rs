//! A throwaway ClickHouse: `scripts/clickhouse-front` with the Python of `WALHOUSE_PYTHON` (default
//! `python3`), or the server at `CLICKHOUSE_URL`.
//!
//! The database of the tables has a fixed name. So a server given by URL serves one test at a time,
//! must not have that database, and cannot be stopped or told to fail: tests that need this start
//! a front in any case.

use std::fs::{self, OpenOptions};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::http::{self, Answer};
use super::reaper;
use super::wait::{PATIENCE, until};

/// Where the tables live.
pub const DATABASE: &str = "trigger_dev";

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/clickhouse-front");
/// One statement of a test.
const QUERY_TIMEOUT: Duration = Duration::from_secs(120);

pub struct Clickhouse {
    at: SocketAddr,
    /// Credentials as headers.
    headers: String,
    url: String,
    front: Option<Front>,
    _token: Option<Token>,
}

struct Front {
    dir: PathBuf,
    process: Option<Child>,
}

impl Clickhouse {
    pub fn start() -> Clickhouse {
        match std::env::var("CLICKHOUSE_URL") {
            Ok(url) => Clickhouse::given(&url),
            Err(_) => Clickhouse::start_front(),
        }
    }

    pub fn start_front() -> Clickhouse {
        let mut clickhouse = Clickhouse {
            at: SocketAddr::from(([127, 0, 0, 1], 0)),
            headers: String::new(),
            url: String::new(),
            front: Some(Front { dir: reaper::new_dir("clickhouse"), process: None }),
            _token: None,
        };
        clickhouse.start_again();
        clickhouse
    }

    fn given(text: &str) -> Clickhouse {
        let token = Token::take();
        let url = url::Url::parse(text).expect("CLICKHOUSE_URL is a URL");
        assert_eq!(url.scheme(), "http", "CLICKHOUSE_URL: the tests speak plain HTTP");
        let host = url.host_str().expect("CLICKHOUSE_URL has a host");
        let port = url.port().unwrap_or(8123);
        let at = (host, port).to_socket_addrs().expect("CLICKHOUSE_URL resolves").next().unwrap();
        let decoded = |text| percent_encoding::percent_decode_str(text).decode_utf8().unwrap();
        let user = if url.username().is_empty() { "default" } else { url.username() };
        let headers = format!(
            "X-ClickHouse-User: {}\r\nX-ClickHouse-Key: {}\r\n",
            decoded(user),
            decoded(url.password().unwrap_or_default())
        );
        let clickhouse =
            Clickhouse { at, headers, url: text.to_owned(), front: None, _token: Some(token) };
        let found = clickhouse.value(&format!("EXISTS DATABASE {DATABASE}"));
        assert_eq!(found, "0", "CLICKHOUSE_URL: the tests would drop its database `{DATABASE}`");
        clickhouse
    }

    pub fn is_front(&self) -> bool {
        self.front.is_some()
    }

    /// On the same data and, once it had one, on the same port.
    pub fn start_again(&mut self) {
        let front = self.front.as_mut().expect("it is ours to start");
        assert!(front.process.is_none(), "it is stopped");
        let port_file = front.dir.join("port");
        let _ = fs::remove_file(&port_file);
        let python = std::env::var("WALHOUSE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let log = OpenOptions::new().create(true).append(true).open(front.dir.join("log")).unwrap();
        let process = Command::new(python)
            .arg(SCRIPT)
            .args(["--test-hooks", "--listen", &format!("127.0.0.1:{}", self.at.port())])
            .arg("--data")
            .arg(front.dir.join("data"))
            .arg("--port-file")
            .arg(&port_file)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("python starts: set CLICKHOUSE_URL, or WALHOUSE_PYTHON to one with chdb");
        reaper::end_with_us(process.id(), "KILL");
        let process = front.process.insert(process);
        let dir = &front.dir;
        let port = until("scripts/clickhouse-front listens", PATIENCE, || {
            let ended = process.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "scripts/clickhouse-front ended: {ended:?}\n{}",
                fs::read_to_string(dir.join("log")).unwrap_or_default()
            );
            fs::read_to_string(&port_file).ok()?.trim().parse().ok()
        });
        self.at.set_port(port);
        self.url = format!("http://127.0.0.1:{port}");
    }

    /// An orderly end: requests that run are answered first.
    pub fn stop(&mut self) {
        let mut process = self.take_process();
        reaper::signal(process.id(), "TERM");
        until("scripts/clickhouse-front ends", PATIENCE, || process.try_wait().unwrap());
    }

    pub fn kill(&mut self) {
        let mut process = self.take_process();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    fn take_process(&mut self) -> Child {
        let front = self.front.as_mut().expect("it is ours to stop");
        front.process.take().expect("it runs")
    }

    pub fn pid(&self) -> u32 {
        self.front.as_ref().and_then(|front| front.process.as_ref()).expect("it runs").id()
    }

    /// For `*_CLICKHOUSE_URL`.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    pub fn port(&self) -> u16 {
        self.at.port()
    }

    /// Nothing of ours is left.
    pub fn reset(&self) {
        if self.is_front() {
            self.clear_faults();
        }
        self.execute(&format!("DROP DATABASE IF EXISTS {DATABASE} SYNC"));
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

    /// A fault of the front, such as `action=error&code=241&count=3`; see its `--help`.
    #[track_caller]
    pub fn add_fault(&self, fault: &str) {
        self.hook("POST", &format!("/_test/fault?{fault}"));
    }

    #[track_caller]
    pub fn clear_faults(&self) {
        self.hook("POST", "/_test/fault?clear=1");
    }

    /// How often the active faults struck.
    #[track_caller]
    pub fn fault_hits(&self) -> u64 {
        let report: Value = serde_json::from_str(&self.hook("GET", "/_test/fault")).unwrap();
        let hits = report.as_array().unwrap().iter().map(|fault| fault["hits"].as_u64().unwrap());
        hits.sum()
    }

    #[track_caller]
    fn hook(&self, method: &str, path: &str) -> String {
        assert!(self.is_front(), "only a front has faults");
        let answer = http::request(self.at, method, path, "", b"", QUERY_TIMEOUT).unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.text()
    }
}

impl Drop for Clickhouse {
    fn drop(&mut self) {
        match &mut self.front {
            Some(front) => {
                if let Some(mut process) = front.process.take() {
                    let _ = process.kill();
                    let _ = process.wait();
                }
                let _ = fs::remove_dir_all(front.dir.join("data"));
            }
            None => {
                let _ = self.ask(&format!("DROP DATABASE IF EXISTS {DATABASE} SYNC"), &[]);
            }
        }
    }
}

/// Only its holder uses the server at `CLICKHOUSE_URL`.
struct Token;

static TOKEN_IS_TAKEN: Mutex<bool> = Mutex::new(false);
static TOKEN_CAME_BACK: Condvar = Condvar::new();

impl Token {
    fn take() -> Token {
        let taken = TOKEN_IS_TAKEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut taken = TOKEN_CAME_BACK
            .wait_while(taken, |taken| *taken)
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        *taken = true;
        Token
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        *TOKEN_IS_TAKEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = false;
        TOKEN_CAME_BACK.notify_one();
    }
}
