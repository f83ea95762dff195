use std::net::{IpAddr, TcpListener};
use std::time::{Duration, Instant};

use walhouse::error::{Error, ErrorKind, Result};
use walhouse::postgres::advisory_lock::AdvisoryLock;
use walhouse::postgres::params::{Host, PostgresParams, TargetSession};
use walhouse::postgres::primary::{KnownServer, Primary, Resolve};
use walhouse::postgres::sql::Sql;
use walhouse::postgres::{Connection, StartupOptions};

use super::proxy::Proxy;
use super::server::Server;
use super::{connect, expect_error, params, run, soon, value, wait_until};

/// Far below the time of an attempt: nobody who hangs was waited for.
const AT_ONCE: Duration = Duration::from_secs(4);

fn among(ports: &[u16]) -> PostgresParams {
    let mut params = params(ports[0], "postgres");
    params.target = TargetSession::Any;
    params.hosts = ports.iter().map(|port| Host::new("127.0.0.1", *port)).collect();
    params
}

fn find(params: &PostgresParams, known: Option<KnownServer>) -> Result<(Primary, Sql)> {
    Primary::find(params, "test", known, soon(), || Ok(()))
}

fn port_of(found: &(Primary, Sql)) -> u16 {
    found.0.name().rsplit_once(':').unwrap().1.parse().unwrap()
}

/// Accepts, by the kernel, and never answers.
fn mute() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn refusing() -> u16 {
    mute().1
}

fn replication(primary: &Primary) -> Result<Connection> {
    let options = StartupOptions {
        application_name: "test".into(),
        replication: true,
        options: vec![],
        receive_timeout: Duration::from_secs(10),
    };
    primary.replication(&options, soon()).map(|(connection, _)| connection)
}

#[test]
fn the_primary_is_found_in_every_order_beside_standbys_and_hosts_that_hang_or_refuse() {
    let primary = Server::start(&["wal_level=logical"]);
    let standby = primary.start_standby();
    let (_mute, hangs) = mute();
    let others = [hangs, standby.port, refusing()];
    for place in 0..=others.len() {
        let mut ports = others.to_vec();
        ports.insert(place, primary.port);
        for target in [TargetSession::Any, TargetSession::ReadWrite] {
            let mut params = among(&ports);
            params.target = target;
            // Nobody is there: no route, or packets that vanish.
            params.hosts.insert(0, Host::new("192.0.2.1", 5432));
            let started_at = Instant::now();
            let mut found = find(&params, None).unwrap();
            let took = started_at.elapsed();
            assert!(took < AT_ONCE, "{took:?}");
            assert_eq!(port_of(&found), primary.port, "{ports:?}");
            assert_eq!(value(&mut found.1, "SELECT pg_is_in_recovery()"), "f");
            let mut second = found.0.sql("test", soon()).unwrap();
            let port = value(&mut second, "SELECT inet_server_port()");
            assert_eq!(port, primary.port.to_string());
            let stream = replication(&found.0).unwrap();
            assert_eq!(stream.server(), format!("127.0.0.1:{}", primary.port));
        }
    }

    // Without a primary it may pass by itself, and nobody who hangs makes it longer than it may be.
    let started_at = Instant::now();
    let deadline = started_at + Duration::from_secs(2);
    let nobody = Primary::find(&among(&others), "test", None, deadline, || Ok(()));
    let took = started_at.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    let Err(error) = &nobody else { panic!("found a primary among {others:?}") };
    let line = error.to_string();
    for cause in ["no answer within 2.0s", "server is a standby", "refused"] {
        assert!(line.contains(cause), "{line}");
    }
    let hint = expect_error(nobody, ErrorKind::Unreachable, "connect to Postgres database");
    assert!(hint.contains("all hosts"), "{hint}");

    // A stop does not wait for the deadline.
    let started_at = Instant::now();
    let stopped = || Err(Error::new(ErrorKind::Stopped, "stop"));
    let stopped = Primary::find(&among(&[hangs]), "test", None, soon(), stopped);
    expect_error(stopped, ErrorKind::Stopped, "stop");
    assert!(started_at.elapsed() < AT_ONCE);
}

#[test]
fn a_promotion_is_followed_and_the_old_primary_is_not_gone_back_to() {
    let old = Server::start(&["wal_level=logical"]);
    let new = old.start_standby();
    for ports in [[old.port, new.port], [new.port, old.port]] {
        assert_eq!(port_of(&find(&among(&ports), None).unwrap()), old.port);
    }
    let (before, mut sql) = find(&among(&[old.port, new.port]), None).unwrap();
    assert_eq!(before.identity().timeline, 1);
    let mut params = among(&[new.port]);
    let mut on_new = connect(&params);
    run(&mut on_new, "SELECT pg_promote(true, 20)");

    // Both say now that they are the primary.
    let both = [[old.port, new.port], [new.port, old.port]];
    for known in [None, Some(before.identity())] {
        for ports in &both {
            let found = find(&among(ports), known).unwrap();
            assert_eq!(port_of(&found), new.port);
            assert_eq!(found.0.identity().timeline, 2);
        }
    }
    let after = find(&among(&both[0]), None).unwrap().0.identity();
    assert_eq!(after.system_identifier, before.identity().system_identifier);

    // The new one is gone for a moment: what was streamed from it is not looked for elsewhere.
    let deadline = Instant::now() + Duration::from_secs(2);
    let without = among(&[old.port, refusing()]);
    let result = Primary::find(&without, "test", Some(after), deadline, || Ok(()));
    let hint = expect_error(result, ErrorKind::Unreachable, "left behind");
    assert!(hint.contains("old primary"), "{hint}");
    // One that is named alone, by its address, is for the lineage to judge.
    assert_eq!(find(&among(&[old.port]), Some(after)).unwrap().0.identity().timeline, 1);
    params.hosts = vec![Host::new("localhost", old.port)];
    let by_name = find(&params, Some(after));
    expect_error(by_name, ErrorKind::Unreachable, "left behind");

    // A session that began on the old one does not wander.
    assert_eq!(value(&mut sql, "SELECT 1"), "1");
    before.sql("test", soon()).unwrap();
}

