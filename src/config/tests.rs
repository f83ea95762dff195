//! Goal: every default, every problem, every warning, and no secret in any of them.
//! Method: a list of variables goes in; what differs from the defaults, or the problems, come out.

use std::collections::BTreeMap;

use super::*;
use crate::clickhouse::params::InsertStrategy;

/// The least that turns runs on.
const RUNS: [(&str, &str); 3] = [
    ("DATABASE_URL", "postgres://u:hunter2@pg/db"),
    ("RUN_REPLICATION_ENABLED", "1"),
    ("RUN_REPLICATION_CLICKHOUSE_URL", "http://u:hunter2@ch:8123"),
];

const SESSIONS: [(&str, &str); 3] = [
    ("DATABASE_URL", "postgres://u:hunter2@pg/db"),
    ("SESSION_REPLICATION_ENABLED", "true"),
    ("SESSION_REPLICATION_CLICKHOUSE_URL", "http://ch:8123"),
];

const WEBHOOKS: [(&str, &str); 3] = [
    ("WEBHOOK_DATABASE_URL", "postgres://u:hunter2@pg2/db"),
    ("WEBHOOK_DELIVERIES_REPLICATION_ENABLED", "1"),
    ("WEBHOOK_DELIVERIES_REPLICATION_CLICKHOUSE_URL", "http://ch:8123"),
];

fn read(base: &[(&str, &str)], more: &[(&str, &str)]) -> Result<Config, Problems> {
    let vars: BTreeMap<&str, &str> = base.iter().chain(more).copied().collect();
    let read = Config::from_lookup(|name| vars.get(name).map(|value| value.to_string()));
    // Holds in every test, whatever it is about.
    let said = match &read {
        Ok(config) => format!("{config:?} {}", config.warnings.join(" ")),
        Err(problems) => format!("{problems} {problems:?}"),
    };
    assert!(!said.contains("hunter2"), "{said}");
    read
}

#[track_caller]
fn good(base: &[(&str, &str)], more: &[(&str, &str)]) -> Config {
    read(base, more).unwrap_or_else(|problems| panic!("{more:?}: {problems}"))
}

#[track_caller]
fn runs(more: &[(&str, &str)]) -> ServiceConfig {
    let config = good(&RUNS, more);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    config.services.into_iter().next().expect("runs is on")
}

#[track_caller]
fn check(vars: &[(&str, &str)], expected: &[&str]) {
    let problems = match read(&RUNS, vars) {
        Ok(_) => panic!("{vars:?} is no problem"),
        Err(problems) => problems,
    };
    let found: Vec<String> = problems.list.iter().map(Problem::to_string).collect();
    assert_eq!(found, expected);
}

#[track_caller]
fn check_warnings(vars: &[(&str, &str)], expected: &[&str]) {
    assert_eq!(good(&RUNS, vars).warnings, expected);
}

