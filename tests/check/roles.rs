use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;

use super::checked::check;
use super::support::program::Program;
use super::support::sample;
use super::support::stage::{SERVICES, Stage};

const ROLE: &str = "o'wner \"of\" \\nothing; ÄÖ";
const ROLE_IN_URL: &str = "o%27wner%20%22of%22%20%5Cnothing%3B%20%C3%84%C3%96";

#[track_caller]
fn run_script(stage: &Stage, database: &str, role: &str, more: &[&str]) {
    let output = Command::new("psql")
        .args(["--no-psqlrc", "--quiet", "-v", &format!("role={role}")])
        .args(["-v", "password=it's secret"])
        .args(more)
        .args(["-f", concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/roles/postgres.sql")])
        .args(["-h", "127.0.0.1", "-p", &stage.postgres.port().to_string()])
        .args(["-U", "postgres", "-d", database])
        .output()
        .expect("psql is on the PATH");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// As far as a server of our own can pass for one on Amazon RDS: there, who may replicate is a
/// member of a role.
#[test]
fn on_rds_the_right_to_replicate_is_a_membership() {
    let mut stage = Stage::own();
    stage.postgres.set("rds.logical_replication", "1");
    stage.postgres.restart(super::support::postgres::Stop::Fast);
    stage.postgres.execute("CREATE ROLE rds_replication; CREATE ROLE tenant LOGIN");
    let port = stage.postgres.port();
    let settings = |role: &str| {
        let url = format!("postgresql://{role}@127.0.0.1:{port}/postgres");
        stage.settings_of_defaults().with("DATABASE_URL", url)
    };
    let finding = check(&settings("tenant")).expect("problem", "may not replicate");
    assert_eq!(finding.hint, "Run: GRANT rds_replication TO \"tenant\";");
    stage.postgres.execute(finding.hint.strip_prefix("Run: ").unwrap());
    check(&settings("tenant")).expect("ok", "`tenant` may replicate");

    run_script(&stage, "postgres", "scripted", &["-v", "read_stats=1"]);
    let rights = "SELECT pg_has_role('scripted', 'rds_replication', 'MEMBER'), rolreplication,
                         pg_has_role('scripted', 'pg_read_all_stats', 'MEMBER')
                  FROM pg_roles WHERE rolname = 'scripted'";
    assert_eq!(stage.postgres.rows_of(rights), [["t", "f", "t"]]);
    let checked = check(&settings("scripted"));
    checked.expect("ok", "Postgres on Amazon RDS");
    checked.expect("ok", "`scripted` may replicate");
    // This server does not know that membership; everything else is as it has to be.
    let bad: Vec<&str> = checked.bad().iter().map(|finding| finding.text.as_str()).collect();
    assert!(bad.iter().all(|text| text.starts_with("replication: ")), "{bad:?}");
}

#[test]
fn walhouse_runs_with_exactly_what_the_script_for_postgres_gives() {
    let stage = Stage::own();
    // With a name that has to be quoted everywhere.
    stage.postgres.execute("CREATE DATABASE \"App \"\"1\"\"\" TEMPLATE postgres");
    let database = stage.postgres.at_database("App \"1\"");
    run_script(&stage, "App \"1\"", ROLE, &[]);
    run_script(&stage, "App \"1\"", ROLE, &[]);
    let quoted = "'o''wner \"of\" \\nothing; ÄÖ'";
    let rights = format!(
        "SELECT rolsuper, rolreplication, rolcreatedb, rolcreaterole, rolbypassrls,
                has_database_privilege(oid, current_database(), 'CREATE'),
                has_table_privilege(oid, '\"TaskRun\"', 'INSERT, UPDATE, DELETE, TRUNCATE'),
                (SELECT count(*) FROM pg_auth_members WHERE member = r.oid)
         FROM pg_roles r WHERE rolname = {quoted}"
    );
    assert_eq!(database.rows_of(&rights), [["f", "t", "f", "f", "f", "f", "f", "0"]]);

    let url = format!(
        "postgresql://{ROLE_IN_URL}:it%27s%20secret@127.0.0.1:{}/App%20%221%22",
        stage.postgres.port()
    );
    let settings = stage
        .settings()
        .with("DATABASE_URL", url)
        .with_both("*_REPLICATION_SLOT_FAILOVER", 0)
        .with("REPLICATION_LEADER_LOCK", "postgres")
        .with("WEBHOOK_DELIVERIES_REPLICATION_ENABLED", 1)
        .with("WEBHOOK_DELIVERIES_REPLICATION_CLICKHOUSE_URL", stage.clickhouse.url())
        .with("WEBHOOK_DELIVERIES_REPLICATION_SLOT_FAILOVER", 0);
    check(&settings).expect_sound();
    let mut program = Program::start(&settings);
    const ALL: [&str; 3] = ["runs", "sessions", "webhooks"];
    program.wait_streaming(&ALL);
    // A large value that an update leaves alone is read again, for which it needs SELECT.
    database.execute("ALTER TABLE \"TaskRun\" ALTER COLUMN output SET STORAGE EXTERNAL");
    let large = format!("\"{}\"", "x".repeat(20_000));
    let run =
        sample::with(sample::run("r1"), json!({"output": large, "outputType": "application/json"}));
    database.insert("TaskRun", &run);
    stage.settle(&mut program, &SERVICES);
    database.update("TaskRun", "r1", &json!({"status": "COMPLETED_SUCCESSFULLY"}));
    database.insert("Session", &sample::session("s1"));
    let today = database.value("SELECT current_date::text").expect("a day");
    database.insert("WebhookDelivery", &sample::full_delivery("w1", &today));
    stage.settle(&mut program, &ALL);
    let found = stage.clickhouse.rows(
        "SELECT toString(status), length(toJSONString(output)) > 20000 \
         FROM trigger_dev.task_runs_v2 FINAL",
    );
    assert_eq!(found, [[json!("COMPLETED_SUCCESSFULLY"), json!(1)]]);
    assert_eq!(stage.clickhouse.count("sessions_v1", "1"), 1);
    assert_eq!(stage.clickhouse.count("webhook_deliveries_v1", "1"), 1);
    check(&settings).expect_sound();
    assert_eq!(program.log_lines("permission denied"), 0);
    program.stop();
}

/// Goal: what the script for ClickHouse grants is enough. The engine of the tests has one user and
/// no grants, so it cannot refuse: the statements that walhouse sends are looked at instead, and
/// the script is shown to be in ClickHouse's language.
#[test]
fn walhouse_asks_clickhouse_for_nothing_but_what_the_script_grants() {
    let stage = Stage::own();
    let script = include_str!("../../scripts/roles/clickhouse.sql");
    let lines: Vec<&str> = script.lines().filter(|line| !line.starts_with("--")).collect();
    for statement in lines.join("\n").split(';').map(str::trim).filter(|sql| !sql.is_empty()) {
        let answer = stage.clickhouse.ask(statement, &[]).unwrap();
        let text = answer.text();
        // Not the right to, and nobody to grant it to: both come after the parser.
        let is_read = ["(ACCESS_DENIED)", "(UNKNOWN_ROLE)", "(UNKNOWN_USER)"];
        let is_read = is_read.iter().any(|name| text.contains(name));
        assert!(answer.status == 200 || is_read, "{statement}: {text}");
    }
    // Another one's migrations may have to make it.
    assert_eq!(stage.clickhouse.value("EXISTS DATABASE trigger_dev"), "0");

    let heard = Heard::before(stage.clickhouse.port());
    let settings = stage
        .settings()
        .with_both("*_REPLICATION_CLICKHOUSE_URL", format!("http://127.0.0.1:{}", heard.port));
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    stage.postgres.insert("TaskRun", &sample::run("r1"));
    stage.settle(&mut program, &SERVICES);
    stage.postgres.delete("TaskRun", "r1");
    stage.settle(&mut program, &SERVICES);
    program.stop();
    let statements = heard.statements();
    assert!(statements.iter().any(|sql| sql.starts_with("INSERT INTO")), "{statements:?}");
    for sql in &statements {
        let granted = [
            "SELECT ",
            "INSERT INTO `trigger_dev`.",
            "CREATE DATABASE IF NOT EXISTS `trigger_dev`",
            "CREATE TABLE IF NOT EXISTS `trigger_dev`.",
        ];
        let is_granted = granted.iter().any(|granted| sql.starts_with(granted));
        let tables = sql.split(" FROM ").skip(1).map(str::trim_start);
        let is_of_ours = |table: &str| {
            ["`trigger_dev`.", "system.tables", "system.columns", "system.databases"]
                .iter()
                .chain(&["system.processes", "(", "numbers("])
                .any(|ours| table.starts_with(ours))
        };
        let strange: Vec<&str> = tables.filter(|table| !is_of_ours(table)).collect();
        assert!(is_granted && strange.is_empty(), "{sql}");
    }
}

/// Stands before ClickHouse and writes down what is said to it.
struct Heard {
    port: u16,
    said: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Heard {
    fn before(target: u16) -> Heard {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let said = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&said);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let at = {
                    let mut all = all.lock().unwrap();
                    all.push(Vec::new());
                    all.len() - 1
                };
                let (back, forth) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || copy(back, forth, |_| ()));
                let all = Arc::clone(&all);
                thread::spawn(move || {
                    copy(client, server, |bytes| all.lock().unwrap()[at].extend_from_slice(bytes));
                });
            }
        });
        Heard { port, said }
    }

    /// Of each request: the statement in its address, or the beginning of its body.
    fn statements(&self) -> Vec<String> {
        let said = self.said.lock().unwrap();
        let mut statements = Vec::new();
        for connection in said.iter() {
            let text = String::from_utf8_lossy(connection).into_owned();
            for request in text.split("POST /").skip(1) {
                let (address, rest) = request.split_once(' ').expect("it has an address");
                let query = address.split_once('?').map_or("", |(_, query)| query);
                let named = url::form_urlencoded::parse(query.as_bytes())
                    .find(|(name, _)| name == "query")
                    .map(|(_, sql)| sql.into_owned());
                let body = rest.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                // A body that comes in chunks begins with the size of the first.
                let body = match body.split_once("\r\n") {
                    Some((size, rest)) if size.bytes().all(|c| c.is_ascii_hexdigit()) => rest,
                    _ => body,
                };
                statements.push(named.unwrap_or_else(|| body.to_owned()));
            }
        }
        statements
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, mut hear: impl FnMut(&[u8])) {
    let mut buffer = [0; 64 * 1024];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 {
            break;
        }
        hear(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
