//! A throwaway Postgres with `wal_level = logical` and the two source tables.
//!
//! `WALHOUSE_PG_BIN` is the folder of `initdb` and `postgres` (default: Debian's of version 15),
//! `WALHOUSE_PG_LIB` the folder of their libraries, if they do not find them.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::ops::Deref;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

pub use super::database::*;
use super::wait::{PATIENCE, until, until_true};
use super::{free_port, reaper};

pub const TABLES: &str = include_str!("../../scripts/lib/tables.sql");

pub struct Postgres {
    dir: PathBuf,
    port: u16,
    database: Database,
    settings: BTreeMap<String, String>,
    process: Option<Child>,
}

/// How a server is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Waits for clients to leave.
    Smart,
    /// Ends sessions, waits until walsenders have sent everything and heard that it arrived.
    Fast,
    /// No shutdown checkpoint: recovers at the next start.
    Immediate,
    /// SIGKILL to the postmaster.
    Kill,
}

impl Postgres {
    /// Running, with the source tables.
    pub fn start() -> Postgres {
        Postgres::start_with(&[])
    }

    pub fn start_with(settings: &[(&str, &str)]) -> Postgres {
        let dir = reaper::new_dir("postgres");
        let data = dir.join("data");
        fs::create_dir(&data).unwrap();
        give_to_server(&data);
        let initdb = tool("initdb")
            .args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8"])
            .args(["--locale=C", "--wal-segsize=1", "--pgdata"])
            .arg(&data)
            .output()
            .unwrap_or_else(|e| panic!("run initdb of {}: {e}; see WALHOUSE_PG_BIN", bin()));
        assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
        let defaults = [
            ("wal_level", "logical"),
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("shared_buffers", "64MB"),
            ("max_wal_size", "256MB"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            // Far from asking for a reply, which would be answered with a confirmation.
            ("wal_sender_timeout", "120s"),
            ("deadlock_timeout", "50ms"),
        ];
        let settings =
            defaults.iter().chain(settings).map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let port = free_port();
        let database = Database::at_port(port);
        let mut postgres = Postgres { dir, port, database, settings, process: None };
        postgres.start_again();
        postgres.create_tables();
        postgres
    }

    /// Over a copy of another server's data, which has no settings yet. Not started.
    pub(super) fn of_data(
        dir: PathBuf,
        port: u16,
        base: &BTreeMap<String, String>,
        own: &[(&str, &str)],
    ) -> Postgres {
        let mut settings = base.clone();
        settings.extend(own.iter().map(|(k, v)| (k.to_string(), v.to_string())));
        let database = Database::at_port(port);
        Postgres { dir, port, database, settings, process: None }
    }

    pub(super) fn settings(&self) -> &BTreeMap<String, String> {
        &self.settings
    }

    /// Drops whatever a test left: sessions, slots, publications, tables, and makes them again.
    pub fn reset(&self) {
        let mut client = self.client();
        client
            .batch_execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                     WHERE pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender')",
            )
            .unwrap();
        until_true("no slot is in use", PATIENCE, || {
            let active = "SELECT count(*) FROM pg_replication_slots WHERE active";
            self.value(active).as_deref() == Some("0")
        });
        client
            .batch_execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
            .unwrap();
        for [publication] in self.rows_of("SELECT quote_ident(pubname) FROM pg_publication") {
            client.batch_execute(&format!("DROP PUBLICATION {publication}")).unwrap();
        }
        client.batch_execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").unwrap();
        self.create_tables();
    }

    fn create_tables(&self) {
        self.execute(TABLES);
    }

