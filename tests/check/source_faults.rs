use std::process::{Child, Command, Stdio};
use std::time::Duration;

use walhouse::postgres::startup;
use walhouse::postgres::{Connection, PostgresParams, StartupOptions};

use super::checked::{Bench, check};
use super::support::postgres::{Postgres, Stop};
use super::support::stage::{SESSIONS_SLOT, Stage};
use super::support::wait::{PATIENCE, until, until_true};
use super::support::{free_port, reaper};

/// Names that do not go into SQL as they are.
const ROLE_IN_URL: &str = "wal%27house%20%22%C3%9C%22";
const ROLE_SQL: &str = "\"wal'house \"\"Ü\"\"\"";
const PUBLICATION: &str = "My \"Publication\" d'été; --";
const PUBLICATION_SQL: &str = "\"My \"\"Publication\"\" d'été; --\"";

fn url(postgres: &Postgres, database: &str, rest: &str) -> String {
    format!("postgresql://{ROLE_IN_URL}@127.0.0.1:{}/{database}{rest}", postgres.port())
}

/// Sessions alone, by a role that has what the README asks for and nothing else.
fn bench() -> Bench {
    let stage = Stage::own_with(&[("max_prepared_transactions", "3")]);
    stage.postgres.execute(&format!(
        "CREATE ROLE {ROLE_SQL} LOGIN REPLICATION; GRANT SELECT ON \"Session\" TO {ROLE_SQL};
         CREATE PUBLICATION {PUBLICATION_SQL} FOR TABLE \"Session\""
    ));
    let settings = stage
        .settings_of_defaults()
        .with("DATABASE_URL", url(&stage.postgres, "postgres", ""))
        .with("SESSION_REPLICATION_PUBLICATION_NAME", PUBLICATION)
        .with("SESSION_REPLICATION_SLOT_FAILOVER", 0)
        .without("RUN_REPLICATION_ENABLED");
    Bench { stage, settings }
}

fn sql(statements: &str) -> impl FnOnce(&mut Bench) + '_ {
    let statements =
        statements.replace("%role%", ROLE_SQL).replace("%publication%", PUBLICATION_SQL);
    move |bench| bench.stage.postgres.execute(&statements)
}

