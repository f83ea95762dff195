//! The replication connection against a real Postgres that each test starts for itself.
//!
//! A test fails when it cannot start one. `WALHOUSE_PG_BIN` names another folder of
//! binaries than Debian's.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use walhouse::error::{Error, ErrorKind};
use walhouse::postgres::params::{Host, PostgresParams, SslMode, TargetSession};
use walhouse::postgres::startup;
use walhouse::postgres::{Connection, ReadOutcome, StartupOptions, Stream, server_error};
use walhouse::secret::Secret;
use walhouse::wal::copy_both::{FromServer, StandbyStatusUpdate};
use walhouse::wal::lsn::Lsn;

const PATIENCE: Duration = Duration::from_secs(30);

struct Server {
    process: Child,
    dir: PathBuf,
    port: u16,
}

fn bin(name: &str) -> PathBuf {
    let dir = std::env::var("WALHOUSE_PG_BIN")
        .unwrap_or_else(|_| "/usr/lib/postgresql/15/bin".to_owned());
    Path::new(&dir).join(name)
}

/// Postgres refuses to run as root.
fn as_postgres(command: &mut Command) -> &mut Command {
    if id(&["-u"]) == 0 {
        command.uid(id(&["-u", "postgres"])).gid(id(&["-g", "postgres"]));
    }
    command
}

