use std::net::TcpListener;

use super::checked::{Bench, assignment, check};
use super::support::program::Program;
use super::support::redis::Redis;
use super::support::stage::{SESSIONS_SLOT, Stage};

fn bench() -> Bench {
    let stage = Stage::own();
    let settings = stage.settings_of_defaults().without("RUN_REPLICATION_ENABLED");
    Bench { stage, settings }
}

#[test]
fn the_lock_the_port_and_the_variables() {
    let mut bench = bench();
    let right = bench.settings.clone();
    check(&right).expect_sound();
    let mut client = bench.stage.redis.client();
    let mut redis = |words: &[&str]| {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.exec(&mut client).unwrap();
    };

    let finding = check(&right.clone().with("REDIS_PORT", 1)).expect("problem", "leader lock");
    assert!(finding.hint.contains("RUN_REPLICATION_REDIS_PORT (or REDIS_HOST"), "{finding:?}");

    // TLS is what the variables say unless told otherwise.
    let finding =
        check(&right.clone().without("REDIS_TLS_DISABLED")).expect("problem", "leader lock");
    let (name, value) = assignment(&finding.hint).expect("it names the variable");
    check(&right.clone().without("REDIS_TLS_DISABLED").with(name, value)).expect_sound();

    // A replica answers, and takes nothing.
    redis(&["REPLICAOF", "127.0.0.1", "1"]);
    let finding = check(&right).expect("problem", "READONLY");
    assert!(finding.hint.contains("at the primary"), "{finding:?}");
    let primary = Redis::start();
    check(&right.clone().with("REDIS_PORT", primary.port())).expect_sound();
    redis(&["REPLICAOF", "NO", "ONE"]);

    // A password, and a user without the right to the key.
    redis(&["ACL", "SETUSER", "someone", "on", ">secret", "~other", "+@all"]);
    let wrong = right.clone().with("REDIS_USERNAME", "someone").with("REDIS_PASSWORD", "wrong");
    let finding = check(&wrong).expect("problem", "refused");
    assert!(finding.hint.contains("RUN_REPLICATION_REDIS_PASSWORD"), "{finding:?}");
    assert!(!format!("{finding:?}").contains("wrong"), "no secret is told");
    bench.settings = wrong.with("REDIS_PASSWORD", "secret");
    bench.case("problem", "NOPERM", |_| ());
    bench.settings = right.clone();

    // The user of the README is enough.
    redis(&["ACL", "SETUSER", "least", "on", ">secret", "~*-replication:*", "-@all"]);
    redis(&["ACL", "SETUSER", "least", "+evalsha", "+eval", "+get", "+set", "+del", "+pttl"]);
    let least = right.clone().with("REDIS_USERNAME", "least").with("REDIS_PASSWORD", "secret");
    check(&least).expect_sound();
    let mut program = Program::start(&least);
    program.wait_streaming(&["sessions"]);
    program.stop();
    bench.stage.postgres.reset();
    bench.stage.clickhouse.reset();

    // Set by hand, as some do to stop a service.
    let key = format!(
        "sessions-replication:logical-replication-client:logical-replication-client:{SESSIONS_SLOT}"
    );
    bench.case("warning", "without a TTL", |bench| {
        redis::cmd("SET").arg(&key).arg("x").exec(&mut bench.stage.redis.client()).unwrap();
    });

    // Somebody has the port.
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let at = taken.local_addr().unwrap().to_string();
    drop_connections(taken);
    let finding =
        check(&right.clone().with("REPLICATION_HTTP_LISTEN", at)).expect("problem", "HTTP port");
    assert!(finding.hint.starts_with("Set REPLICATION_HTTP_LISTEN to"), "{finding:?}");
    check(&right.clone().with("REPLICATION_HTTP_LISTEN", "127.0.0.1:0")).expect_sound();

    // A misspelt variable has no effect, which nobody would notice.
    let misspelt = right.clone().with("SESSION_REPLICATION_FLUSH_BATCHSIZE", 5);
    let finding = check(&misspelt).expect("warning", "SESSION_REPLICATION_FLUSH_BATCHSIZE");
    assert!(finding.hint.contains("Correct or remove"), "{finding:?}");
    check(&misspelt.without("SESSION_REPLICATION_FLUSH_BATCHSIZE")).expect_sound();
}

/// A stranger who answers nothing.
fn drop_connections(listener: TcpListener) {
    std::thread::spawn(move || listener.incoming().for_each(drop));
}
