//! A throwaway Postgres that the statements are run on, streamed from by the program's own port.
//!
//! `WALHOUSE_PG_BIN` is the folder of `initdb` and `pg_ctl` (default: Debian's of version 15),
//! `WALHOUSE_PG_LIB` the folder of their libraries, if they do not find them.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use walhouse::postgres::params::{Host, PostgresParams, SslMode, TargetSession};
use walhouse::postgres::sql::OUTPUT_SETTINGS;
use walhouse::postgres::startup;
use walhouse::postgres::{Frames, ReadOutcome, StartupOptions, Stream};
use walhouse::wal::Lsn;
use walhouse::wal::copy_both::FromServer;

use super::recording::{Format, Identity, Recording};

const TABLES: &str = include_str!("../../scripts/lib/tables.sql");
const STATEMENTS: &str = include_str!("../data/pgoutput/statements.sql");
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Server {
    dir: PathBuf,
    port: u16,
}

/// A tool of Postgres, which refuses to run as root.
fn tool(name: &str) -> Command {
    let dir = std::env::var("WALHOUSE_PG_BIN")
        .unwrap_or_else(|_| "/usr/lib/postgresql/15/bin".to_owned());
    let mut command = Command::new(Path::new(&dir).join(name));
    command.current_dir("/").env("LC_ALL", "C");
    if let Ok(lib) = std::env::var("WALHOUSE_PG_LIB") {
        command.env("LD_LIBRARY_PATH", lib);
    }
    if id(&["-u"]) == 0 {
        command.uid(id(&["-u", "postgres"])).gid(id(&["-g", "postgres"]));
    }
    command
}

fn id(arguments: &[&str]) -> u32 {
    let output = Command::new("id").args(arguments).output().expect("run id");
    String::from_utf8(output.stdout).unwrap().trim().parse().expect("user `postgres` exists")
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("run {command:?}: {e}"));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
}

impl Server {
    pub fn start() -> Server {
        let dir = std::env::temp_dir().join(format!("walhouse-codecs-{}", std::process::id()));
        let data = dir.join("data");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(&data).unwrap();
        for path in [&dir, &data] {
            give_to_server(path);
        }
        run(tool("initdb")
            .args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8"])
            .args(["--locale=C", "--wal-segsize=1", "--pgdata"])
            .arg(&data));
        let hold = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server { dir, port: hold.local_addr().unwrap().port() };
        // Autovacuum would write transactions of its own in between, which Postgres 14 sends.
        let settings = format!(
            "port = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n\
             wal_level = logical\nfsync = off\nautovacuum = off\n",
            server.port
        );
        fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
        drop(hold);
        // It waits until the server accepts connections.
        run(tool("pg_ctl")
            .args(["-w", "-s", "-t", "30", "-l"])
            .arg(server.dir.join("log"))
            .arg("-D")
            .arg(&data)
            .arg("start"));
        server
    }

    fn client(&self, database: &str) -> postgres::Client {
        postgres::Config::new()
            .host("127.0.0.1")
            .port(self.port)
            .user("postgres")
            .dbname(database)
            .connect_timeout(PATIENCE)
            .connect(postgres::NoTls)
            .unwrap()
    }

    /// Runs the statements in a database of their own, and streams them once in each format.
    pub fn record(&self, identity: Identity) -> [Recording; 2] {
        let database = format!("{identity:?}").to_lowercase();
        self.client("postgres").batch_execute(&format!("CREATE DATABASE \"{database}\"")).unwrap();
        let mut client = self.client(&database);
        client.batch_execute(TABLES).unwrap();
        if identity == Identity::Full {
            for table in ["TaskRun", "Session"] {
                client
                    .batch_execute(&format!("ALTER TABLE \"{table}\" REPLICA IDENTITY FULL"))
                    .unwrap();
            }
        }
        client
            .batch_execute("CREATE PUBLICATION walhouse FOR TABLE \"TaskRun\", \"Session\"")
            .unwrap();
        let formats = [Format::Binary, Format::Text];
        let slot = |format: Format| format!("{database}_{format:?}").to_lowercase();
        for format in formats {
            let create = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')";
            client.execute(create, &[&slot(format)]).unwrap();
        }
        for statements in STATEMENTS.split("\n\n") {
            client.batch_execute(statements).unwrap_or_else(|e| panic!("{e}: {statements}"));
        }
        let row = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).unwrap();
        let end: Lsn = row.get::<_, &str>(0).parse().unwrap();
        formats.map(|format| self.stream(&database, &slot(format), identity, format, end))
    }

    /// Everything up to the keepalive which says that all before `end` was sent.
    fn stream(
        &self,
        database: &str,
        slot: &str,
        identity: Identity,
        format: Format,
        end: Lsn,
    ) -> Recording {
        let deadline = Instant::now() + PATIENCE;
        let params = PostgresParams {
            hosts: vec![Host::new("127.0.0.1", self.port)],
            user: "postgres".into(),
            password: None,
            database: database.into(),
            ssl_mode: SslMode::Disable,
            ssl_root_cert: None,
            ssl_cert: None,
            ssl_key: None,
            connect_timeout: PATIENCE,
            target: TargetSession::Any,
            options: None,
            halt: walhouse::halt::Halt::default(),
        };
        let options = StartupOptions {
            application_name: "walhouse-codecs".into(),
            replication: true,
            options: OUTPUT_SETTINGS
                .iter()
                .chain(&[("client_encoding", "UTF8")])
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            receive_timeout: PATIENCE,
        };
        let connection = startup::connect(&params, &options, deadline).unwrap();
        let version = connection.server_version_num().expect("a server tells its version") / 10_000;
        let binary = format == Format::Binary;
        let mut stream = Stream::start(connection, slot, "walhouse", binary).unwrap();
        let mut bytes = Vec::new();
        let is_last = |data: &[u8]| {
            matches!(FromServer::parse(data), Ok(FromServer::PrimaryKeepalive { wal_end, .. })
                if end <= wal_end)
        };
        loop {
            let now = Instant::now();
            assert!(now < deadline, "waited in vain for the end of the stream at {end}");
            match stream.read(deadline - now).unwrap() {
                ReadOutcome::Frames(frames) => {
                    let is_end = frames.messages().any(is_last);
                    bytes.extend(frames.bytes());
                    if is_end {
                        break;
                    }
                }
                ReadOutcome::Partial | ReadOutcome::Nothing => {}
                ReadOutcome::Ended => panic!("the stream ended before {end}"),
            }
        }
        stream.finish(deadline).unwrap();
        let name = Recording::name_of(version, identity, format);
        Recording { name, frames: Frames::from_bytes(bytes) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stop = tool("pg_ctl")
            .args(["-w", "-s", "-t", "30", "-m", "immediate", "-D"])
            .arg(self.dir.join("data"))
            .arg("stop")
            .status();
        if stop.is_ok_and(|status| status.success()) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn give_to_server(path: &Path) {
    if id(&["-u"]) == 0 {
        chown(path, Some(id(&["-u", "postgres"])), Some(id(&["-g", "postgres"]))).unwrap();
    }
}
