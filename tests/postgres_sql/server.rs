//! Throwaway Postgres servers, which end with the test process however that ends.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use walhouse::postgres::sql::{Sql, ident};

use super::{params, run, value};

pub struct Server {
    pub port: u16,
    pub folder: PathBuf,
    keeper: Child,
}

/// The one that most tests share, each with a database of its own.
pub fn shared() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(|| Server::start(&["wal_level=logical", "max_replication_slots=50"]))
}

/// A database of its own on the shared server, with a name that needs quoting.
pub fn database() -> (walhouse::postgres::PostgresParams, Sql) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("d\"b' ü {}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut sql = super::connect(&params(shared().port, "postgres"));
    run(&mut sql, &format!("CREATE DATABASE {}", ident(&name)));
    let params = params(shared().port, &name);
    let sql = super::connect(&params);
    (params, sql)
}

pub fn bin() -> PathBuf {
    let folder = std::env::var_os("WALHOUSE_PG_BIN").unwrap_or("/usr/lib/postgresql/15/bin".into());
    PathBuf::from(folder)
}

/// Client programs, of whatever version there is.
pub fn client(program: &str) -> Command {
    as_postgres(Command::new(Path::new("/usr/lib/postgresql/15/bin").join(program)))
}

/// Postgres does not run as root.
fn as_postgres(mut command: Command) -> Command {
    if let Some((uid, gid)) = postgres_ids() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/");
    command
}

fn give_to_postgres(path: &Path) {
    if let Some((uid, gid)) = postgres_ids() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

fn postgres_ids() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| -> u32 {
        let output = Command::new("id").args(arguments).output().expect("run id");
        String::from_utf8(output.stdout).unwrap().trim().parse().expect("user postgres exists")
    };
    (id(&["-u"]) == 0).then(|| (id(&["-u", "postgres"]), id(&["-g", "postgres"])))
}

impl Server {
    pub fn start(settings: &[&str]) -> Server {
        let (folder, port) = Server::make_room();
        Server::init(&folder);
        Server::run(folder, port, settings)
    }

    fn init(folder: &Path) {
        let data = folder.join("data");
        let output = as_postgres(Command::new(bin().join("initdb")))
            .args(["--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8"])
            .args(["--locale=C", "--pgdata"])
            .arg(&data)
            .output()
            .expect("run initdb");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // The first line that fits counts.
        let hba = data.join("pg_hba.conf");
        let lines = fs::read_to_string(&hba).unwrap();
        fs::write(&hba, format!("host all with_password all scram-sha-256\n{lines}")).unwrap();
    }

    /// One that offers TLS, with a certificate that it has signed itself for `localhost`.
    pub fn start_with_tls() -> Server {
        let (folder, port) = Server::make_room();
        let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
        let output = as_postgres(Command::new("openssl"))
            .args(["req", "-x509", "-newkey", "rsa:2048", "-noenc", "-subj", "/CN=localhost"])
            .args(["-addext", "subjectAltName=DNS:localhost", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .expect("run openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Server::init(&folder);
        let key = format!("ssl_key_file={}", key.display());
        let certificate = format!("ssl_cert_file={}", certificate.display());
        Server::run(folder, port, &["ssl=on", &key, &certificate])
    }

    /// A physical standby of this one, from a copy taken while it runs.
    pub fn start_standby(&self) -> Server {
        let (folder, port) = Server::make_room();
        let data = folder.join("data");
        let mut sql = super::connect(&params(self.port, "postgres"));
        let (start, stop) = match sql.about().version_num >= 150_000 {
            true => ("pg_backup_start('test', true)", "pg_backup_stop(false)"),
            false => ("pg_start_backup('test', true, false)", "pg_stop_backup(false, false)"),
        };
        run(&mut sql, &format!("SELECT {start}"));
        let copied = as_postgres(Command::new("cp"))
            .arg("--archive")
            .arg(self.folder.join("data"))
            .arg(&data)
            .status()
            .expect("run cp");
        assert!(copied.success());
        let label = value(&mut sql, &format!("SELECT labelfile FROM {stop}"));
        fs::remove_file(data.join("postmaster.pid")).unwrap();
        fs::write(data.join("backup_label"), label).unwrap();
        fs::write(data.join("standby.signal"), "").unwrap();
        for file in ["backup_label", "standby.signal"] {
            give_to_postgres(&data.join(file));
        }
        let primary = format!("primary_conninfo=host=127.0.0.1 port={} user=postgres", self.port);
        Server::run(folder, port, &[&primary, "wal_level=logical"])
    }

    fn make_room() -> (PathBuf, u16) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("wh-{}-{number}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        give_to_postgres(&folder);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        (folder, port)
    }

    fn run(folder: PathBuf, port: u16, settings: &[&str]) -> Server {
        let mut shell = as_postgres(Command::new("sh"));
        // The pipe to the shell closes when the test process ends, even when it is killed.
        shell
            .args([
                "-c",
                "trap : TERM INT HUP; f=$1; shift; \"$@\" >\"$f/log\" 2>&1 </dev/null & p=$!; read _; \
                    kill -CONT $p; kill -QUIT $p; wait $p; rm -rf \"$f\"",
                "sh",
            ])
            .arg(&folder)
            .arg(bin().join("postgres"))
            .arg("-D")
            .arg(folder.join("data"))
            .arg("-p")
            .arg(port.to_string())
            .arg("-k")
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        for setting in ["fsync=off", "listen_addresses=127.0.0.1"].iter().chain(settings) {
            shell.arg("-c").arg(setting);
        }
        let keeper = shell.spawn().expect("start the server");
        let server = Server { port, folder, keeper };
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut params = params(port, "postgres");
        params.target = walhouse::postgres::params::TargetSession::Any;
        while let Err(error) = Sql::connect(&params, "starter", deadline) {
            let log = fs::read_to_string(server.folder.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "{error}\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