    /// On the same data and the same port.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "it is stopped");
        self.write_settings();
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let process = tool("postgres")
            .arg("-D")
            .arg(self.data())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("postgres starts");
        reaper::end_with_us(process.id(), "QUIT");
        self.process = Some(process);
        until("Postgres accepts connections", PATIENCE, || {
            let process = self.process.as_mut().expect("it was just started");
            let ended = process.try_wait().unwrap();
            assert!(ended.is_none(), "postgres ended: {ended:?}\n{}", self.log());
            self.try_client()
        });
    }

    pub fn stop(&mut self, how: Stop) {
        let within = PATIENCE;
        self.begin_stop(how);
        self.wait_stopped(within);
    }

    /// Only sends the signal; [`Postgres::wait_stopped`] is the other half.
    pub fn begin_stop(&mut self, how: Stop) {
        let process = self.process.as_mut().expect("it runs");
        match how {
            Stop::Smart => reaper::signal(process.id(), "TERM"),
            Stop::Fast => reaper::signal(process.id(), "INT"),
            Stop::Immediate => reaper::signal(process.id(), "QUIT"),
            Stop::Kill => process.kill().unwrap(),
        }
    }

    #[track_caller]
    pub fn wait_stopped(&mut self, within: Duration) {
        let mut process = self.process.take().expect("it runs");
        until("Postgres has ended", within, || process.try_wait().unwrap());
        // The children of a killed postmaster end by themselves when they notice.
        let data = self.data();
        until_true("the last process of Postgres has ended", within, || !has_process_in(&data));
    }

    pub fn restart(&mut self, how: Stop) {
        self.stop(how);
        self.start_again();
    }

    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_none())
    }

    /// Takes effect with the next start; see [`Postgres::reload`].
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.insert(name.to_owned(), value.to_owned());
    }

    /// As [`Postgres::set`].
    pub fn unset(&mut self, name: &str) {
        self.settings.remove(name);
    }

    pub fn reload(&self) {
        self.write_settings();
        reaper::signal(self.process.as_ref().expect("it runs").id(), "HUP");
    }

    fn write_settings(&self) {
        let mut text = format!(
            "port = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n",
            self.port
        );
        for (name, value) in &self.settings {
            text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        let file = self.data().join("postgresql.auto.conf");
        fs::write(&file, text).unwrap();
        give_to_server(&file);
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// For `DATABASE_URL`.
    pub fn url(&self) -> String {
        self.url_through(self.port)
    }

    /// The same server behind a proxy.
    pub fn url_through(&self, port: u16) -> String {
        format!("postgresql://postgres@127.0.0.1:{port}/postgres")
    }
}

impl Deref for Postgres {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.database
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            reaper::signal(process.id(), "QUIT");
            let _ = process.wait();
        }
    }
}

fn bin() -> String {
    std::env::var("WALHOUSE_PG_BIN").unwrap_or_else(|_| "/usr/lib/postgresql/15/bin".to_owned())
}

/// A program of the server, as the user it may run as: Postgres refuses root.
fn tool(name: &str) -> Command {
    let mut command = Command::new(Path::new(&bin()).join(name));
    command.current_dir("/").env("LC_ALL", "C");
    if let Ok(lib) = std::env::var("WALHOUSE_PG_LIB") {
        command.env("LD_LIBRARY_PATH", lib);
    }
    if let Some((uid, gid)) = *SERVER_USER {
        command.uid(uid).gid(gid);
    }
    command
}

/// For root, another user.
static SERVER_USER: LazyLock<Option<(u32, u32)>> = LazyLock::new(|| {
    let id = |args: &[&str]| {
        let output = Command::new("id").args(args).output().expect("`id` is there");
        let text = String::from_utf8(output.stdout).expect("`id` prints a number");
        text.trim().parse::<u32>().ok()
    };
    if id(&["-u"]) != Some(0) {
        return None;
    }
    let of = |name: &str| Some((id(&["-u", name])?, id(&["-g", name])?));
    Some(of("postgres").or_else(|| of("nobody")).expect("there is a user who is not root"))
});

pub fn give_to_server(path: &Path) {
    if let Some((uid, gid)) = *SERVER_USER {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

fn has_process_in(dir: &Path) -> bool {
    let processes = fs::read_dir("/proc").expect("/proc is there");
    processes
        .flatten()
        .any(|process| fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == dir))
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").field("port", &self.port).finish_non_exhaustive()
    }
}
