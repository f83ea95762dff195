//! What systemd is told by a process that it has started, heard on a socket like its own.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::support::postgres::Stop;
use crate::support::program::{Program, Settings};
use crate::support::reaper;
use crate::support::stage::{SERVICES, Stage};
use crate::support::wait::{PATIENCE, until};

/// systemd's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn listen() -> Manager {
        let path = reaper::new_dir("systemd").join("notify");
        let socket = UnixDatagram::bind(&path).expect("the path is free and short");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("it is not zero");
        Manager { socket, path: path.to_str().expect("it is text").to_owned() }
    }

    fn settings(&self, settings: Settings, watchdog: Duration) -> Settings {
        settings.with("NOTIFY_SOCKET", &self.path).with("WATCHDOG_USEC", watchdog.as_micros())
    }

    /// The next message that holds for `wanted`.
    #[track_caller]
    fn wait_for(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        until(format!("systemd is told {what}"), PATIENCE, || {
            let mut message = [0; 4096];
            let len = self.socket.recv(&mut message).ok()?;
            let text = String::from_utf8_lossy(message.get(..len)?).into_owned();
            wanted(&text).then_some(text)
        })
    }

    fn wait_for_line(&self, line: &str) {
        self.wait_for(line, |text| text.lines().any(|found| found == line));
    }

    /// Whether a sign of life comes within `patience`.
    fn hears_life(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut message = [0; 4096];
        while Instant::now() < until {
            if let Ok(len) = self.socket.recv(&mut message)
                && message[..len].starts_with(b"WATCHDOG=1")
            {
                return true;
            }
        }
        false
    }
}

#[test]
fn it_is_told_of_readiness_states_life_and_the_end() {
    const WATCHDOG: Duration = Duration::from_secs(2);
    let manager = Manager::listen();
    let mut stage = Stage::own();
    let mut program = Program::start(&manager.settings(stage.settings(), WATCHDOG));
    manager.wait_for_line("READY=1");
    manager.wait_for_line("STATUS=runs: streaming; sessions: streaming");
    program.wait_streaming(&SERVICES);
    for _ in 0..3 {
        assert!(manager.hears_life(WATCHDOG));
    }
    // Not a reason to be killed: nothing would be better for it.
    stage.postgres.stop(Stop::Fast);
    manager.wait_for("that both back off", |text| text.matches("backing_off").count() == 2);
    for _ in 0..3 {
        assert!(manager.hears_life(WATCHDOG));
    }
    stage.postgres.start_again();
    manager.wait_for_line("STATUS=runs: streaming; sessions: streaming");

    program.signal("STOP");
    while manager.hears_life(WATCHDOG / 2) {}
    assert!(!manager.hears_life(WATCHDOG), "a process that does not run gives no sign of life");
    program.signal("CONT");
    assert!(manager.hears_life(PATIENCE));

    program.signal("TERM");
    manager.wait_for_line("STOPPING=1");
    assert_eq!(program.wait_end(PATIENCE).code(), Some(0));
}

#[test]
fn a_command_takes_the_variables_of_the_units_file() {
    let file = reaper::new_dir("env_file").join("walhouse.env");
    let text = "# as a user writes it\nREPLICATION_HTTP_LISTEN=127.0.0.1:7001\n\
                RUN_REPLICATION_SLOT_NAME='of_the_file'\nREDIS_USERNAME=$x`y\n";
    std::fs::write(&file, text).expect("the folder is ours");
    let settings = Settings::default().with("REPLICATION_HTTP_LISTEN", "127.0.0.1:7002");
    let file = file.to_str().expect("it is text");
    let answer = Program::command(&settings, &["config", "--env-file", file]);
    let said = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(answer.status.success(), "{answer:?}");
    for line in [
        "REPLICATION_HTTP_LISTEN=127.0.0.1:7001  # environment",
        "RUN_REPLICATION_SLOT_NAME=of_the_file  # environment",
        "REDIS_USERNAME=$x`y  # environment",
    ] {
        assert!(said.lines().any(|found| found == line), "{line}\nin\n{said}");
    }

    let answer = Program::command(&settings, &["--env-file", "/nowhere/x", "config"]);
    assert_eq!(answer.status.code(), Some(64));
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert!(said.contains("read variables of /nowhere/x: No such file"), "{said}");
}