fn named(name: &str) -> ServiceName {
    ServiceName::find(name).expect("it is a service")
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn defaults_of_runs() {
    let config = good(&RUNS, &[]);
    assert_eq!(config.http_listen, Some("127.0.0.1:9465".parse().unwrap()));
    assert_eq!(config.shutdown_timeout, ms(30_000));
    assert_eq!(config.warnings, [""; 0]);
    let reason = "`SESSION_REPLICATION_ENABLED` is not 1".to_string();
    assert_eq!(config.off.first(), Some(&(named("sessions"), reason)));
    let [service] = config.services.as_slice() else { panic!("one service is on") };
    assert_eq!(service.name, named("runs"));
    assert_eq!(service.postgres.to_string(), "u@pg:5432/db");
    assert_eq!(service.slot, "task_runs_to_clickhouse_v1");
    assert_eq!(service.publication, "task_runs_to_clickhouse_v1_publication");
    assert!(service.binary && service.create_tables);
    assert!(matches!(service.lock.kind, LockKind::Postgres));
    assert_eq!(service.lock.term, ms(30_000));
    assert_eq!(service.lock.extend_every, ms(10_000));
    assert_eq!(service.lock.additional, ms(10_000));
    assert_eq!(service.lock.retry_every, ms(500));
    assert_eq!(service.flush.rows_max, 100);
    assert_eq!(service.flush.age_max, ms(1000));
    assert_eq!(service.flush.concurrency, 2);
    assert_eq!(service.flush.buffer_bytes_max, 64 << 20);
    assert_eq!(service.flush.retries_before_outage, 3);
    assert_eq!((service.flush.delay_min, service.flush.delay_max), (ms(100), ms(2000)));
    assert_eq!(service.strategy, Strategy::Reconnect);
    let reconnect = ReconnectConfig { delay_min: ms(1000), delay_max: ms(60_000), attempts_max: 0 };
    assert_eq!(service.reconnect, reconnect);
    assert_eq!(service.ack_interval, ms(10_000));
    assert_eq!(service.receive_timeout, ms(30_000));
    assert_eq!(service.kind, ServiceKind::Runs { payloads: true, fingerprints: true });
    assert_eq!(service.log_level, log::LevelFilter::Info);
    assert_eq!(service.clickhouse_log_level, log::LevelFilter::Info);
    let clickhouse = &service.clickhouse;
    assert_eq!(clickhouse.to_string(), "http://ch:8123 as u");
    assert_eq!((clickhouse.keep_alive, clickhouse.keep_alive_idle), (false, None));
    assert_eq!(clickhouse.connections_max, 10);
    assert_eq!(clickhouse.insert_strategy, InsertStrategy::Insert);
}

#[test]
fn defaults_of_sessions() {
    let config = good(&SESSIONS, &[]);
    let [service] = config.services.as_slice() else { panic!("one service is on") };
    assert_eq!(service.name, named("sessions"));
    assert_eq!(service.slot, "sessions_to_clickhouse_v1");
    assert_eq!(service.publication, "sessions_to_clickhouse_v1_publication");
    assert_eq!(service.flush.concurrency, 1);
    assert_eq!(service.kind, ServiceKind::Sessions);
    assert_eq!(config.off.first().map(|(name, _)| name), Some(&named("runs")));
    assert_eq!(
        service.to_string(),
        "`sessions`: slot `sessions_to_clickhouse_v1`, publication \
         `sessions_to_clickhouse_v1_publication`, from u@pg:5432/db to http://ch:8123 as default, \
         lock postgres, strategy reconnect"
    );
}

#[test]
fn defaults_of_webhooks() {
    let config = good(&WEBHOOKS, &[("REDIS_HOST", "r")]);
    let [service] = config.services.as_slice() else { panic!("one service is on") };
    assert_eq!((service.name.clone(), service.kind), (named("webhooks"), ServiceKind::Webhooks));
    assert_eq!(service.postgres.to_string(), "u@pg2:5432/db");
    assert_eq!(service.slot, "webhook_deliveries_to_clickhouse_v1");
    assert_eq!(service.publication, "webhook_deliveries_to_clickhouse_v1_publication");
    assert_eq!(service.flush.concurrency, 1);
    assert_eq!(service.lock.key_prefix, "webhook-deliveries-replication:");
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn services_stand_in_the_order_of_their_table() {
    let config = good(&RUNS, &[&WEBHOOKS[..], &SESSIONS].concat());
    let names: Vec<&str> = config.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, SERVICES.each_ref().map(|service| service.name));
    assert!(config.off.is_empty());
}

#[test]
fn every_setting_has_its_effect() {
    let service = runs(&[
        ("RUN_REPLICATION_SLOT_NAME", "s"),
        ("RUN_REPLICATION_PUBLICATION_NAME", "P ü"),
        ("RUN_REPLICATION_MAX_FLUSH_CONCURRENCY", "4"),
        ("RUN_REPLICATION_FLUSH_INTERVAL_MS", " 1e3 "),
        ("RUN_REPLICATION_FLUSH_BATCH_SIZE", "50000"),
        ("RUN_REPLICATION_MAX_BUFFER_BYTES", "1000000"),
        ("RUN_REPLICATION_LEADER_LOCK_TIMEOUT_MS", "3000"),
        ("RUN_REPLICATION_LEADER_LOCK_EXTEND_INTERVAL_MS", "1499"),
        ("RUN_REPLICATION_LEADER_LOCK_ADDITIONAL_TIME_MS", "0"),
        ("RUN_REPLICATION_LEADER_LOCK_RETRY_INTERVAL_MS", "50"),
        ("RUN_REPLICATION_ACK_INTERVAL_SECONDS", "2"),
        ("RUN_REPLICATION_LOG_LEVEL", "debug"),
        ("RUN_REPLICATION_CLICKHOUSE_LOG_LEVEL", "log"),
        ("RUN_REPLICATION_KEEP_ALIVE_ENABLED", "1"),
        ("RUN_REPLICATION_KEEP_ALIVE_IDLE_SOCKET_TTL_MS", "2500"),
        ("RUN_REPLICATION_MAX_OPEN_CONNECTIONS", "7"),
        ("RUN_REPLICATION_INSERT_STRATEGY", "insert_async"),
        ("RUN_REPLICATION_INSERT_MAX_RETRIES", "5"),
        ("RUN_REPLICATION_INSERT_BASE_DELAY_MS", "10"),
        ("RUN_REPLICATION_INSERT_MAX_DELAY_MS", "10"),
        ("RUN_REPLICATION_DISABLE_PAYLOAD_INSERT", "true"),
        ("RUN_REPLICATION_DISABLE_ERROR_FINGERPRINTING", "1"),
        ("RUN_REPLICATION_INITIAL_BACKFILL", "0"),
        ("RUN_REPLICATION_ERROR_STRATEGY", "exit"),
        ("RUN_REPLICATION_EXIT_DELAY_MS", "0"),
        ("RUN_REPLICATION_EXIT_CODE", "255"),
        ("REPLICATION_RECONNECT_INITIAL_DELAY_MS", "5"),
        ("REPLICATION_RECONNECT_MAX_DELAY_MS", "6"),
        ("REPLICATION_RECONNECT_MAX_ATTEMPTS", "7"),
        ("REPLICATION_RECEIVE_TIMEOUT_MS", "900"),
        ("REPLICATION_CREATE_TABLES", "0"),
        ("REPLICATION_BINARY", "false"),
    ]);
    assert_eq!((service.slot.as_str(), service.publication.as_str()), ("s", "P ü"));
    assert_eq!(service.flush.concurrency, 4);
    assert_eq!(service.flush.age_max, ms(1000));
    assert_eq!(service.flush.rows_max, 50_000);
    assert_eq!(service.flush.buffer_bytes_max, 1_000_000);
    assert_eq!((service.lock.term, service.lock.extend_every), (ms(3000), ms(1499)));
    assert_eq!((service.lock.additional, service.lock.retry_every), (ms(0), ms(50)));
    assert_eq!(service.ack_interval, ms(2000));
    assert_eq!(service.log_level, log::LevelFilter::Debug);
    assert_eq!(service.clickhouse_log_level, log::LevelFilter::Info);
    assert!(service.clickhouse.keep_alive);
    assert_eq!(service.clickhouse.keep_alive_idle, Some(ms(2500)));
    assert_eq!(service.clickhouse.connections_max, 7);
    assert_eq!(service.clickhouse.insert_strategy, InsertStrategy::InsertAsync);
    assert_eq!(service.flush.retries_before_outage, 5);
    assert_eq!((service.flush.delay_min, service.flush.delay_max), (ms(10), ms(10)));
    assert_eq!(service.kind, ServiceKind::Runs { payloads: false, fingerprints: false });
    assert_eq!(service.strategy, Strategy::Exit { delay: ms(0), code: 255 });
    let reconnect = ReconnectConfig { delay_min: ms(5), delay_max: ms(6), attempts_max: 7 };
    assert_eq!(service.reconnect, reconnect);
    assert_eq!(service.receive_timeout, ms(900));
    let config = good(&RUNS, &[("REPLICATION_SHUTDOWN_TIMEOUT_MS", "8")]);
    assert_eq!(config.shutdown_timeout, ms(8));
    assert!(!service.create_tables && !service.binary);
    assert_eq!(service.initial_backfill, InitialBackfill::Off);

    assert_eq!(runs(&[("RUN_REPLICATION_ERROR_STRATEGY", "log")]).strategy, Strategy::Log);
    for (text, level) in [("error", log::LevelFilter::Error), ("warn", log::LevelFilter::Warn)] {
        assert_eq!(runs(&[("RUN_REPLICATION_LOG_LEVEL", text)]).log_level, level);
    }
}

#[test]
fn http_is_off_when_set_to_nothing() {
    let listen = |text| good(&RUNS, &[("REPLICATION_HTTP_LISTEN", text)]).http_listen;
    assert_eq!(listen(""), None);
    assert_eq!(listen("[::]:80"), Some("[::]:80".parse().unwrap()));
}

#[test]
fn an_empty_value_counts_as_unset() {
    let service = runs(&[
        ("RUN_REPLICATION_FLUSH_BATCH_SIZE", ""),
        ("RUN_REPLICATION_KEEP_ALIVE_IDLE_SOCKET_TTL_MS", " "),
        ("RUN_REPLICATION_LEGACY_DATABASE_URL", ""),
        ("REDIS_HOST", ""),
        ("RUN_REPLICATION_RUN_OPS_DATABASE_URL", ""),
    ]);
    assert_eq!(service.flush.rows_max, 100);
    assert_eq!(service.postgres.to_string(), "u@pg:5432/db");
    assert!(matches!(service.lock.kind, LockKind::Postgres));
}

#[test]
fn each_service_may_have_a_database_of_its_own() {
    let legacy = ("RUN_REPLICATION_LEGACY_DATABASE_URL", "postgres://u@legacy");
    let own = ("RUN_REPLICATION_DATABASE_URL", "postgres://u@own");
    assert_eq!(runs(&[legacy]).postgres.to_string(), "u@legacy:5432/u");
    assert_eq!(runs(&[legacy, own]).postgres.to_string(), "u@own:5432/u");
    let own = ("SESSION_REPLICATION_DATABASE_URL", "postgres://u@own");
    let config = good(&SESSIONS, &[legacy, own]);
    assert_eq!(config.services.first().unwrap().postgres.to_string(), "u@own:5432/u");
}

#[test]
fn redis_comes_from_its_own_variables_or_the_general_ones() {
    let redis = |more: &[(&str, &str)]| match runs(more).lock.kind {
        LockKind::Redis(redis) => redis,
        LockKind::Postgres => panic!("{more:?} name no Redis"),
    };
    let params = redis(&[("REDIS_HOST", "a")]);
    assert_eq!((params.to_string().as_str(), params.tls), ("a:6379", true));
    assert_eq!((params.username, params.password), (None, None));
    let general = [
        ("REDIS_HOST", "a"),
        ("REDIS_PORT", "1"),
        ("REDIS_USERNAME", "u"),
        ("REDIS_PASSWORD", " hunter2"),
        ("REDIS_TLS_DISABLED", "true"),
    ];
    let params = redis(&general);
    assert_eq!((params.to_string().as_str(), params.tls), ("a:1", false));
    assert_eq!(params.username.as_deref(), Some("u"));
    assert_eq!(params.password.unwrap().expose(), " hunter2");
    let own = [
        ("RUN_REPLICATION_REDIS_HOST", "b"),
        ("RUN_REPLICATION_REDIS_PORT", "2"),
        ("RUN_REPLICATION_REDIS_USERNAME", "v"),
        ("RUN_REPLICATION_REDIS_PASSWORD", "hunter22"),
        ("RUN_REPLICATION_REDIS_TLS_DISABLED", "0"),
    ];
    let all: Vec<_> = general.into_iter().chain(own).collect();
    let params = redis(&all);
    assert_eq!((params.to_string().as_str(), params.tls), ("b:2", true));
    assert_eq!(params.username.as_deref(), Some("v"));
    assert_eq!(params.password.unwrap().expose(), "hunter22");

    let postgres = runs(&[("REDIS_HOST", "a b"), ("REPLICATION_LEADER_LOCK", "postgres")]);
    assert!(matches!(postgres.lock.kind, LockKind::Postgres));
}

#[test]
fn a_bad_value_is_named_with_what_is_accepted() {
    for (name, value, expected) in [
        ("RUN_REPLICATION_ENABLED", "yes", "1, 0, true or false"),
        ("REPLICATION_BINARY", "\"1\"", "1, 0, true or false"),
        ("RUN_REPLICATION_FLUSH_BATCH_SIZE", "0", "a whole number from 1 to 10000000"),
        ("RUN_REPLICATION_FLUSH_BATCH_SIZE", "100x", "a whole number from 1 to 10000000"),
        ("RUN_REPLICATION_FLUSH_INTERVAL_MS", "-1", "a whole number from 1 to 3600000"),
        ("RUN_REPLICATION_EXIT_CODE", "256", "a whole number from 0 to 255"),
        ("RUN_REPLICATION_KEEP_ALIVE_IDLE_SOCKET_TTL_MS", "0", "a whole number from 1 to 3600000"),
        ("RUN_REPLICATION_ERROR_STRATEGY", "Exit", "reconnect, exit or log"),
        ("RUN_REPLICATION_INSERT_STRATEGY", "async", "insert or insert_async"),
        ("RUN_REPLICATION_LOG_LEVEL", "trace", "log, error, warn, info or debug"),
        ("RUN_REPLICATION_SLOT_NAME", "Runs", "1 to 63 characters of a-z, 0-9 and _"),
        (
            "REPLICATION_HTTP_LISTEN",
            ":80",
            "an IP address and a port such as 127.0.0.1:9465, or nothing for off",
        ),
        ("REPLICATION_LEADER_LOCK", "none", "redis or postgres"),
        ("RUN_REPLICATION_LEGACY_ORIGIN_GENERATION", "1", "0"),
    ] {
        check(&[(name, value)], &[&format!("{name}: expected {expected}, got `{value}`")]);
    }
    let long = "x".repeat(64);
    for (name, expected) in [
        ("RUN_REPLICATION_SLOT_NAME", "1 to 63 characters of a-z, 0-9 and _"),
        ("RUN_REPLICATION_PUBLICATION_NAME", "a name of 1 to 63 bytes"),
    ] {
        check(&[(name, &long)], &[&format!("{name}: expected {expected}, got `{long}`")]);
    }
    check(
        &[("RUN_REPLICATION_SLOT_NAME", "\u{fffd}")],
        &["RUN_REPLICATION_SLOT_NAME: expected text in UTF-8"],
    );
}

#[test]
fn a_bad_url_is_named_without_its_password() {
    check(
        &[("DATABASE_URL", "postgres://u:hunter2@pg:x/db?sslmode=require&password=hunter2")],
        &["DATABASE_URL: expected postgres://user:password@host:5432/database, or libpq's \
           key=value pairs, got `postgres://u:***@pg:***/db?sslmode=require&password=***`: a port \
           is not a number from 1 to 65535"],
    );
    check(
        &[("RUN_REPLICATION_DATABASE_URL", "host=h password='hunter2")],
        &["RUN_REPLICATION_DATABASE_URL: expected \
             postgres://user:password@host:5432/database, or libpq's key=value pairs, got `***`: a \
             closing quote is missing"],
    );
    check(
        &[("RUN_REPLICATION_CLICKHOUSE_URL", "clickhouse://u:hun/ter2@ch:9000")],
        &["RUN_REPLICATION_CLICKHOUSE_URL: expected http://user:password@host:8123 or \
           https://user:password@host:8443, got `clickhouse://u:***@ch:9000`: walhouse does not \
           speak the native protocol: use the HTTP interface, usually port 8123"],
    );
    check(
        &[
            ("REDIS_HOST", "redis://:hunter2@redis:6379"),
            ("REDIS_PORT", "tcp://10.0.0.1:6379"),
            ("REDIS_PASSWORD", "hunter2\0"),
        ],
        &[
            "REDIS_HOST: expected a host name or an IP address, got `redis://:***@redis:6379`: \
             port, user and password go into variables of their own",
            "REDIS_PORT: expected a whole number from 1 to 65535, got `tcp://10.0.0.1:6379`",
            "REDIS_PASSWORD: expected text without NUL bytes",
        ],
    );
}

#[test]
fn what_is_missing_is_named() {
    check(&[("DATABASE_URL", "")], &["DATABASE_URL: not set: expected the URL of Postgres"]);
    check(
        &[("REPLICATION_LEADER_LOCK", "redis")],
        &["RUN_REPLICATION_REDIS_HOST: not set: expected a host, as `REPLICATION_LEADER_LOCK` \
           is redis"],
    );
}

#[test]
fn settings_that_contradict_each_other_are_named_both() {
    check(
        &[("RUN_REPLICATION_LEADER_LOCK_TIMEOUT_MS", "20000")],
        &["RUN_REPLICATION_LEADER_LOCK_EXTEND_INTERVAL_MS: expected less than half of \
           `RUN_REPLICATION_LEADER_LOCK_TIMEOUT_MS` (20000), got `10000`"],
    );
    check(
        &[("RUN_REPLICATION_INSERT_BASE_DELAY_MS", "3000")],
        &["RUN_REPLICATION_INSERT_MAX_DELAY_MS: expected at least \
           `RUN_REPLICATION_INSERT_BASE_DELAY_MS` (3000), got `2000`"],
    );
    check(
        &[("REPLICATION_RECONNECT_MAX_DELAY_MS", "999")],
        &["REPLICATION_RECONNECT_MAX_DELAY_MS: expected at least \
           `REPLICATION_RECONNECT_INITIAL_DELAY_MS` (1000), got `999`"],
    );
    let same_slot: Vec<_> = SESSIONS
        .into_iter()
        .chain([("SESSION_REPLICATION_SLOT_NAME", "task_runs_to_clickhouse_v1")])
        .collect();
    check(
        &same_slot,
        &["SESSION_REPLICATION_SLOT_NAME: expected another slot than \
           `RUN_REPLICATION_SLOT_NAME`, got `task_runs_to_clickhouse_v1`"],
    );
    // On another cluster it is another slot.
    let elsewhere = ("SESSION_REPLICATION_DATABASE_URL", "postgres://u@other/db");
    good(&RUNS, &[&same_slot[..], &[elsewhere]].concat());
}

#[test]
fn a_refused_value_is_not_compared() {
    check(
        &[
            ("RUN_REPLICATION_INSERT_BASE_DELAY_MS", "5000"),
            ("RUN_REPLICATION_INSERT_MAX_DELAY_MS", "x"),
            ("RUN_REPLICATION_LEADER_LOCK_TIMEOUT_MS", "x"),
            ("RUN_REPLICATION_LEADER_LOCK_EXTEND_INTERVAL_MS", "20000"),
        ],
        &[
            "RUN_REPLICATION_LEADER_LOCK_TIMEOUT_MS: expected a whole number from 100 to 3600000, \
             got `x`",
            "RUN_REPLICATION_INSERT_MAX_DELAY_MS: expected a whole number from 1 to 3600000, \
             got `x`",
        ],
    );
}

#[test]
fn every_problem_is_said_at_once_and_once() {
    let both: Vec<_> = SESSIONS
        .into_iter()
        .chain([
            ("DATABASE_URL", "mysql://u:hunter2@h"),
            ("SESSION_REPLICATION_EXIT_CODE", "a"),
            ("RUN_REPLICATION_EXIT_CODE", "b"),
        ])
        .collect();
    let problems = read(&RUNS, &both).unwrap_err();
    let names: Vec<&str> = problems.list.iter().map(|problem| problem.variable.as_str()).collect();
    assert_eq!(
        names,
        ["DATABASE_URL", "RUN_REPLICATION_EXIT_CODE", "SESSION_REPLICATION_EXIT_CODE"]
    );
    assert!(problems.to_string().starts_with("config: 3 problems\n    DATABASE_URL: expected "));
}

#[test]
fn no_service_at_all_is_a_problem() {
    check(
        &[("RUN_REPLICATION_CLICKHOUSE_URL", ""), ("REPLICATION_LEADER_LOCK", "x")],
        &["RUN_REPLICATION_ENABLED, SESSION_REPLICATION_ENABLED, \
           WEBHOOK_DELIVERIES_REPLICATION_ENABLED: expected at least one service, got none \
           (`runs`: `RUN_REPLICATION_CLICKHOUSE_URL` is not set; \
           `sessions`: `SESSION_REPLICATION_ENABLED` is not 1; \
           `webhooks`: `WEBHOOK_DELIVERIES_REPLICATION_ENABLED` is not 1)"],
    );
    assert!(read(&[], &[]).is_err());
}

#[test]
fn a_service_that_is_off_has_no_problems() {
    let config = good(
        &RUNS,
        &[
            ("SESSION_REPLICATION_CLICKHOUSE_URL", "nonsense"),
            ("SESSION_REPLICATION_DATABASE_URL", "nonsense"),
            ("SESSION_REPLICATION_EXIT_CODE", "nonsense"),
        ],
    );
    assert_eq!(config.services.len(), 1);
    let config = good(&RUNS, &[("SESSION_REPLICATION_ENABLED", "1")]);
    let reason = "`SESSION_REPLICATION_CLICKHOUSE_URL` is not set".to_string();
    assert_eq!(config.off.first(), Some(&(named("sessions"), reason)));
}

/// Goal: a table that runs of two databases come to is left to whoever reads both.
#[test]
fn two_sources_of_runs_are_refused_with_the_reason() {
    for value in ["1", "true"] {
        let problems = read(&RUNS, &[("RUN_OPS_SPLIT_ENABLED", value)]).unwrap_err();
        let [problem] = problems.list.as_slice() else { panic!("{problems}") };
        assert_eq!(problem.variable, "RUN_OPS_SPLIT_ENABLED");
        assert!(problem.text.contains("treat the runs of the other as deleted"), "{problem}");
    }
    for value in ["0", "false", ""] {
        good(&RUNS, &[("RUN_OPS_SPLIT_ENABLED", value)]);
    }
}

#[test]
fn rows_of_the_time_before_go_into_no_made_or_all_tables() {
    for (value, expected) in [
        ("0", InitialBackfill::Off),
        ("false", InitialBackfill::Off),
        ("1", InitialBackfill::Created),
        ("true", InitialBackfill::Created),
        ("", InitialBackfill::Created),
        ("existing", InitialBackfill::Existing),
    ] {
        let config = good(&RUNS, &[("RUN_REPLICATION_INITIAL_BACKFILL", value)]);
        assert_eq!(config.services[0].initial_backfill, expected, "{value}");
    }
}

#[test]
fn what_has_no_effect_is_said_where_it_may_be_missed() {
    check_warnings(
        &[
            ("RUN_REPLICATION_NEW_ENABLED", "1"),
            ("RUN_REPLICATION_RUN_OPS_DATABASE_URL", "postgres://u:hunter2@h"),
            ("RUN_REPLICATION_MAX_POISON_STRIPS_PER_BATCH", "1"),
        ],
        &[
            "`RUN_REPLICATION_MAX_POISON_STRIPS_PER_BATCH` has no effect: A row that ClickHouse \
             refuses is kept in full in a dead-letter table.",
            "`RUN_REPLICATION_RUN_OPS_DATABASE_URL` has no effect: Runs are replicated from one \
             source; a second one is not read.",
            "`RUN_REPLICATION_NEW_ENABLED` has no effect: Runs are replicated from one source; \
             a second one is not read.",
        ],
    );
    check_warnings(
        &[
            ("RUN_REPLICATION_INSERT_STRATEGY", "insert_async"),
            ("RUN_REPLICATION_WAIT_FOR_ASYNC_INSERT", "0"),
        ],
        &["`RUN_REPLICATION_WAIT_FOR_ASYNC_INSERT` has no effect: walhouse always waits for an \
           insert."],
    );
    check_warnings(
        &[
            ("RUN_REPLICATION_NEW_ENABLED", "disabled"),
            ("RUN_REPLICATION_WAIT_FOR_ASYNC_INSERT", "0"),
            ("RUN_REPLICATION_LEGACY_ORIGIN_GENERATION", "0"),
            ("REDIS_READER_HOST", "x"),
        ],
        &[],
    );
    // Of a service that is off, nothing is missed.
    assert_eq!(good(&SESSIONS, &[("RUN_REPLICATION_NEW_ENABLED", "1")]).warnings, [""; 0]);
}

#[test]
fn warnings_of_a_url_name_its_variable() {
    check_warnings(
        &[("DATABASE_URL", "postgres://u:hunter2@pg/db?pgbouncer=true"), SESSIONS[1], SESSIONS[2]],
        &["`DATABASE_URL`: `pgbouncer` says that there is a pooler in between: logical \
             replication needs a direct connection"],
    );
}

proptest::proptest! {
    /// Whatever is in the variables, the answer is a configuration or problems, and no password.
    #[test]
    fn no_value_can_panic(picks in proptest::collection::vec((0usize..200, 0usize..16), 0..12)) {
        const VALUES: [&str; 16] = [
            "",
            " ",
            "0",
            "1",
            "-1",
            "1e3",
            "1e999",
            "18446744073709551615",
            "18446744073709551616",
            "true",
            "\u{fffd}",
            "é\0\n",
            "://",
            "postgres://u:hunter2@h/x?hunter2=1@",
            "http://:hunter2@[",
            "redis",
        ];
        let names: Vec<String> = variables::all().flat_map(|variable| variable.names()).collect();
        let more: Vec<(&str, &str)> = picks
            .iter()
            .map(|(name, value)| {
                let (name, value) = (names[name % names.len()].as_str(), VALUES[*value]);
                // A publication or a user may have any name, and names are shown.
                let hides = name.ends_with("URL") || name.ends_with("PASSWORD");
                (name, if hides { value } else { value.split("hunter2").next().unwrap_or(value) })
            })
            .collect();
        let _ = read(&RUNS, &more);
    }
}
