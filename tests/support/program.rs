//! The real binary with an environment of its own, its log in a file, its HTTP port found there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::wait::{PATIENCE, until, until_true};
use super::{http, reaper};

const HTTP_TIMEOUT: Duration = Duration::from_secs(10);

/// The environment of a program, and nothing else: it inherits none.
#[derive(Debug, Clone, Default)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    pub fn with(mut self, name: &str, value: impl ToString) -> Settings {
        self.0.insert(name.to_owned(), value.to_string());
        self
    }

    /// For both services, of `*_REPLICATION_...`.
    pub fn with_both(self, name: &str, value: impl ToString) -> Settings {
        let rest = name.strip_prefix('*').expect("the name begins with a star");
        let value = value.to_string();
        self.with(&format!("RUN{rest}"), &value).with(&format!("SESSION{rest}"), &value)
    }

    pub fn without(mut self, name: &str) -> Settings {
        self.0.remove(name);
        self
    }

    pub fn all(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter()
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

#[derive(Debug)]
pub struct Program {
    process: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Program {
    /// Started, not more; see [`Program::wait_streaming`].
    pub fn start(settings: &Settings) -> Program {
        Program::start_command(settings, &[])
    }

    /// With a stderr of the caller's, so that there is no log to look at.
    pub fn start_with_stderr(settings: &Settings, stderr: Stdio) -> Program {
        let log = reaper::new_dir("program").join("log");
        let mut command = binary(settings);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        Program::spawn(command, log)
    }

    /// Behind a command of the shell, such as `ulimit`.
    pub fn start_limited(settings: &Settings, limit: &str) -> Program {
        let log = reaper::new_dir("program").join("log");
        let mut command = Command::new("sh");
        command.env_clear().envs(&settings.0).args(["-c", &format!("{limit}; exec \"$0\"")]);
        command.arg(env!("CARGO_BIN_EXE_walhouse")).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log).unwrap());
        Program::spawn(command, log)
    }

    fn spawn(mut command: Command, log: PathBuf) -> Program {
        let process = command.spawn().expect("the binary was built with the tests");
        reaper::end_with_us(process.id(), "KILL");
        Program { process, log, ended: None }
    }

    /// Of another command.
    pub fn start_command(settings: &Settings, arguments: &[&str]) -> Program {
        let log = reaper::new_dir("program").join("log");
        let mut command = binary(settings);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log).unwrap());
        Program::spawn(command, log)
    }

    /// Another command of the binary, to its end.
    pub fn command(settings: &Settings, arguments: &[&str]) -> Output {
        binary(settings).args(arguments).stdin(Stdio::null()).output().expect("the binary runs")
    }

    /// One that goes on, with its stdout.
    pub fn command_going_on(settings: &Settings, arguments: &[&str]) -> Child {
        let mut command = binary(settings);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let child = command.spawn().expect("the binary runs");
        reaper::end_with_us(child.id(), "KILL");
        child
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn log_lines(&self, needle: &str) -> usize {
        self.log().lines().filter(|line| line.contains(needle)).count()
    }

    /// The first line with it.
    #[track_caller]
    pub fn wait_for_log(&mut self, needle: &str) -> String {
        self.wait_for_log_lines(needle, 1).swap_remove(0)
    }

    /// The lines with it, once there are that many.
    #[track_caller]
    pub fn wait_for_log_lines(&mut self, needle: &str, count: usize) -> Vec<String> {
        until(format!("the log has {count} x `{needle}`"), PATIENCE, || {
            let has_ended = self.has_ended();
            let log = self.log();
            let lines: Vec<String> =
                log.lines().filter(|line| line.contains(needle)).map(str::to_owned).collect();
            let enough = count <= lines.len();
            assert!(enough || !has_ended, "it ended, and its log has no `{needle}`");
            enough.then_some(lines)
        })
    }

    /// Of the metrics and health; it must not be switched off.
    #[track_caller]
    pub fn http(&mut self) -> SocketAddr {
        let line = self.wait_for_log("metrics and health on http://");
        line.rsplit_once("http://").expect("it has one").1.parse().expect("an address")
    }

    #[track_caller]
    fn get(&mut self, path: &str) -> Option<http::Answer> {
        let at = self.http();
        assert!(!self.has_ended(), "it ended: {:?}", self.ended);
        http::request(at, "GET", path, "", b"", HTTP_TIMEOUT).ok()
    }

    /// The document of `/status`.
    #[track_caller]
    pub fn status(&mut self) -> Value {
        let answer = self.get("/status").expect("/status answers");
        assert_eq!(answer.status, 200);
        serde_json::from_slice(&answer.body).expect("/status is JSON")
    }

    /// The code and document of `/healthz`.
    #[track_caller]
    pub fn health(&mut self) -> (u16, Value) {
        let answer = self.get("/healthz").expect("/healthz answers");
        (answer.status, serde_json::from_slice(&answer.body).expect("/healthz is JSON"))
    }

    #[track_caller]
    pub fn wait_healthy(&mut self) {
        until_true("/healthz says 200", PATIENCE, || self.health().0 == 200);
    }

    /// A service's state in the words of `/healthz`: `streaming`, `standing_by`, `failed`...
    #[track_caller]
    pub fn state(&mut self, service: &str) -> String {
        let (_, health) = self.health();
        health["services"][service]["state"].as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub fn wait_state(&mut self, service: &str, state: &str) {
        until_true(format!("service `{service}` is {state}"), PATIENCE, || {
            self.state(service) == state
        });
    }

    #[track_caller]
    pub fn wait_streaming(&mut self, services: &[&str]) {
        for service in services {
            self.wait_state(service, "streaming");
        }
    }

    /// A sample by its full name, such as `walhouse_transactions_total{service="runs"}`; `None`
    /// while there is none.
    #[track_caller]
    pub fn metric(&mut self, sample: &str) -> Option<f64> {
        let text = self.get("/metrics")?.text();
        let line = text
            .lines()
            .find(|line| line.strip_prefix(sample).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    #[track_caller]
    pub fn wait_metric(&mut self, sample: &str, holds: impl Fn(f64) -> bool) -> f64 {
        let mut last = None;
        until(format!("{sample} is as expected"), PATIENCE, || {
            last = self.metric(sample).or(last);
            last.filter(|value| holds(*value))
        })
    }

    /// Everything below the LSN is durable in ClickHouse.
    #[track_caller]
    pub fn wait_flushed(&mut self, service: &str, lsn: u64) {
        let sample = format!("walhouse_flushed_lsn{{service=\"{service}\"}}");
        let mut last = None;
        until(format!("`{service}` has flushed up to {lsn}"), PATIENCE, || {
            last = self.metric(&sample).or(last);
            last.filter(|flushed| lsn as f64 <= *flushed)
        });
    }

    pub fn signal(&self, name: &str) {
        reaper::signal(self.process.id(), name);
    }

    pub fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.process.try_wait().unwrap();
        }
        self.ended.is_some()
    }

    #[track_caller]
    pub fn wait_end(&mut self, within: Duration) -> ExitStatus {
        until_true("the program ends", within, || self.has_ended());
        self.ended.expect("it has ended")
    }

    /// Each waits for an operator; the process stays to say so.
    #[track_caller]
    pub fn wait_halted(&mut self, services: &[&str]) {
        for service in services {
            self.wait_for_log(&format!("{service}: stopped until an operator has decided"));
        }
        assert_eq!(self.health().0, 503);
    }

    /// SIGTERM, an orderly end, code 0.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal("TERM");
        let status = self.wait_end(PATIENCE);
        assert_eq!(status.code(), Some(0), "after SIGTERM: {status}");
    }

    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.ended = Some(self.process.wait().unwrap());
    }
}

fn binary(settings: &Settings) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walhouse"));
    command.env_clear().envs(&settings.0).env("RUST_BACKTRACE", "1");
    if let Some(coverage) = std::env::var_os("LLVM_PROFILE_FILE") {
        command.env("LLVM_PROFILE_FILE", coverage);
    }
    command
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            eprintln!("---- the end of {}\n{}\n----", self.log.display(), tail.join("\n"));
        }
    }
}
