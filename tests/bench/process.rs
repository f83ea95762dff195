//! A process under measurement: what the operating system says it has used.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::clock::poll;
use crate::support::reaper;

/// `USER_HZ`: 100 on every machine that Rust and Postgres run on together.
const TICKS_PER_SECOND: u64 = 100;
/// Fine enough for runs of a second, and so rare that asking costs nobody anything.
pub const LOOK_EVERY: Duration = Duration::from_millis(10);

pub struct Process {
    child: Child,
    log: PathBuf,
    peak_bytes: u64,
    perf: Option<Child>,
    ended: Option<ExitStatus>,
}

impl Process {
    /// What it says goes to `log`. With `perf`, a profile of it goes to that file.
    pub fn start(
        command: &mut Command,
        log: &Path,
        perf: Option<&Path>,
    ) -> Result<Process, String> {
        let file = File::create(log).map_err(|e| format!("create {}: {e}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .map_err(|e| format!("start {}: {e}", command.get_program().display()))?;
        reaper::end_with_us(child.id(), "KILL");
        let perf = perf.map(|file| profile(child.id(), file)).transpose()?;
        Ok(Process { child, log: log.to_owned(), peak_bytes: 0, perf, ended: None })
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// User and system time of all its threads, also of those that have ended.
    pub fn cpu(&self) -> Duration {
        let stat = self.proc("stat");
        // The name in parentheses may hold blanks; behind it, from the state on.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks = |at| fields.split_whitespace().nth(at).and_then(|n| n.parse::<u64>().ok());
        let ticks = ticks(11).unwrap_or(0) + ticks(12).unwrap_or(0);
        Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
    }

    /// The most memory that was resident at any moment until now. One that has ended has none:
    /// then it is what was seen last.
    pub fn peak_bytes(&mut self) -> u64 {
        let status = self.proc("status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = peak.and_then(|peak| peak.split_whitespace().next()?.parse::<u64>().ok());
        self.peak_bytes = self.peak_bytes.max(kilobytes.unwrap_or(0) * 1024);
        self.peak_bytes
    }

    fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.child.id());
        fs::read_to_string(path).unwrap_or_default()
    }

    /// Ended, but not yet waited for, so that its times can still be read.
    pub fn is_over(&self) -> bool {
        let stat = self.proc("stat");
        stat.rsplit_once(')').is_none_or(|(_, fields)| fields.trim_start().starts_with('Z'))
    }

    pub fn signal(&self, name: &str) {
        if !self.is_over() {
            reaper::signal(self.child.id(), name);
        }
    }

    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus, String> {
        if poll(limit, LOOK_EVERY, || self.is_over().then_some(())).is_none() {
            return Err(format!("it did not end within {limit:?}"));
        }
        let status = self.child.wait().map_err(|e| format!("wait for its end: {e}"))?;
        self.ended = Some(status);
        if let Some(mut perf) = self.perf.take() {
            // It ends with whom it watches, and writes its file first.
            let _ = perf.wait();
        }
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(mut perf) = self.perf.take() {
            let _ = perf.wait();
        }
    }
}

fn profile(pid: u32, file: &Path) -> Result<Child, String> {
    let perf = Command::new("perf")
        .args(["record", "--quiet", "-F", "997", "--call-graph", "fp", "-o"])
        .arg(file)
        .args(["-p", &pid.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| format!("start perf: {e}"))?;
    reaper::end_with_us(perf.id(), "INT");
    Ok(perf)
}
