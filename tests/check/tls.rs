use super::checked::check;
use super::support::certificates::{Certificates, Terminator};
use super::support::postgres::give_to_server;
use super::support::program::Program;
use super::support::sample;
use super::support::stage::Stage;

/// Goal: all three parties over TLS, for a stream as well as for the check, and each certificate
/// that is not right is told with what mends it. Redis and ClickHouse are behind a party that ends
/// TLS for them.
#[test]
fn certificates_that_are_right_and_wrong() {
    let certificates = Certificates::make();
    let install = |name: &str, stage: &Stage| {
        for end in ["crt", "key"] {
            let to = stage.postgres.data().join(format!("server.{end}"));
            std::fs::copy(certificates.file(&format!("{name}.{end}")), &to).unwrap();
            give_to_server(&to);
        }
    };
    let mut stage = Stage::own();
    install("good", &stage);
    stage.postgres.set("ssl", "on");
    stage.postgres.restart(super::support::postgres::Stop::Fast);

    let before = |port: u16, name: &str| Terminator::start(port, &certificates, name);
    let (clickhouse, redis) =
        (before(stage.clickhouse.port(), "good"), before(stage.redis.port(), "good"));
    let (ca, postgres) = (certificates.file("ca.crt"), stage.postgres.port());
    let url = |root: &str| {
        format!(
            "postgresql://postgres@localhost:{postgres}/postgres?sslmode=verify-full&sslrootcert={root}"
        )
    };
    let right = stage
        .settings_of_defaults()
        .without("RUN_REPLICATION_ENABLED")
        .without("REDIS_TLS_DISABLED")
        .with("SESSION_REPLICATION_SLOT_FAILOVER", 0)
        .with("SSL_CERT_FILE", &ca)
        .with("DATABASE_URL", url(&ca))
        .with("REDIS_HOST", "localhost")
        .with("REDIS_PORT", redis.port())
        .with(
            "SESSION_REPLICATION_CLICKHOUSE_URL",
            format!("https://localhost:{}", clickhouse.port()),
        );
    let checked = check(&right);
    checked.expect_sound();
    checked.expect("ok", &format!("TLS: the connection to `localhost:{postgres}"));
    checked.expect("ok", "TLS: the connection to https://localhost");
    checked.expect("ok", "can hold it, over TLS");
    let mut program = Program::start(&right);
    program.wait_streaming(&["sessions"]);
    stage.postgres.insert("Session", &sample::session("s1"));
    stage.settle(&mut program, &["sessions"]);
    assert_eq!(stage.clickhouse.count("sessions_v1", "session_id = 's1'"), 1);
    program.stop();

    // Nobody knows the authority.
    let other = certificates.file("other.crt");
    let checked =
        check(&right.clone().with("SSL_CERT_FILE", &other).with("DATABASE_URL", url(&other)));
    for (about, hint) in [
        ("Postgres: ", "sslrootcert"),
        ("ClickHouse: ", "SSL_CERT_FILE"),
        ("leader lock: ", "SSL_CERT_FILE"),
    ] {
        let finding = checked.expect("problem", about);
        assert!(finding.text.contains("UnknownIssuer"), "{finding:?}");
        assert!(finding.hint.contains(hint), "{finding:?}");
    }

    // Another host's, and one that has had its time.
    for (name, cause, hint) in [
        ("elsewhere", "not valid for name", "Use the host name of ClickHouse's certificate"),
        ("expired", "xpired", "Renew ClickHouse's certificate"),
    ] {
        let (clickhouse, redis) =
            (before(stage.clickhouse.port(), name), before(stage.redis.port(), name));
        install(name, &stage);
        stage.postgres.restart(super::support::postgres::Stop::Fast);
        let wrong = right.clone().with("REDIS_PORT", redis.port()).with(
            "SESSION_REPLICATION_CLICKHOUSE_URL",
            format!("https://localhost:{}", clickhouse.port()),
        );
        let checked = check(&wrong);
        for about in ["Postgres: ", "ClickHouse: ", "leader lock: "] {
            let finding = checked.expect("problem", about);
            assert!(finding.text.contains(cause), "{name}: {finding:?}");
        }
        let finding = checked.expect("problem", "ClickHouse: ");
        assert!(finding.hint.contains(hint), "{finding:?}");
        // Encryption alone is to be had with it, for whoever asks for no more.
        let unchecked = wrong.with(
            "DATABASE_URL",
            format!("postgresql://postgres@localhost:{postgres}/postgres?sslmode=require"),
        );
        check(&unchecked).expect("ok", "TLS: the connection to `localhost:");
    }
}
