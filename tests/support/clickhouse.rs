//! A throwaway ClickHouse: `scripts/clickhouse-front` with the Python of `WALHOUSE_PYTHON` (default
//! `python3`), or the server at `CLICKHOUSE_URL`.
//!
//! The database of the tables has a fixed name. So a server given by URL serves one test at a time,
//! must not have that database, and cannot be stopped or told to fail: tests that need this start
//! a front in any case.

use std::fs::{self, OpenOptions};
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex};

use serde_json::Value;

use super::wait::{PATIENCE, until};
pub use super::warehouse::*;
use super::{http, reaper};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/clickhouse-front");

pub struct Clickhouse {
    warehouse: Warehouse,
    url: String,
    front: Option<Front>,
    _token: Option<Token>,
}

struct Front {
    dir: PathBuf,
    /// XML of the engine's configuration.
    config: Option<String>,
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
        Clickhouse::start_front_with(None)
    }

    /// With an XML configuration of the engine.
    pub fn start_front_with(config: Option<String>) -> Clickhouse {
        let mut clickhouse = Clickhouse {
            warehouse: Warehouse::at_port(0),
            url: String::new(),
            front: Some(Front { dir: reaper::new_dir("clickhouse"), config, process: None }),
            _token: None,
        };
        clickhouse.start_again();
        clickhouse
    }

    fn given(text: &str) -> Clickhouse {
        let token = Token::take();
        let warehouse = Warehouse::at_url(text);
        let clickhouse =
            Clickhouse { warehouse, url: text.to_owned(), front: None, _token: Some(token) };
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
        let mut command = Command::new(python);
        command.arg(SCRIPT);
        if let Some(config) = &front.config {
            let file = front.dir.join("config.xml");
            fs::write(&file, config).unwrap();
            command.arg("--config").arg(file);
        }
        let process = command
            .args(["--test-hooks", "--listen", &format!("127.0.0.1:{}", self.warehouse.at.port())])
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
        self.warehouse.at.set_port(port);
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

    /// The same with inserts compressed, which they are not by themselves on one machine.
    pub fn url_compressed(&self) -> String {
        let separator = if self.url.contains('?') { '&' } else { '?' };
        format!("{}{separator}compress=1", self.url)
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

    /// The user's settings profile from now on; see the front's `--help`.
    #[track_caller]
    pub fn set_profile(&self, profile: &str) {
        self.hook("POST", &format!("/_test/profile?{profile}"));
    }

    /// False: the engine itself takes no such profile, and the one before holds.
    #[track_caller]
    pub fn try_profile(&self, profile: &str) -> bool {
        let path = format!("/_test/profile?{profile}");
        let answer = http::request(self.at, "POST", &path, "", b"", QUERY_TIMEOUT).unwrap();
        answer.status == 200
    }

    #[track_caller]
    fn hook(&self, method: &str, path: &str) -> String {
        assert!(self.is_front(), "only a front has faults");
        let answer = http::request(self.at, method, path, "", b"", QUERY_TIMEOUT).unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.text()
    }
}

impl Deref for Clickhouse {
    type Target = Warehouse;

    fn deref(&self) -> &Warehouse {
        &self.warehouse
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
