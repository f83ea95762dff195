//! Ends every process and removes every file of the tests, however the test process ends.
//!
//! A shell of its own session holds the read end of a pipe whose write end only we hold: when we
//! are gone, killed or not, it hears so and tidies up. Set `WALHOUSE_KEEP` to keep the files.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};
use std::{env, fs, process};

const SCRIPT: &str = r#"
trap '' INT TERM HUP
lives() { # PID BEGAN: a zombie does not live.
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    stat=${stat##*) }
    set -- "$2" $stat
    [ "$2" != Z ] && [ "${21}" = "$1" ]
}
list=
while read -r pid began signal; do
    list="$list$pid $began $signal
"
done
each() { printf '%s' "$list" | while read -r pid began signal; do "$@"; done; }
end() { lives "$pid" "$began" && kill -s CONT "$pid" && kill -s "$signal" "$pid"; }
end_now() { lives "$pid" "$began" && kill -s KILL "$pid"; }
tell() { lives "$pid" "$began" && echo "$pid"; }
each end 2>/dev/null
tries=0
while [ -n "$(each tell)" ] && [ $tries -lt 50 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
each end_now 2>/dev/null
[ -n "$WALHOUSE_KEEP" ] || rm -rf -- "$1"
"#;

struct Reaper {
    base: PathBuf,
    /// Holds our end of the pipe.
    shell: Mutex<Child>,
}

static REAPER: LazyLock<Reaper> = LazyLock::new(|| {
    let base = env::temp_dir().join(format!("walhouse-tests-{}", process::id()));
    fs::create_dir(&base).expect("the folder of this test process is new");
    // Postgres' own user passes through.
    fs::set_permissions(&base, fs::Permissions::from_mode(0o755)).unwrap();
    let shell = Command::new("setsid")
        .args(["sh", "-c", SCRIPT, "reaper"])
        .arg(&base)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("setsid and sh are there");
    Reaper { base, shell: Mutex::new(shell) }
});

/// A new folder, removed when the test process has ended.
pub fn new_dir(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let dir = REAPER.base.join(format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// The process gets this signal when the test process has ended, and SIGKILL 5 s later.
pub fn end_with_us(pid: u32, signal: &str) {
    let Some(began) = began(pid) else { return };
    let mut shell = REAPER.shell.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let pipe = shell.stdin.as_mut().expect("it was asked for");
    pipe.write_all(format!("{pid} {began} {signal}\n").as_bytes()).expect("the reaper lives");
}

/// When the process began, in clock ticks: with its id it names one process for ever.
fn began(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The name in parentheses may hold blanks.
    Some(stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.to_owned())
}

/// Sends a signal such as `TERM` or `STOP`.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -s {name} {pid}");
}
