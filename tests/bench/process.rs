//! A process under measurement: what the operating system says it has used.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::clock::poll;
use crate::support::reaper;

/// `USER_HZ`: 100 on every machine that Rust and Postgres run on together.
const TICKS_PER_SECOND: u64 = 100;
/// Fine enough for runs of a second, and costs nobody much.
pub const LOOK_EVERY: Duration = Duration::from_millis(10);

pub struct Process {
    child: Child,
    /// The child's, or of what runs under the profiler that the child is.
    pid: u32,
    log: PathBuf,
    peak_bytes: u64,
    ended: Option<ExitStatus>,
}

impl Process {
    /// What it says goes to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Process, String> {
        let file = File::create(log).map_err(|e| format!("create {}: {e}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .map_err(|e| format!("start {}: {e}", command.get_program().display()))?;
        let pid = child.id();
        reaper::end_with_us(pid, "KILL");
        Ok(Process { child, pid, log: log.to_owned(), peak_bytes: 0, ended: None })
    }

    /// The same for a command of [`profiler`]: what is measured is the program that it runs.
    pub fn start_profiled(command: &mut Command, log: &Path) -> Result<Process, String> {
        let mut process = Process::start(command, log)?;
        let children = format!("/proc/{0}/task/{0}/children", process.pid);
        let child = poll(Duration::from_secs(10), LOOK_EVERY, || {
            fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok()
        });
        process.pid = child.ok_or("perf starts nothing")?;
        reaper::end_with_us(process.pid, "KILL");
        Ok(process)
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn cpu(&self) -> Duration {
        cpu_of(self.pid)
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
        let path = format!("/proc/{}/{file}", self.pid);
        fs::read_to_string(path).unwrap_or_default()
    }

    /// Ended, but not yet waited for, so that its times can still be read.
    pub fn is_over(&self) -> bool {
        let stat = self.proc("stat");
        stat.rsplit_once(')').is_none_or(|(_, fields)| fields.trim_start().starts_with('Z'))
    }

    pub fn signal(&self, name: &str) {
        if !self.is_over() {
            reaper::signal(self.pid, name);
        }
    }

    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus, String> {
        if poll(limit, LOOK_EVERY, || self.is_over().then_some(())).is_none() {
            return Err(format!("it did not end within {limit:?}"));
        }
        let status = self.child.wait().map_err(|e| format!("wait for its end: {e}"))?;
        self.ended = Some(status);
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// User and system time of all threads of a process, also of those that have ended; zero once it is
/// gone.
pub fn cpu_of(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold blanks; behind it, from the state on.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = |at| fields.split_whitespace().nth(at).and_then(|n| n.parse::<u64>().ok());
    let ticks = ticks(11).unwrap_or(0) + ticks(12).unwrap_or(0);
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

/// Runs a program, to be added as arguments, and writes a profile of it.
pub fn profiler(file: &Path) -> Command {
    let mut command = Command::new("perf");
    command.args(["record", "--quiet", "-F", "997", "--call-graph", "fp", "-o"]);
    command.arg(file).arg("--");
    command
}