#[test]
fn a_standby_that_is_promoted_during_the_search_is_found() {
    let primary = Server::start(&["wal_level=logical"]);
    let standby = primary.start_standby();
    let (_mute, hangs) = mute();
    let searching = std::thread::spawn({
        let params = among(&[hangs, standby.port]);
        move || find(&params, None)
    });
    let mut on_standby = connect(&among(&[standby.port]));
    run(&mut on_standby, "SELECT pg_promote(true, 20)");
    let promoted_at = Instant::now();
    let found = searching.join().unwrap().unwrap();
    assert_eq!(port_of(&found), standby.port);
    assert!(promoted_at.elapsed() < AT_ONCE, "{:?}", promoted_at.elapsed());
}

#[test]
fn every_connection_of_a_session_meets_the_same_server_or_none() {
    let primary = Server::start(&["wal_level=logical"]);
    let standby = primary.start_standby();
    // A name, or a virtual address, that means another server from one moment to the next.
    let proxy = Proxy::to(primary.port);
    let (session, _sql) = find(&among(&[proxy.port()]), None).unwrap();
    session.sql("test", soon()).unwrap();
    replication(&session).unwrap();

    proxy.redirect(standby.port);
    let what = "it was a primary and is a standby now";
    expect_error(session.sql("test", soon()), ErrorKind::Unreachable, what);
    expect_error(replication(&session), ErrorKind::Unreachable, what);
    let alone = find(&among(&[proxy.port()]), None);
    expect_error(alone, ErrorKind::Unreachable, "server is a standby");

    run(&mut connect(&among(&[standby.port])), "SELECT pg_promote(true, 20)");
    let what = "another server has taken its place";
    expect_error(session.sql("test", soon()), ErrorKind::Unreachable, what);
    expect_error(replication(&session), ErrorKind::Unreachable, what);
    let (session, _sql) = find(&among(&[proxy.port()]), None).unwrap();
    assert_eq!(session.identity().timeline, 2);
    replication(&session).unwrap();
}

#[test]
fn all_addresses_of_a_name_are_asked() {
    let primary = Server::start(&["wal_level=logical"]);
    let Ok(_mute) = TcpListener::bind(("127.0.0.2", primary.port)) else {
        panic!("127.0.0.2 is ours on Linux")
    };
    let mut params = among(&[primary.port]);
    params.hosts = vec![Host::new("db.example", primary.port)];
    let orders: [Resolve; 2] = [
        |_, _| Ok(addresses(&[[127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 0, 1]])),
        |_, _| Ok(addresses(&[[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 3]])),
    ];
    for resolve in orders {
        let started_at = Instant::now();
        let (found, _sql) =
            Primary::find_by(resolve, &params, "test", None, soon(), || Ok(())).unwrap();
        assert!(started_at.elapsed() < AT_ONCE);
        assert_eq!(found.name(), format!("db.example:{} (127.0.0.1)", primary.port));
        // The name is not looked up again: it would not be found.
        found.sql("test", soon()).unwrap();
        replication(&found).unwrap();
    }
    let unknown: Resolve = |_, _| Err("no such name".into());
    let result = Primary::find_by(unknown, &params, "test", None, soon(), || Ok(()));
    expect_error(result, ErrorKind::Unreachable, "`db.example");
}

fn addresses(of: &[[u8; 4]]) -> Vec<Option<IpAddr>> {
    of.iter().map(|address| Some(IpAddr::from(*address))).collect()
}

#[test]
fn the_lock_is_taken_on_the_primary_whatever_host_comes_first() {
    let primary = Server::start(&["wal_level=logical"]);
    let standby = primary.start_standby();
    let term = Duration::from_secs(5);
    let ask = |ports: &[u16]| AdvisoryLock::try_acquire(&among(ports), "slot", term, soon());
    let held = ask(&[standby.port, primary.port]).unwrap().expect("it is free");
    assert!(ask(&[primary.port, standby.port]).unwrap().is_none());
    expect_error(ask(&[standby.port]), ErrorKind::Unreachable, "server is a standby");
    held.release(soon()).unwrap();
    wait_until("the lock is free", || ask(&[primary.port]).unwrap().is_some());
}
