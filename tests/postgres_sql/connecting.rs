use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use walhouse::error::ErrorKind;
use walhouse::postgres::params::{Host, SslMode, TargetSession};
use walhouse::postgres::server::Server as Identity;
use walhouse::postgres::sql::{OUTPUT_SETTINGS, Sql};
use walhouse::secret::Secret;

use super::server::{Server, database, shared};
use super::{connect, expect_error, params, run, soon, value};

fn signal(name: &str, pid: i32) {
    let status = Command::new("kill").args([name, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn session_settings_are_in_force_whatever_the_role_prefers() {
    let (mut params, mut sql) = database();
    run(
        &mut sql,
        "CREATE ROLE odd LOGIN; ALTER ROLE odd SET datestyle = 'German'; \
                   ALTER ROLE odd SET timezone = 'Asia/Tokyo'",
    );
    params.user = "odd".into();
    params.options = Some("-c work_mem=7MB -c statement_timeout=0".into());
    let mut sql = connect(&params);
    for (name, expected) in OUTPUT_SETTINGS {
        assert_eq!(value(&mut sql, &format!("SHOW {name}")), expected);
    }
    assert_eq!(value(&mut sql, "SHOW work_mem"), "7MB");
    assert_eq!(value(&mut sql, "SHOW statement_timeout"), "30s");
    assert_eq!(value(&mut sql, "SHOW application_name"), "test");
    assert_eq!(value(&mut sql, "SELECT '2024-01-02 03:04:05'::timestamp"), "2024-01-02 03:04:05");
    assert_eq!(sql.about().database, params.database);
    assert_eq!(sql.about().role, "odd");
}

#[test]
fn a_refusal_says_why_and_shows_no_password() {
    let mut sql = connect(&params(shared().port, "postgres"));
    run(&mut sql, "CREATE ROLE with_password LOGIN PASSWORD 'right'");
    let mut params = params(shared().port, "postgres");
    params.user = "with_password".into();
    params.password = Some(Secret::new("right"));
    connect(&params);

    params.password = Some(Secret::new("wrong one"));
    let wrong = Sql::connect(&params, "test", soon()).map(drop);
    let Err(error) = &wrong else { panic!("connected with a wrong password") };
    assert!(!format!("{error} {error:?}").contains("wrong one"));
    let hint = expect_error(wrong, ErrorKind::Setup, "SQLSTATE 28P01");
    assert!(hint.contains("pg_hba.conf"), "{hint}");

    params.password = None;
    expect_error(Sql::connect(&params, "test", soon()), ErrorKind::Setup, "password missing");

    let absent = super::params(shared().port, "no such");
    expect_error(Sql::connect(&absent, "test", soon()), ErrorKind::Setup, "SQLSTATE 3D000");
}

#[test]
fn a_host_that_hangs_does_not_eat_the_time_of_the_next() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = |name: &str, port| Host::new(name, port);
    let mut params = params(shared().port, "postgres");
    let good = params.hosts.remove(0);
    params.hosts =
        vec![host("127.0.0.1", mute.local_addr().unwrap().port()), host("127.0.0.1", free)];

    let started = Instant::now();
    let deadline = started + Duration::from_secs(2);
    let result = Sql::connect(&params, "test", deadline);
    assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
    let Err(error) = result else { panic!("connected to nobody") };
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    let line = error.to_string();
    assert!(line.contains("no answer within 1.0s") && line.contains("refused"), "{line}");

    params.hosts.push(Host::new("localhost", good.port));
    Sql::connect(&params, "test", Instant::now() + Duration::from_secs(6)).unwrap();

    params.hosts = vec![host("name.invalid", 5432)];
    expect_error(Sql::connect(&params, "test", soon()), ErrorKind::Unreachable, "resolve");
}

#[test]
fn a_standby_is_passed_over_when_writes_are_wanted() {
    let primary = Server::start(&["wal_level=logical"]);
    let standby = primary.start_standby();
    let mut params = params(standby.port, "postgres");
    expect_error(Sql::connect(&params, "test", soon()), ErrorKind::Unreachable, "is a standby");

    params.target = TargetSession::Any;
    let mut on_standby = connect(&params);
    let identity = Identity::inspect(&mut on_standby, soon()).unwrap();
    assert!(identity.in_recovery && on_standby.about().in_recovery);

    params.target = TargetSession::ReadWrite;
    params.hosts.push(Host::new("127.0.0.1", primary.port));
    let mut on_primary = connect(&params);
    let of_primary = Identity::inspect(&mut on_primary, soon()).unwrap();
    assert!(!of_primary.in_recovery);
    assert_eq!(of_primary.system_identifier, identity.system_identifier);
    assert_eq!((of_primary.timeline, identity.timeline), (1, 1));
    assert_eq!(of_primary.wal_sender_timeout, Some(Duration::from_secs(60)));
    of_primary.check_wal_level().unwrap();

    // Right after the promotion, with no checkpoint yet, the timeline is the new one.
    run(&mut on_standby, "SELECT pg_promote(true, 20)");
    super::wait_until("the standby is promoted", || {
        Identity::inspect(&mut on_standby, soon()).unwrap().timeline == 2
    });
    assert!(!Identity::inspect(&mut on_standby, soon()).unwrap().in_recovery);

    run(&mut on_primary, "ALTER ROLE postgres SET default_transaction_read_only = on");
    params.hosts.remove(0);
    let mut by_default = connect(&params);
    run(&mut by_default, "CREATE PUBLICATION of_a_session_that_is_read_only_by_default");
}

#[test]
fn a_server_that_falls_silent_within_a_query_costs_the_deadline_and_no_more() {
    for host in ["127.0.0.1", shared().folder.to_str().unwrap()] {
        let mut params = params(shared().port, "postgres");
        params.hosts[0].name = host.into();
        let mut sql = connect(&params);
        let pid = sql.about().backend_pid;
        signal("-STOP", pid);
        let started = Instant::now();
        let result = sql.rows("ask", "SELECT 1", started + Duration::from_millis(700));
        let took = started.elapsed();
        let usable = sql.is_usable();
        drop(sql);
        let closed = started.elapsed() - took;
        signal("-CONT", pid);
        expect_error(result, ErrorKind::Unreachable, "no answer within 0.7s");
        assert!(!usable);
        assert!(took < Duration::from_millis(1500), "{host}: {took:?}");
        assert!(closed < Duration::from_millis(1500), "{host}: {closed:?}");
    }
}

#[test]
fn a_stopped_postmaster_does_not_hold_up_a_connect() {
    let server = Server::start(&[]);
    let pid = std::fs::read_to_string(server.folder.join("data/postmaster.pid")).unwrap();
    let pid = pid.lines().next().unwrap().parse().unwrap();
    signal("-STOP", pid);
    for host in ["127.0.0.1", server.folder.to_str().unwrap()] {
        let mut params = params(server.port, "postgres");
        params.hosts[0].name = host.into();
        let started = Instant::now();
        let result = Sql::connect(&params, "test", started + Duration::from_millis(500));
        let took = started.elapsed();
        expect_error(result, ErrorKind::Unreachable, "no answer within 0.5s");
        assert!(took < Duration::from_millis(1500), "{host}: {took:?}");
    }
    signal("-CONT", pid);
}

#[test]
fn the_server_ends_a_long_statement_even_when_we_are_gone() {
    let (_, mut sql) = database();
    let long = Instant::now() + Duration::from_secs(40);
    let set = sql
        .rows(
            "ask",
            "SELECT setting::int FROM pg_settings \
                               WHERE name = 'statement_timeout'",
            long,
        )
        .unwrap();
    let millis: u64 = set[0].parse(0).unwrap();
    assert!((38_000..40_000).contains(&millis), "{millis}");
    assert_eq!(value(&mut sql, "SHOW statement_timeout"), "30s", "and back again");
    // Ours ends first here, and the connection with it.
    let short = Instant::now() + Duration::from_millis(300);
    let result = sql.rows("ask", "SELECT pg_sleep(5)", short);
    expect_error(result, ErrorKind::Unreachable, "no answer within 0.3s");
    assert!(!sql.is_usable());
    let again = sql.rows("ask", "SELECT 1", soon());
    expect_error(again, ErrorKind::Unreachable, "connection closed");

    // On a Unix socket the server ends it, and the connection stays.
    let mut params = params(shared().port, "postgres");
    params.hosts[0].name = shared().folder.to_str().unwrap().into();
    let mut sql = connect(&params);
    let started = Instant::now();
    let result = sql.rows("ask", "SELECT pg_sleep(5)", started + Duration::from_millis(300));
    assert!(started.elapsed() < Duration::from_millis(1500));
    expect_error(result, ErrorKind::Unreachable, "SQLSTATE 57014");
    assert_eq!(value(&mut sql, "SELECT 1"), "1");
}

#[test]
fn a_refused_statement_leaves_the_connection_usable_and_a_lost_one_does_not() {
    let (params, mut sql) = database();
    let result = sql.rows("ask", "SELECT nonsense FROM nowhere", soon());
    expect_error(result, ErrorKind::Setup, "SQLSTATE 42P01");
    let result = sql.rows("ask", "SELECT 'top secret'::int", soon());
    let Err(error) = &result else { panic!("cast text to a number") };
    assert!(!error.to_string().contains("top secret"), "{error}");
    expect_error(result, ErrorKind::Setup, "refused a value (SQLSTATE 22P02)");
    assert!(sql.is_usable());

    let mut other = connect(&params);
    let pid = sql.about().backend_pid;
    run(&mut other, &format!("SELECT pg_terminate_backend({pid})"));
    super::wait_until("the backend is gone", || {
        value(&mut other, &format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"))
            == "0"
    });
    let result = sql.rows("ask", "SELECT 1", soon());
    let Err(error) = result else { panic!("asked a backend that is gone") };
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(!sql.is_usable());
}

#[test]
fn rows_hidden_by_a_policy_are_an_error() {
    let (mut params, mut sql) = database();
    run(
        &mut sql,
        "CREATE TABLE public.t (id text); INSERT INTO public.t VALUES ('a'); \
                   ALTER TABLE public.t ENABLE ROW LEVEL SECURITY; CREATE ROLE reader LOGIN; \
                   GRANT SELECT ON public.t TO reader",
    );
    params.user = "reader".into();
    let result = connect(&params).rows("read", "SELECT * FROM public.t", soon());
    expect_error(result, ErrorKind::Setup, "row-level security");
}

#[test]
fn tls_is_spoken_as_far_as_sslmode_asks_for_it() {
    let server = Server::start_with_tls();
    let certificate = server.folder.join("certificate.pem");
    let plain = params(shared().port, "postgres");
    let mut tls = params(server.port, "postgres");
    run(&mut connect(&tls), "CREATE ROLE with_password LOGIN PASSWORD 'right'");
    let is_tls = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

    // With a password and a certificate, SCRAM binds the one to the other.
    tls.user = "with_password".into();
    tls.password = Some(Secret::new("right"));
    for (mode, root) in [
        (SslMode::Prefer, None),
        (SslMode::Require, None),
        (SslMode::VerifyFull, Some(certificate)),
    ] {
        tls.hosts[0].name = "localhost".into();
        (tls.ssl_mode, tls.ssl_root_cert) = (mode, root);
        let mut sql = connect(&tls);
        assert_eq!(value(&mut sql, is_tls), "t", "{mode:?}");
        let large = value(&mut sql, "SELECT repeat('x', 3000000)");
        assert_eq!(large.len(), 3_000_000);

        let pid = sql.about().backend_pid;
        signal("-STOP", pid);
        let started = Instant::now();
        let result = sql.rows("ask", "SELECT 1", started + Duration::from_millis(500));
        drop(sql);
        let took = started.elapsed();
        signal("-CONT", pid);
        expect_error(result, ErrorKind::Unreachable, "no answer within 0.5s");
        assert!(took < Duration::from_secs(3), "{mode:?}: {took:?}");
    }
    tls.hosts[0].name = "127.0.0.1".into();
    let hint = expect_error(Sql::connect(&tls, "test", soon()), ErrorKind::Setup, "TLS handshake");
    assert!(hint.contains("sslmode=verify-ca"), "{hint}");

    let mut without = plain.clone();
    without.ssl_mode = SslMode::Prefer;
    assert_eq!(value(&mut connect(&without), is_tls), "f");
    without.ssl_mode = SslMode::Require;
    let refused = Sql::connect(&without, "test", soon());
    let hint = expect_error(refused, ErrorKind::Setup, "server does not offer TLS");
    assert!(hint.contains("sslmode"), "{hint}");
}