#[test]
fn privileges_table_and_publication() {
    let mut bench = bench();
    check(&bench.settings).expect_sound();

    bench.case("problem", "may not replicate", sql("ALTER ROLE %role% NOREPLICATION"));
    bench.case("problem", "may not read it", sql("REVOKE SELECT ON \"Session\" FROM %role%"));
    bench.case(
        "problem",
        "may not look into schema",
        sql("REVOKE USAGE ON SCHEMA public FROM public"),
    );
    bench.case("problem", "row security", sql("ALTER TABLE \"Session\" ENABLE ROW LEVEL SECURITY"));
    bench.stage.postgres.execute("ALTER TABLE \"Session\" DISABLE ROW LEVEL SECURITY");

    bench.case(
        "problem",
        "no column `closedReason`",
        sql("ALTER TABLE \"Session\" DROP COLUMN \"closedReason\""),
    );
    bench.case(
        "problem",
        "its column `expiresAt` is text",
        sql("ALTER TABLE \"Session\" ALTER COLUMN \"expiresAt\" TYPE text"),
    );
    bench.case(
        "problem",
        "its column `closedReason` is of_a_user, underneath integer, expected text or an enum",
        sql("CREATE DOMAIN of_a_user AS int;
             ALTER TABLE \"Session\" ALTER COLUMN \"closedReason\" TYPE of_a_user USING 1"),
    );
    bench.case(
        "problem",
        "its key (id) is deferrable",
        sql("ALTER TABLE \"Session\" REPLICA IDENTITY FULL, DROP CONSTRAINT \"Session_pkey\",
                 ADD PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED"),
    );
    bench.case(
        "problem",
        "it has no primary key and no unique index of all its rows with `id`",
        sql("DROP INDEX \"Session_id_idx\"; ALTER TABLE \"Session\" DROP CONSTRAINT \"Session_pkey\";
             CREATE UNIQUE INDEX ON \"Session\" (id) WHERE \"isTest\""),
    );
    bench.case(
        "problem",
        "replica identity is NOTHING",
        sql("ALTER TABLE \"Session\" REPLICA IDENTITY NOTHING"),
    );
    bench.case(
        "problem",
        "without the key `id`",
        sql("CREATE UNIQUE INDEX other ON \"Session\" (\"friendlyId\", \"createdAt\");
             ALTER TABLE \"Session\" REPLICA IDENTITY USING INDEX other"),
    );
    bench.case(
        "problem",
        "index of its replica identity was dropped",
        sql("ALTER TABLE \"Session\" REPLICA IDENTITY USING INDEX other; DROP INDEX other"),
    );
    // An unlogged table cannot be published.
    let mut also = String::new();
    bench.case_until(
        "problem",
        "not in the WAL",
        sql("ALTER PUBLICATION %publication% DROP TABLE \"Session\";
             ALTER TABLE \"Session\" SET UNLOGGED"),
        |checked| also = checked.expect("problem", "no tables configured").hint,
    );
    bench.apply(&also);
    check(&bench.settings).expect_sound();
}

#[test]
fn publications_that_lose_changes() {
    let mut bench = bench();
    bench.case(
        "problem",
        "no tables configured",
        sql("ALTER PUBLICATION %publication% DROP TABLE \"Session\""),
    );
    bench.case(
        "problem",
        "missing required actions",
        sql("ALTER PUBLICATION %publication% SET (publish = 'insert')"),
    );
    let version: u32 =
        bench.stage.postgres.value("SHOW server_version_num").unwrap().parse().unwrap();
    if 150_000 <= version {
        bench.case(
            "problem",
            "has a row filter",
            sql("ALTER TABLE \"Session\" REPLICA IDENTITY FULL;
                 ALTER PUBLICATION %publication% SET TABLE \"Session\" WHERE (\"isTest\")"),
        );
        bench.case(
            "problem",
            "column list",
            sql("ALTER TABLE \"Session\" REPLICA IDENTITY DEFAULT;
                 ALTER PUBLICATION %publication% SET TABLE \"Session\" (id, tags)"),
        );
    }
    // Not ours to create.
    bench.case("problem", "our role may not create it", sql("DROP PUBLICATION %publication%"));
    bench.stage.postgres.execute(&format!("DROP PUBLICATION {PUBLICATION_SQL}"));
    let hint = check(&bench.settings).expect("problem", "our role may not create it").hint;
    let (_, second_way) = hint.split_once("run: ").expect("it has a second way");
    bench.apply(&format!("Run: {second_way}"));
    let checked = check(&bench.settings);
    checked.expect_sound();
    checked.expect("ok", "walhouse creates it when it starts");
    bench.stage.postgres.execute(&format!("CREATE PUBLICATION {PUBLICATION_SQL}"));
    bench.case(
        "problem",
        "under their own names",
        sql("ALTER TABLE \"Session\" RENAME TO whole;
             CREATE TABLE \"Session\" (LIKE whole INCLUDING DEFAULTS, PRIMARY KEY (id))
                 PARTITION BY HASH (id);
             CREATE TABLE part PARTITION OF \"Session\" FOR VALUES WITH (MODULUS 1, REMAINDER 0);
             GRANT SELECT ON \"Session\" TO %role%;
             ALTER PUBLICATION %publication% ADD TABLE \"Session\""),
    );
    // All that is wrong with it is told at once.
    bench.stage.postgres.execute(&format!(
        "ALTER PUBLICATION {PUBLICATION_SQL} SET (publish = 'insert'); DROP TABLE \"Session\""
    ));
    let finding = check(&bench.settings).expect("problem", "the table is not in database");
    assert!(finding.hint.contains("database URL"), "{finding:?}");
    bench.stage.postgres.execute("ALTER TABLE whole RENAME TO \"Session\"");
    let checked = check(&bench.settings);
    for words in ["missing required actions", "no tables configured"] {
        bench.apply(&checked.expect("problem", words).hint);
    }
    check(&bench.settings).expect_sound();
}

/// `apply` for hints that name a variable, which the test has set wrong.
#[track_caller]
fn wrong_variable(bench: &mut Bench, name: &str, wrong: &str, words: &str, hint: &str) {
    println!("{name}={wrong}");
    let right = bench.settings.clone();
    let checked = check(&right.clone().with(name, wrong));
    assert_eq!(checked.code, 1);
    let finding = checked.expect("problem", words);
    assert!(finding.hint.contains(hint), "{finding:?}");
    // One party that is away hides nothing of the others.
    assert!(checked.find("ok", "ClickHouse: http").is_some(), "{checked:#?}");
    assert!(checked.find("ok", "leader lock: free").is_some(), "{checked:#?}");
    check(&right).expect_sound();
}

#[test]
fn connections_that_are_refused() {
    let mut bench = bench();
    let postgres = &bench.stage.postgres;
    let (other, no_tls) =
        (url(postgres, "elsewhere", ""), url(postgres, "postgres", "?sslmode=require"));
    let away = format!("postgresql://{ROLE_IN_URL}@127.0.0.1:1/postgres");
    let name = "DATABASE_URL";
    wrong_variable(&mut bench, name, &other, "does not exist", "database in the database URL");
    wrong_variable(&mut bench, name, &no_tls, "TLS", "sslmode");
    wrong_variable(&mut bench, name, &away, "refused", "Set DATABASE_URL to the host and port");

    bench.case("problem", "not permitted to log in", sql("ALTER ROLE %role% NOLOGIN"));
    bench.case(
        "problem",
        "permission denied for database",
        sql("REVOKE CONNECT ON DATABASE postgres FROM public"),
    );
    // What pg_hba.conf says: a password first, then nobody.
    let file = bench.stage.postgres.data().join("pg_hba.conf");
    let open = std::fs::read_to_string(&file).unwrap();
    let admit = |postgres: &Postgres, how: &str| {
        let quoted = ROLE_SQL;
        std::fs::write(&file, format!("host all {quoted} 127.0.0.1/32 {how}\n{open}")).unwrap();
        postgres.execute("SELECT pg_reload_conf()");
    };
    let right = bench.settings.clone();
    let with_password = |password: &str| {
        let url = right.get(name).unwrap().replace('@', &format!(":{password}@"));
        right.clone().with(name, url)
    };
    bench.stage.postgres.execute(&format!("ALTER ROLE {ROLE_SQL} PASSWORD 'ri:ght'"));
    admit(&bench.stage.postgres, "scram-sha-256");
    until_true("the password is asked for", PATIENCE, || check(&right).code == 1);
    let finding = check(&with_password("wr0ng")).expect("problem", "password authentication");
    assert_eq!(finding.hint, "Correct user and password in the database URL.");
    assert!(!finding.text.contains("wr0ng"), "{finding:?}");
    check(&with_password("ri%3Aght")).expect_sound();
    admit(&bench.stage.postgres, "reject");
    until_true("nobody is let in", PATIENCE, || check(&with_password("ri%3Aght")).code == 1);
    let finding = check(&right).expect("problem", "pg_hba.conf");
    assert!(finding.hint.starts_with("Allow role "), "{finding:?}");
    std::fs::write(&file, &open).unwrap();
    bench.stage.postgres.execute("SELECT pg_reload_conf()");
    until_true("all are let in", PATIENCE, || check(&right).code == 0);

    // A list with a host that is away.
    let right = bench.settings.clone();
    let both = right.get(name).unwrap().replace("@", "@127.0.0.1:1,");
    let checked = check(&right.clone().with(name, both));
    let finding = checked.expect("warning", "127.0.0.1:1");
    assert_eq!(finding.hint, "Start it, or take it out of DATABASE_URL.");
    checked.expect("ok", "is a primary, on timeline 1");
    check(&right).expect_sound();
    // A standby alone, and beside its primary.
    let standby = bench.stage.postgres.start_standby();
    let alone = url(&standby, "postgres", "");
    let finding = check(&right.clone().with(name, alone)).expect("problem", "is a standby");
    assert!(finding.hint.starts_with("Name all hosts in the database URL"), "{finding:?}");
    let hosts = format!("@127.0.0.1:{},", standby.port());
    let both = right.get(name).unwrap().replace('@', &hosts);
    let checked = check(&right.clone().with(name, both));
    checked.expect_sound();
    checked.expect("ok", "is a standby, on timeline 1");
    checked.expect("ok", &format!("`127.0.0.1:{}` is the primary", bench.stage.postgres.port()));
    drop(standby);
    a_pooler_in_between(&mut bench);
}

/// Ends with us.
struct Pooler(Child);

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_pooler_in_between(bench: &mut Bench) {
    let (port, server) = (free_port(), bench.stage.postgres.port());
    let dir = reaper::new_dir("pgbouncer");
    let (file, log) = (dir.join("pgbouncer.ini"), dir.join("log"));
    let text = format!(
        "[databases]\npostgres = host=127.0.0.1 port={server} user=postgres\n[pgbouncer]\n\
         listen_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\npool_mode = session\n\
         unix_socket_dir =\nignore_startup_parameters = extra_float_digits,options\n"
    );
    std::fs::write(&file, text).unwrap();
    let process = Command::new("pgbouncer")
        .args(["--user", "nobody"])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .expect("pgbouncer is on the PATH");
    reaper::end_with_us(process.id(), "KILL");
    let pooler = Pooler(process);
    until_true("pgbouncer listens", PATIENCE, || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let direct = bench.settings.clone();
    let pooled = format!("postgresql://postgres@127.0.0.1:{port}/postgres");
    let checked = check(&direct.clone().with("DATABASE_URL", pooled));
    let problems: Vec<_> =
        checked.findings.iter().filter(|finding| finding.level == "problem").collect();
    assert!(
        problems.iter().any(|found| found.hint.starts_with("Connect to Postgres itself")),
        "{checked:#?} {}",
        std::fs::read_to_string(&log).unwrap()
    );
    drop(pooler);
    check(&direct).expect_sound();
}

#[test]
fn settings_and_room_of_the_server() {
    let mut bench = bench();
    let reload = |name: &'static str, value: &'static str| {
        move |bench: &mut Bench| {
            bench.stage.postgres.set(name, value);
            bench.stage.postgres.reload();
            until_true("the setting holds", PATIENCE, || {
                let found = bench.stage.postgres.value(&format!("SHOW {name}"));
                found.as_deref() == Some(value)
            });
        }
    };
    bench.case("warning", "wait for ClickHouse", reload("synchronous_standby_names", "*"));
    bench.case("warning", "causes a gap", reload("max_slot_wal_keep_size", "16MB"));

    // What a new slot waits for.
    bench.case("warning", "prepared transaction `it's`", |bench| {
        bench.stage.postgres.execute("BEGIN; CREATE TABLE p (); PREPARE TRANSACTION 'it''s'");
        until_found(bench, "prepared transaction");
    });
    let mut forgotten = bench.stage.postgres.client();
    let as_superuser = bench.stage.postgres.url();
    let as_role = bench.settings.get("DATABASE_URL").unwrap().to_owned();
    bench.settings = bench.settings.clone().with("DATABASE_URL", as_superuser);
    bench.case("warning", "walhouse-tests", |bench| {
        forgotten.batch_execute("BEGIN; CREATE TABLE p ()").unwrap();
        until_found(bench, "walhouse-tests");
    });
    bench.settings = bench.settings.clone().with("DATABASE_URL", as_role);

    // No room, and WAL that says too little.
    for (name, value) in
        [("wal_level", "replica"), ("max_replication_slots", "1"), ("max_wal_senders", "1")]
    {
        bench.stage.postgres.set(name, value);
    }
    bench.stage.postgres.restart(Stop::Fast);
    bench.stage.postgres.execute("SELECT pg_create_physical_replication_slot('filler')");
    let filler = walsender(&bench.stage.postgres);
    let checked = check(&bench.settings);
    let level = checked.expect("problem", "expected `logical`, got `replica`");
    let slots = checked.expect("problem", "slots: 1 to be created, and 0 of 1 are free");
    let senders = checked.expect("problem", "walsenders: 1 streams to begin, and 0 of 1 are free");
    drop(filler);
    bench.apply(&level.hint);
    bench.apply(&slots.hint);
    bench.apply(&senders.hint);
    let filler = walsender(&bench.stage.postgres);
    check(&bench.settings).expect_sound();
    drop(filler);

    // Where somebody else runs the server, the hint names what they let one change.
    for (mark, hint) in [
        ("rds.logical_replication", "Set rds.logical_replication = 1 in the parameter group"),
        ("cloudsql.logical_decoding", "cloudsql.logical_decoding"),
        ("azure.extensions", "Set the server parameter wal_level to logical"),
    ] {
        bench.stage.postgres.set("wal_level", "replica");
        bench.stage.postgres.set(mark, "");
        bench.stage.postgres.restart(Stop::Fast);
        let finding = check(&bench.settings).expect("problem", "expected `logical`");
        assert!(finding.hint.contains(hint), "{finding:?}");
        bench.stage.postgres.unset(mark);
    }
}

/// It takes some seconds until a transaction counts as forgotten.
fn until_found(bench: &Bench, words: &str) {
    until("it is found", PATIENCE, || check(&bench.settings).find("warning", words).map(|_| ()));
}

fn walsender(postgres: &Postgres) -> Connection {
    let (params, _) = PostgresParams::parse(&postgres.url()).unwrap();
    let options = StartupOptions {
        application_name: "filler".to_owned(),
        replication: true,
        options: Vec::new(),
        receive_timeout: Duration::from_secs(60),
    };
    startup::connect(&params, &options, std::time::Instant::now() + PATIENCE).unwrap()
}

#[test]
fn slots_of_somebody_else() {
    let mut bench = bench();
    let slot = SESSIONS_SLOT;
    let create = |plugin: &str| {
        format!("SELECT pg_create_logical_replication_slot('{SESSIONS_SLOT}', '{plugin}')")
    };
    bench.case(
        "problem",
        "it is a physical slot",
        sql(&format!("SELECT pg_create_physical_replication_slot('{slot}')")),
    );
    bench.case("problem", "expected plugin `pgoutput`", sql(&create("test_decoding")));
    bench.case("problem", "it belongs to database", |bench| {
        bench.stage.postgres.execute("CREATE DATABASE other");
        let (params, _) = PostgresParams::parse(&format!(
            "postgresql://postgres@127.0.0.1:{}/other",
            bench.stage.postgres.port()
        ))
        .unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        let mut sql =
            walhouse::postgres::sql::Sql::connect(&params, "walhouse-tests", deadline).unwrap();
        sql.execute("create a slot", &create("pgoutput"), deadline).unwrap();
    });

    // Another consumer.
    bench.stage.postgres.execute(&create("pgoutput"));
    let connection = walsender(&bench.stage.postgres);
    let stream = walhouse::postgres::Stream::start(connection, slot, PUBLICATION, false).unwrap();
    bench.case_until(
        "problem",
        "which is not ours",
        |_| (),
        |checked| {
            assert_eq!(checked.code, 0, "{checked:#?}");
            checked.expect("ok", "is free");
        },
    );
    drop(stream);

    // The variable instead of the SQL.
    bench.stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    bench.stage.postgres.execute(&create("test_decoding"));
    let finding = check(&bench.settings).expect("problem", "expected plugin");
    assert!(finding.hint.contains("Set SESSION_REPLICATION_SLOT_NAME"), "{finding:?}");
    check(&bench.settings.clone().with("SESSION_REPLICATION_SLOT_NAME", "own")).expect_sound();
}