fn id(args: &[&str]) -> u32 {
    let output = Command::new("id").args(args).output().expect("run id");
    String::from_utf8(output.stdout).unwrap().trim().parse().expect("user `postgres` exists")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("run {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[track_caller]
fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Server {
    fn start() -> Server {
        Server::start_with("wal_level = logical", "")
    }

    /// `hba` comes after the line that lets everybody in through the Unix socket.
    fn start_with(conf: &str, hba: &str) -> Server {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("walhouse-pg-{}-{n}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let data = dir.join("data");
        fs::create_dir(&data).unwrap();
        for path in [&dir, &data] {
            give_to_postgres(path);
        }
        run(as_postgres(&mut Command::new(bin("initdb"))).current_dir("/").args([
            "--no-sync",
            "--auth=trust",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C",
            "--wal-segsize=1",
            "--pgdata",
            data.to_str().unwrap(),
        ]));
        let hold = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = hold.local_addr().unwrap().port();
        let settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\n\
             fsync = off\nmax_wal_size = 32MB\nmin_wal_size = 8MB\nwal_sender_timeout = 20s\n\
             {conf}\n",
            dir.display()
        );
        fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
        fs::write(
            data.join("pg_hba.conf"),
            format!("local all all trust\n{hba}\nhost all all 127.0.0.1/32 trust\n"),
        )
        .unwrap();
        drop(hold);
        let log = fs::File::create(dir.join("log")).unwrap();
        let process = as_postgres(&mut Command::new(bin("postgres")))
            .current_dir("/")
            .arg("-D")
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start postgres");
        let server = Server { process, dir, port };
        eventually("postgres to start", || server.try_admin());
        server
    }

    fn try_admin(&self) -> Option<postgres::Client> {
        postgres::Config::new()
            .host_path(&self.dir)
            .port(self.port)
            .user("postgres")
            .dbname("postgres")
            .connect(postgres::NoTls)
            .ok()
    }

    fn admin(&self) -> postgres::Client {
        self.try_admin().unwrap_or_else(|| panic!("connect as admin; log:\n{}", self.log()))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn params(&self, user: &str) -> PostgresParams {
        PostgresParams {
            hosts: vec![host("127.0.0.1", self.port)],
            user: user.to_owned(),
            password: Some(Secret::new("right")),
            database: "postgres".to_owned(),
            ssl_mode: SslMode::Disable,
            ssl_root_cert: None,
            ssl_cert: None,
            ssl_key: None,
            connect_timeout: Duration::from_secs(10),
            target: TargetSession::Any,
            options: None,
            halt: walhouse::halt::Halt::default(),
        }
    }

    fn signal(&self, signal: &str) {
        run(Command::new("kill").arg(signal).arg(self.process.id().to_string()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg("-QUIT").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn give_to_postgres(path: &Path) {
    if id(&["-u"]) == 0 {
        chown(path, Some(id(&["-u", "postgres"])), Some(id(&["-g", "postgres"]))).unwrap();
    }
}

fn host(name: &str, port: u16) -> Host {
    Host::new(name, port)
}

fn options() -> StartupOptions {
    StartupOptions {
        application_name: "walhouse-test".to_owned(),
        replication: true,
        options: vec![("TimeZone".to_owned(), "UTC".to_owned())],
        receive_timeout: Duration::from_secs(10),
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn connect(params: &PostgresParams) -> Result<Connection, Error> {
    startup::connect(params, &options(), soon())
}

/// The connection works, and the query is run over the kind of socket expected.
#[track_caller]
fn let_in(params: &PostgresParams, encrypted: bool) {
    let mut connection = connect(params).unwrap_or_else(|e| panic!("{e}; {:?}", e.hint_text()));
    assert_eq!(connection.is_encrypted(), encrypted);
    let sql = "SELECT count(*)::text AS n FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl";
    let results = connection.simple_query(sql, soon()).unwrap();
    assert_eq!(results[0].value(0, "n"), Some(if encrypted { "1" } else { "0" }));
}

#[track_caller]
fn refused(params: &PostgresParams, kind: ErrorKind, text: &str, hint: &str) -> Error {
    let error = connect(params).err().expect("a refusal");
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(text), "{error}");
    let found = error.hint_text().unwrap_or_default();
    assert!(found.contains(hint), "{error}; hint: {found}");
    assert!(!format!("{error}{error:?}").contains("right"), "{error:?}");
    error
}

#[test]
fn every_method_of_authentication_lets_in_who_knows_the_password() {
    let server = Server::start_with(
        "wal_level = logical",
        "host all u_md5 127.0.0.1/32 md5\nhost all u_scram 127.0.0.1/32 scram-sha-256\n\
         host all u_plain 127.0.0.1/32 password\nhost all u_out 127.0.0.1/32 reject\n",
    );
    server
        .admin()
        .batch_execute(
            "SET password_encryption = 'md5'; CREATE ROLE u_md5 LOGIN REPLICATION PASSWORD 'right';
             SET password_encryption = 'scram-sha-256';
             CREATE ROLE u_scram LOGIN REPLICATION PASSWORD 'right';
             CREATE ROLE u_plain LOGIN REPLICATION PASSWORD 'right';
             CREATE ROLE u_out LOGIN REPLICATION;
             CREATE ROLE u_nologin REPLICATION;
             CREATE ROLE \"u \"\"x\" LOGIN;",
        )
        .unwrap();
    // A database cannot be created among other statements.
    let mut admin = server.admin();
    admin.batch_execute("CREATE DATABASE closed").unwrap();
    admin.batch_execute("REVOKE CONNECT ON DATABASE closed FROM PUBLIC").unwrap();
    for user in ["u_md5", "u_scram", "u_plain", "postgres"] {
        let_in(&server.params(user), false);
        // Over the Unix socket TLS is not asked for, whatever the mode.
        let mut params = server.params(user);
        params.hosts = vec![host(server.dir.to_str().unwrap(), server.port)];
        params.ssl_mode = SslMode::Require;
        let_in(&params, false);
    }
    let setup = ErrorKind::Setup;
    for user in ["u_md5", "u_scram", "u_plain"] {
        let mut params = server.params(user);
        params.password = Some(Secret::new("wrong"));
        let error = refused(&params, setup, "password authentication", "password");
        assert_eq!(server_error(&error).unwrap().sqlstate, "28P01");
        params.password = None;
        refused(&params, setup, "asks for a password", "database URL");
    }
    refused(&server.params("u_out"), setup, "pg_hba.conf", "pg_hba.conf");
    refused(&server.params("nobody"), setup, "does not exist", "Create the role \"nobody\"");
    refused(&server.params("u_nologin"), setup, "not permitted to log in", "LOGIN");
    let hint = "ALTER ROLE \"u \"\"x\" REPLICATION; (on Amazon RDS: GRANT rds_replication TO";
    refused(&server.params("u \"x"), setup, "(42501)", hint);
    let mut params = server.params("u_scram");
    params.database = "nowhere".to_owned();
    refused(&params, setup, "does not exist", "database URL");
    params.database = "closed".to_owned();
    refused(&params, setup, "permission denied", "GRANT CONNECT ON DATABASE \"closed\"");

    // TLS on a server that has none.
    let mut params = server.params("u_scram");
    params.ssl_mode = SslMode::Prefer;
    let_in(&params, false);
    params.ssl_mode = SslMode::Require;
    refused(&params, setup, "does not support TLS", "ssl = on");
}

fn openssl(dir: &Path, args: &str) {
    run(Command::new("openssl").current_dir(dir).args(args.split_whitespace()));
}

/// `ext` empty makes a certificate of X.509 version 1.
fn issue(dir: &Path, name: &str, subject: &str, ca: &str, key: &str, ext: &str, more: &str) {
    openssl(
        dir,
        &format!(
            "req -new -newkey {key} -nodes -keyout {name}.key -out {name}.csr -subj {subject}"
        ),
    );
    let ext = if ext.is_empty() {
        String::new()
    } else {
        fs::write(dir.join("ext"), ext).unwrap();
        "-extfile ext".to_owned()
    };
    openssl(
        dir,
        &format!(
            "x509 -req -in {name}.csr -CA {ca}.crt -CAkey {ca}.key -CAcreateserial -out {name}.crt \
         {ext} {more}"
        ),
    );
}

const EC: &str = "ec -pkeyopt ec_paramgen_curve:P-256";

fn make_certificates(dir: &Path) {
    let ca = "-x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:P-256";
    for name in ["ca", "other"] {
        openssl(dir, &format!("req {ca} -keyout {name}.key -out {name}.crt -subj /CN={name}"));
    }
    openssl(
        dir,
        &format!(
            "req {ca} -keyout self.key -out self.crt -subj /CN=localhost \
         -addext subjectAltName=DNS:localhost"
        ),
    );
    let name = "subjectAltName=DNS:localhost\n";
    let days = "-days 2";
    issue(dir, "good", "/CN=x", "ca", EC, name, days);
    issue(dir, "v1", "/CN=localhost", "ca", EC, "", days);
    issue(dir, "cn", "/CN=localhost", "ca", EC, "basicConstraints=CA:FALSE\n", days);
    issue(dir, "ip", "/CN=x", "ca", EC, "subjectAltName=IP:127.0.0.1\n", days);
    issue(dir, "rsa384", "/CN=x", "ca", "rsa:2048", name, "-days 2 -sha384");
    issue(dir, "old", "/CN=x", "ca", EC, name, "-days -1");
    issue(dir, "middle", "/CN=middle", "ca", EC, "basicConstraints=critical,CA:TRUE\n", days);
    issue(dir, "leaf", "/CN=x", "middle", EC, name, days);
    openssl(
        dir,
        "req -x509 -nodes -days 2 -newkey ed25519 -keyout edca.key -out edca.crt \
                  -subj /CN=edca",
    );
    issue(dir, "ed", "/CN=x", "edca", "ed25519", name, days);
    issue(dir, "client", "/CN=u_cert", "ca", EC, "extendedKeyUsage=clientAuth\n", days);
    issue(dir, "stranger", "/CN=u_cert", "other", EC, "extendedKeyUsage=clientAuth\n", days);
    let read = |name: &str| fs::read(dir.join(name)).unwrap();
    fs::write(dir.join("chain.crt"), [read("middle.crt"), read("ca.crt")].concat()).unwrap();
    fs::write(dir.join("empty.crt"), b"").unwrap();
}

#[test]
fn each_sslmode_takes_the_certificates_that_libpq_takes() {
    let server = Server::start_with(
        "wal_level = logical",
        "hostssl all u_cert 127.0.0.1/32 cert\nhostnossl all u_open 127.0.0.1/32 trust\n\
         hostssl all u_open 127.0.0.1/32 reject\nhost all u_tls 127.0.0.1/32 scram-sha-256\n",
    );
    let dir = server.dir.join("tls");
    fs::create_dir(&dir).unwrap();
    make_certificates(&dir);
    let mut admin = server.admin();
    admin
        .batch_execute(
            "CREATE ROLE u_tls LOGIN REPLICATION PASSWORD 'right';
             CREATE ROLE u_cert LOGIN REPLICATION; CREATE ROLE u_open LOGIN REPLICATION;",
        )
        .unwrap();
    let install = |admin: &mut postgres::Client, name: &str| {
        for kind in ["crt", "key"] {
            let to = server.dir.join(format!("server-{name}.{kind}"));
            fs::copy(dir.join(format!("{name}.{kind}")), &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
            give_to_postgres(&to);
        }
        let base = format!("{}/server-{name}", server.dir.display());
        for sql in [
            format!("ALTER SYSTEM SET ssl_cert_file = '{base}.crt'"),
            format!("ALTER SYSTEM SET ssl_key_file = '{base}.key'"),
            format!("ALTER SYSTEM SET ssl_ca_file = '{}'", server.dir.join("ca.crt").display()),
            "ALTER SYSTEM SET ssl = on".to_owned(),
            "SELECT pg_reload_conf()".to_owned(),
        ] {
            admin.batch_execute(&sql).unwrap();
        }
        eventually("the certificate to be installed", || {
            let row = server.admin().query_one("SHOW ssl_cert_file", &[]).unwrap();
            (row.get::<_, String>(0) == format!("{base}.crt")).then_some(())
        });
    };
    fs::copy(dir.join("ca.crt"), server.dir.join("ca.crt")).unwrap();
    fs::set_permissions(server.dir.join("ca.crt"), fs::Permissions::from_mode(0o644)).unwrap();

    use SslMode::{Prefer, Require, VerifyCa, VerifyFull};
    // Certificate of the server, mode, root file, name of the host, what the refusal says.
    let cases: &[(&str, SslMode, &str, &str, Option<&str>)] = &[
        ("good", Prefer, "", "localhost", None),
        ("good", Require, "", "127.0.0.1", None),
        ("good", Require, "missing", "127.0.0.1", None),
        ("good", Require, "ca", "127.0.0.1", None),
        ("good", Require, "other", "localhost", Some("UnknownIssuer")),
        ("good", VerifyCa, "ca", "127.0.0.1", None),
        ("good", VerifyCa, "other", "localhost", Some("UnknownIssuer")),
        ("good", VerifyCa, "", "localhost", Some("without sslrootcert")),
        ("good", VerifyCa, "missing", "localhost", Some("sslrootcert")),
        ("good", VerifyCa, "empty", "localhost", Some("no certificate")),
        ("good", VerifyFull, "ca", "localhost", None),
        ("good", VerifyFull, "ca", "127.0.0.1", Some("not valid for name")),
        ("good", VerifyFull, "system", "localhost", Some("UnknownIssuer")),
        ("good", VerifyFull, "", "localhost", Some("UnknownIssuer")),
        ("good", VerifyCa, "system", "localhost", Some("without verify-full")),
        ("ip", VerifyFull, "ca", "127.0.0.1", None),
        ("ip", VerifyFull, "ca", "localhost", Some("not valid for name")),
        ("cn", VerifyCa, "ca", "localhost", None),
        ("cn", VerifyFull, "ca", "localhost", Some("not valid for name")),
        ("self", Require, "", "localhost", None),
        ("self", VerifyCa, "self", "127.0.0.1", None),
        ("self", VerifyFull, "self", "localhost", None),
        ("self", VerifyFull, "self", "127.0.0.1", Some("not valid for name")),
        ("self", VerifyFull, "ca", "localhost", Some("invalid peer certificate")),
        ("old", Require, "", "localhost", None),
        ("old", VerifyCa, "ca", "localhost", Some("Expired")),
        ("old", VerifyCa, "old", "localhost", Some("Expired")),
        ("v1", Prefer, "", "localhost", None),
        ("v1", Require, "", "localhost", None),
        ("v1", VerifyCa, "ca", "localhost", Some("UnsupportedCertVersion")),
        ("leaf", VerifyFull, "chain", "localhost", None),
        ("leaf", VerifyFull, "middle", "localhost", None),
        ("leaf", VerifyFull, "ca", "localhost", Some("UnknownIssuer")),
        // Channel binding: another hash, and none at all.
        ("rsa384", VerifyFull, "ca", "localhost", None),
        ("ed", VerifyFull, "edca", "localhost", None),
    ];
    let mut installed = "";
    for &(certificate, mode, root, name, refusal) in cases {
        if installed != certificate {
            install(&mut admin, certificate);
            installed = certificate;
        }
        let mut params = server.params("u_tls");
        params.hosts = vec![host(name, server.port)];
        params.ssl_mode = mode;
        params.ssl_root_cert = match root {
            "" => None,
            "system" => Some("system".into()),
            root => Some(dir.join(format!("{root}.crt"))),
        };
        println!("{certificate} {mode:?} {root} {name}");
        match refusal {
            None => let_in(&params, true),
            Some(text) => drop(refused(&params, ErrorKind::Setup, text, "")),
        }
    }

    // Client certificates.
    install(&mut admin, "good");
    let mut params = server.params("u_cert");
    params.hosts = vec![host("localhost", server.port)];
    params.ssl_mode = VerifyFull;
    params.ssl_root_cert = Some(dir.join("ca.crt"));
    refused(&params, ErrorKind::Setup, "client certificate", "");
    params.ssl_cert = Some(dir.join("client.crt"));
    refused(&params, ErrorKind::Setup, "half a client certificate", "sslkey");
    params.ssl_key = Some(dir.join("client.key"));
    let_in(&params, true);
    params.ssl_key = Some(dir.join("other.key"));
    refused(&params, ErrorKind::Setup, "client certificate", "");
    params.ssl_cert = Some(dir.join("stranger.crt"));
    params.ssl_key = Some(dir.join("stranger.key"));
    let error = connect(&params).err().expect("a refusal");
    println!("{error}; {:?}", error.hint_text());
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");

    // pg_hba.conf admits this one without TLS only.
    let mut params = server.params("u_open");
    params.ssl_mode = Prefer;
    let_in(&params, false);
    params.ssl_mode = Require;
    refused(&params, ErrorKind::Setup, "pg_hba.conf", "pg_hba.conf");
}

/// Takes connections and never says a word.
fn mute() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn closed_port() -> u16 {
    mute().1
}

#[test]
fn host_that_hangs_or_refuses_leaves_time_for_the_next() {
    let server = Server::start();
    let (_listener, hanging) = mute();
    for mode in [SslMode::Disable, SslMode::Prefer] {
        let mut params = server.params("postgres");
        params.ssl_mode = mode;
        params.hosts.insert(0, host("127.0.0.1", hanging));
        params.hosts.insert(0, host("127.0.0.1", closed_port()));
        params.hosts.insert(0, host("name.invalid", 5432));
        let started = Instant::now();
        let deadline = started + Duration::from_secs(4);
        let connection = startup::connect(&params, &options(), deadline).unwrap();
        assert_eq!(connection.server(), format!("127.0.0.1:{}", server.port));
        assert!(Instant::now() < deadline);
    }
    // Its own limit, below its share.
    let mut params = server.params("postgres");
    params.hosts.insert(0, host("127.0.0.1", hanging));
    params.connect_timeout = Duration::from_millis(200);
    let started = Instant::now();
    connect(&params).unwrap();
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[test]
fn servers_that_cannot_be_reached_end_in_time() {
    let server = Server::start();
    let mut params = server.params("postgres");
    let (_listener, hanging) = mute();
    params.hosts = vec![host("127.0.0.1", hanging)];
    let deadline = Instant::now() + Duration::from_millis(300);
    let error = startup::connect(&params, &options(), deadline).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert_eq!(error.to_string(), format!("connect to `127.0.0.1:{hanging}`: no answer in time"));
    assert!(Instant::now() < deadline + Duration::from_secs(1));

    params.hosts = vec![host("127.0.0.1", closed_port())];
    refused(&params, ErrorKind::Unreachable, "refused", "");
    params.hosts = vec![host("name.invalid", 1)];
    refused(&params, ErrorKind::Unreachable, "look up `name.invalid`", "");
    params.hosts = vec![host("/nowhere", 1)];
    refused(&params, ErrorKind::Unreachable, "No such file", "");
    params.hosts = vec![host("127.0.0.1", closed_port()), host("127.0.0.1", server.port)];
    params.user = "nobody".to_owned();
    let error = refused(&params, ErrorKind::Setup, "find a server: ", "Create the role");
    assert_eq!(server_error(&error).unwrap().sqlstate, "28000");
}

/// Answers every connection with these bytes once it has said something.
fn scripted(answer: Vec<u8>) -> u16 {
    let (listener, port) = mute();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream: TcpStream = stream.unwrap();
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer);
            let _ = stream.write_all(&answer);
            // Until the client hangs up, so that no reset overtakes the answer.
            while stream.read(&mut buffer).is_ok_and(|n| 0 < n) {}
        }
    });
    port
}

#[test]
fn pooler_and_stranger_in_between_are_told_apart() {
    let server = Server::start();
    let body = b"SFATAL\0C08P01\0Munsupported startup parameter: replication\0\0";
    let mut answer = vec![b'E'];
    answer.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    answer.extend(body);
    let mut params = server.params("postgres");
    params.hosts = vec![host("127.0.0.1", scripted(answer))];
    refused(&params, ErrorKind::Setup, "unsupported startup parameter", "a pooler");
    params.hosts = vec![host("127.0.0.1", scripted(b"HTTP/1.1 400 Bad Request\r\n\r\n".into()))];
    refused(&params, ErrorKind::Protocol, "expected a message of Postgres", "");
    params.ssl_mode = SslMode::Require;
    refused(&params, ErrorKind::Protocol, "request for TLS", "");
}

#[test]
fn read_write_passes_over_a_standby() {
    let primary = Server::start();
    let standby = Server::start_with("hot_standby = on", "");
    // Made a standby in place: it never streams, but says that it is in recovery.
    let mut params = primary.params("postgres");
    params.target = TargetSession::ReadWrite;
    let_in(&params, false);
    let_in(&standby.params("postgres"), false);
    standby.signal("-INT");
    eventually("the standby to stop", || {
        (!standby.dir.join("data/postmaster.pid").exists()).then_some(())
    });
    let signal = standby.dir.join("data/standby.signal");
    fs::write(&signal, b"").unwrap();
    give_to_postgres(&signal);
    let mut again = as_postgres(&mut Command::new(bin("postgres")))
        .current_dir("/")
        .arg("-D")
        .arg(standby.dir.join("data"))
        .stderr(fs::File::create(standby.dir.join("log2")).unwrap())
        .spawn()
        .unwrap();
    let found = std::panic::catch_unwind(|| {
        let mut params = standby.params("postgres");
        eventually("the standby to start", || connect(&params).ok());
        params.target = TargetSession::ReadWrite;
        refused(&params, ErrorKind::Unreachable, "server is a standby", "");
        params.hosts.push(host("127.0.0.1", primary.port));
        assert_eq!(connect(&params).unwrap().server(), format!("127.0.0.1:{}", primary.port));
    });
    let _ = Command::new("kill").arg("-QUIT").arg(again.id().to_string()).status();
    let _ = again.wait();
    found.unwrap();
    let mut admin = primary.admin();
    admin.batch_execute("ALTER ROLE postgres SET default_transaction_read_only = on").unwrap();
    assert_eq!(connect(&params).unwrap().server(), format!("127.0.0.1:{}", primary.port));
}

#[test]
fn walsender_answers_commands_and_queries() {
    let server = Server::start();
    let mut params = server.params("postgres");
    params.options = Some("-c TimeZone=Asia/Tokyo -c extra_float_digits=2".to_owned());
    let mut connection = connect(&params).unwrap();
    let identity = connection.identify_system(soon()).unwrap();
    let row = server
        .admin()
        .query_one("SELECT system_identifier::text FROM pg_control_system()", &[])
        .unwrap();
    assert_eq!(identity.system_id, row.get::<_, String>(0));
    assert_eq!((identity.timeline, identity.dbname.as_deref()), (1, Some("postgres")));
    assert!(Lsn(0) < identity.xlogpos);
    assert_eq!(connection.timeline_history(1, soon()).unwrap(), []);
    let error = connection.timeline_history(7, soon()).unwrap_err();
    assert_eq!(server_error(&error).unwrap().sqlstate, "58P01");
    // After an error of the server the connection goes on.
    let show = |connection: &mut Connection, name: &str| {
        let results = connection.simple_query(&format!("SHOW {name}"), soon()).unwrap();
        results[0].rows[0][0].clone().unwrap()
    };
    assert_eq!(show(&mut connection, "TimeZone"), "UTC");
    assert_eq!(show(&mut connection, "extra_float_digits"), "2");
    assert_eq!(connection.parameter("TimeZone"), Some("UTC"));
    assert_eq!(connection.parameter("application_name"), Some("walhouse-test"));
    let version = connection.server_version_num().unwrap();
    assert_eq!(show(&mut connection, "server_version_num"), version.to_string());
    let results = connection
        .simple_query("SELECT NULL AS a, '' AS b, 'x' AS c; SELECT 1 WHERE false", soon())
        .unwrap();
    assert_eq!(results[0].rows, [[None, Some(String::new()), Some("x".to_owned())]]);
    assert_eq!((results[0].value(0, "c"), results[1].rows.len()), (Some("x"), 0));
    assert_eq!(results.len(), 2);

    // Cut short: it says so ever after.
    let error = connection
        .simple_query("SELECT pg_sleep(20)", Instant::now() + Duration::from_millis(100))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    let error = connection.simple_query("SELECT 1", soon()).unwrap_err();
    assert!(error.to_string().contains("cut short"), "{error}");
}

#[test]
fn timeline_history_of_a_promoted_server_is_read() {
    let server = Server::start();
    let mut connection = connect(&server.params("postgres")).unwrap();
    let before = connection.identify_system(soon()).unwrap();
    drop(connection);
    server.signal("-INT");
    eventually("postgres to stop", || {
        (!server.dir.join("data/postmaster.pid").exists()).then_some(())
    });
    // Recovery to the end of its own WAL, then a timeline of its own.
    let signal = server.dir.join("data/recovery.signal");
    fs::write(&signal, b"").unwrap();
    give_to_postgres(&signal);
    let mut again = as_postgres(&mut Command::new(bin("postgres")))
        .current_dir("/")
        .arg("-D")
        .arg(server.dir.join("data"))
        .args(["-c", "restore_command=false"])
        .stderr(fs::File::create(server.dir.join("log2")).unwrap())
        .spawn()
        .unwrap();
    let found = std::panic::catch_unwind(|| {
        eventually("the new timeline", || {
            let mut connection = connect(&server.params("postgres")).ok()?;
            let now = connection.identify_system(soon()).ok()?;
            if now.timeline != 2 {
                return None;
            }
            let history = connection.timeline_history(2, soon()).unwrap();
            assert_eq!(history.len(), 1);
            assert_eq!(history[0].timeline, 1);
            assert!(before.xlogpos <= history[0].switch && history[0].switch <= now.xlogpos);
            Some(())
        })
    });
    let _ = Command::new("kill").arg("-QUIT").arg(again.id().to_string()).status();
    let _ = again.wait();
    found.unwrap();
}

fn slot_and_publication(server: &Server, publication: &str) -> postgres::Client {
    let mut admin = server.admin();
    let quoted = publication.replace('"', "\"\"");
    admin
        .batch_execute(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, v text);
             CREATE PUBLICATION \"{quoted}\" FOR TABLE t;"
        ))
        .unwrap();
    admin.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')", &[]).unwrap();
    admin
}

fn stream(server: &Server, publication: &str) -> Stream {
    let connection = connect(&server.params("postgres")).unwrap();
    Stream::start(connection, "s", publication, true).unwrap()
}

/// Reads until a Commit came; returns the tags of pgoutput and the end of the last commit.
fn read_commit(stream: &mut Stream) -> (String, Lsn) {
    let mut tags = String::new();
    let end = eventually("a commit", || {
        let ReadOutcome::Frames(frames) = stream.read(Duration::from_secs(1)).unwrap() else {
            return None;
        };
        let mut end = None;
        for message in frames.messages() {
            if let FromServer::XLogData { payload, .. } = FromServer::parse(message).unwrap() {
                tags.push(char::from(payload[0]));
                if payload[0] == b'C' {
                    end = Some(Lsn(u64::from_be_bytes(payload[10..18].try_into().unwrap())));
                }
            }
        }
        end
    });
    (tags, end)
}

fn confirm(stream: &mut Stream, lsn: Lsn) {
    let status =
        StandbyStatusUpdate { written: lsn, flushed: lsn, applied: lsn, reply_requested: false };
    stream.send_status(&status, SystemTime::now()).unwrap();
}

fn confirmed(admin: &mut postgres::Client) -> Lsn {
    let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 's'";
    admin.query_one(sql, &[]).unwrap().get::<_, String>(0).parse().unwrap()
}

#[test]
fn changes_arrive_and_a_status_update_moves_the_slot_exactly() {
    // A name that needs every kind of quoting.
    let hostile = "a\"b'c\\d, é";
    let server = Server::start();
    let mut admin = slot_and_publication(&server, hostile);
    let mut stream = stream(&server, hostile);
    assert!(matches!(
        stream.read(Duration::from_millis(10)).unwrap(),
        ReadOutcome::Nothing | ReadOutcome::Frames(_)
    ));
    admin.batch_execute("INSERT INTO t VALUES (1, 'one'), (2, 'two')").unwrap();
    let (tags, end) = read_commit(&mut stream);
    assert_eq!(tags, "BRIIC");
    confirm(&mut stream, end);
    eventually("confirmed_flush_lsn", || (confirmed(&mut admin) == end).then_some(()));
    let reply: SystemTime = eventually("the time of the reply", || {
        let sql = "SELECT reply_time FROM pg_stat_replication";
        admin.query_one(sql, &[]).unwrap().get(0)
    });
    assert!(reply.elapsed().unwrap_or_default() < Duration::from_secs(60));

    stream.finish(soon()).unwrap();
    eventually("the slot to be free", || {
        let sql = "SELECT NOT active FROM pg_replication_slots";
        admin.query_one(sql, &[]).unwrap().get::<_, bool>(0).then_some(())
    });
    assert_eq!(confirmed(&mut admin), end);
}

#[test]
fn large_rows_and_many_rows_arrive_whole_over_tls_and_plain() {
    let server = Server::start_with("wal_level = logical\nlogical_decoding_work_mem = 64MB", "");
    make_certificates(&{
        let dir = server.dir.join("tls");
        fs::create_dir(&dir).unwrap();
        dir
    });
    for kind in ["crt", "key"] {
        let to = server.dir.join(format!("data/server.{kind}"));
        fs::copy(server.dir.join(format!("tls/good.{kind}")), &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
        give_to_postgres(&to);
    }
    let mut admin = slot_and_publication(&server, "p");
    admin.batch_execute("ALTER SYSTEM SET ssl = on").unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").unwrap();
    eventually("ssl", || {
        let row = server.admin().query_one("SHOW ssl", &[]).unwrap();
        (row.get::<_, String>(0) == "on").then_some(())
    });
    admin
        .batch_execute(
            "INSERT INTO t SELECT i, repeat('x', i % 300) FROM generate_series(1, 20000) i;
             INSERT INTO t VALUES (0, repeat('y', 5000000))",
        )
        .unwrap();
    for mode in [SslMode::Disable, SslMode::Require] {
        let mut params = server.params("postgres");
        params.ssl_mode = mode;
        let connection = connect(&params).unwrap();
        assert_eq!(connection.is_encrypted(), mode == SslMode::Require);
        let mut stream = Stream::start(connection, "s", "p", true).unwrap();
        let (mut rows, mut longest, mut blocks) = (0, 0, 0);
        eventually("all rows", || {
            if let ReadOutcome::Frames(frames) = stream.read(Duration::from_secs(1)).unwrap() {
                blocks += 1;
                for message in frames.messages() {
                    if let Ok(FromServer::XLogData { payload, .. }) = FromServer::parse(message) {
                        rows += usize::from(payload[0] == b'I');
                        longest = longest.max(payload.len());
                    }
                }
            }
            (rows == 20_001).then_some(())
        });
        println!("{mode:?}: {rows} rows in {blocks} blocks");
        assert!(5_000_000 < longest, "{longest}");
    }
}

#[test]
fn shutdown_of_the_server_ends_the_stream_at_once_when_all_is_confirmed() {
    let server = Server::start();
    let mut admin = slot_and_publication(&server, "p");
    let mut stream = stream(&server, "p");
    admin.batch_execute("INSERT INTO t VALUES (1, 'one')").unwrap();
    let (_, end) = read_commit(&mut stream);
    confirm(&mut stream, end);
    drop(admin);
    server.signal("-INT");
    let started = Instant::now();
    // As the reader of a stream does it: while idle, every keepalive's WAL end is confirmed.
    eventually("the end of the stream", || match stream.read(Duration::from_secs(1)).unwrap() {
        ReadOutcome::Ended => Some(()),
        ReadOutcome::Frames(frames) => {
            for message in frames.messages() {
                if let Ok(FromServer::PrimaryKeepalive { wal_end, .. }) = FromServer::parse(message)
                {
                    confirm(&mut stream, wal_end);
                }
            }
            None
        }
        _ => None,
    });
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(matches!(stream.read(Duration::from_secs(1)).unwrap(), ReadOutcome::Ended));
    stream.finish(soon()).unwrap();
}

#[test]
fn lost_stream_is_unreachable_whoever_cut_it() {
    let server = Server::start();
    let mut admin = slot_and_publication(&server, "p");
    let until_lost = |mut stream: Stream| {
        eventually("the stream to be lost", || stream.read(Duration::from_secs(1)).err())
    };

    let terminated = stream(&server, "p");
    let pid = i32::try_from(terminated.backend_pid()).unwrap();
    admin.execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    let error = until_lost(terminated);
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert_eq!(server_error(&error).unwrap().sqlstate, "57P01");

    eventually("the slot to be free", || {
        let sql = "SELECT NOT active FROM pg_replication_slots";
        admin.query_one(sql, &[]).unwrap().get::<_, bool>(0).then_some(())
    });
    let killed = stream(&server, "p");
    server.signal("-QUIT");
    let error = until_lost(killed);
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
}

#[test]
fn dropped_stream_frees_its_slot() {
    let server = Server::start();
    let mut admin = slot_and_publication(&server, "p");
    let stream = stream(&server, "p");
    drop(stream);
    eventually("the slot to be free", || {
        let sql = "SELECT NOT active FROM pg_replication_slots";
        admin.query_one(sql, &[]).unwrap().get::<_, bool>(0).then_some(())
    });
}

#[test]
fn frozen_walsender_holds_nobody_up() {
    let server = Server::start();
    let _admin = slot_and_publication(&server, "p");
    for finishes in [true, false] {
        let mut stream = eventually("the slot to be free", || {
            let connection = connect(&server.params("postgres")).unwrap();
            Stream::start(connection, "s", "p", true).ok()
        });
        let pid = stream.backend_pid().to_string();
        eventually("silence", || {
            let outcome = stream.read(Duration::from_millis(100)).unwrap();
            matches!(outcome, ReadOutcome::Nothing).then_some(())
        });
        run(Command::new("kill").args(["-STOP", &pid]));
        let started = Instant::now();
        assert!(matches!(stream.read(Duration::from_millis(50)).unwrap(), ReadOutcome::Nothing));
        confirm(&mut stream, Lsn(0));
        if finishes {
            let deadline = Instant::now() + Duration::from_millis(200);
            let error = stream.finish(deadline).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        } else {
            drop(stream);
        }
        let elapsed = started.elapsed();
        run(Command::new("kill").args(["-CONT", &pid]));
        assert!(elapsed < Duration::from_secs(3), "{elapsed:?}");
    }
}

#[track_caller]
fn not_started(server: &Server, slot: &str, kind: ErrorKind, sqlstate: &str) -> Error {
    let connection = connect(&server.params("postgres")).unwrap();
    let error = Stream::start(connection, slot, "p", true).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert_eq!(server_error(&error).unwrap().sqlstate, sqlstate, "{error}");
    error
}

#[test]
fn slot_that_cannot_be_streamed_says_why() {
    let server = Server::start_with(
        "wal_level = logical\nmax_slot_wal_keep_size = 1MB\nmax_wal_senders = 3",
        "",
    );
    let mut admin = slot_and_publication(&server, "p");
    let holder = stream(&server, "p");
    let error = not_started(&server, "s", ErrorKind::SlotBusy, "55006");
    assert!(error.to_string().contains(&format!("PID {}", holder.backend_pid())), "{error}");
    assert!(error.to_string().starts_with("start replication of slot `s` on `127.0.0.1:"));
    drop(holder);

    not_started(&server, "missing", ErrorKind::Setup, "42704");
    // No slot can have such a name. Some builds say so by a syntax error, but none reads on.
    let connection = connect(&server.params("postgres")).unwrap();
    let error = Stream::start(connection, "s\" LOGICAL 0/0 --'", "p", true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    admin.execute("SELECT pg_create_physical_replication_slot('physical')", &[]).unwrap();
    not_started(&server, "physical", ErrorKind::Setup, "55000");
    admin
        .execute("SELECT pg_create_logical_replication_slot('other', 'test_decoding')", &[])
        .unwrap();
    not_started(&server, "other", ErrorKind::Setup, "22023");

    admin
        .batch_execute("CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 1)")
        .unwrap();
    eventually("the slot to be invalidated", || {
        for _ in 0..3 {
            admin
                .batch_execute(
                    "INSERT INTO filler SELECT repeat('x', 1000) \
                                 FROM generate_series(1, 1000)",
                )
                .unwrap();
            admin.batch_execute("SELECT pg_switch_wal()").unwrap();
        }
        admin.batch_execute("CHECKPOINT").unwrap();
        let sql = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 's'";
        (admin.query_one(sql, &[]).unwrap().get::<_, String>(0) == "lost").then_some(())
    });
    not_started(&server, "s", ErrorKind::Setup, "55000");

    let busy: Vec<_> = (0..3).map(|_| connect(&server.params("postgres")).unwrap()).collect();
    let error = refused(&server.params("postgres"), ErrorKind::Unreachable, "53300", "");
    assert_eq!(server_error(&error).unwrap().sqlstate, "53300");
    drop(busy);
}

#[test]
fn wal_level_replica_is_refused_by_the_server() {
    let server = Server::start_with("wal_level = replica", "");
    let mut connection = connect(&server.params("postgres")).unwrap();
    let error = connection
        .simple_query("CREATE_REPLICATION_SLOT \"s\" LOGICAL \"pgoutput\"", soon())
        .unwrap_err();
    assert_eq!(
        (error.kind(), &*server_error(&error).unwrap().sqlstate),
        (ErrorKind::Setup, "55000")
    );
}
