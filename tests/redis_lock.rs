//! The leader lock against a real redis-server, with an independent client that speaks as the
//! source system's lock does. Needs `redis-server` and `openssl` on the PATH.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use walhouse::error::ErrorKind;
use walhouse::redis::{Extended, Holder, Params, RedisLock};
use walhouse::secret::Secret;

const PREFIX: &str = "runs-replication:";
const SLOT: &str = "task_runs_to_clickhouse_v1";
const KEY: &str = "runs-replication:logical-replication-client:logical-replication-client:\
     task_runs_to_clickhouse_v1";
const TERM: Duration = Duration::from_secs(30);
/// Longer than anything here may take; a test that reaches it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// The scripts of the other party, by the same commands in the same order.
const THEIR_ACQUIRE: &str = "if redis.call('exists', KEYS[1]) == 1 then return 0 end \
     redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1";
const THEIR_EXTEND: &str = "if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end \
     redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1";
const THEIR_RELEASE: &str = "if redis.call('get', KEYS[1]) == ARGV[1] then \
     return redis.call('del', KEYS[1]) end return 0";

/// A redis-server of the test's own; its files and its process end with it.
struct Server {
    dir: TempDir,
    port: u16,
    args: Vec<String>,
    process: Child,
}

impl Server {
    fn start(args: &[&str]) -> Server {
        let dir = TempDir::new();
        let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
        for _ in 0..10 {
            let port = free_port();
            let mut process = spawn(&dir.0, port, &args);
            if wait_until_listening(&mut process, port) {
                return Server { dir, port, args, process };
            }
        }
        panic!("redis-server does not start: {}", log_of(&dir.0));
    }

    fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn start_again(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.process = spawn(&self.dir.0, self.port, &self.args);
            if wait_until_listening(&mut self.process, self.port) {
                return;
            }
            assert!(Instant::now() < deadline, "no restart: {}", log_of(&self.dir.0));
        }
    }

    fn params(&self) -> Params {
        params(self.port)
    }

    fn lock(&self) -> RedisLock {
        RedisLock::new(&self.params(), PREFIX, SLOT)
    }

    fn client(&self) -> redis::Connection {
        let url = format!("redis://127.0.0.1:{}/", self.port);
        let client = redis::Client::open(url).unwrap();
        let connection = client.get_connection_with_timeout(PATIENCE).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(dir: &Path, port: u16, args: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--port", &port.to_string(), "--logfile", "redis.log"])
        .arg("--dir")
        .arg(dir)
        .args(args)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is on the PATH")
}

fn wait_until_listening(process: &mut Child, port: u16) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if process.try_wait().unwrap().is_some() {
            return false;
        }
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            // One that found its port taken is gone by now.
            return process.try_wait().unwrap().is_none();
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}

fn log_of(dir: &Path) -> String {
    fs::read_to_string(dir.join("redis.log")).unwrap_or_default()
}

/// Removed with all that is in it.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> TempDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("walhouse-redis-{}-{count}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        TempDir(dir)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Below the range from which the kernel gives ports away, so that no other test is handed one of
/// ours while its server is down.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = std::process::id().wrapping_mul(61) + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (next % 12_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn params(port: u16) -> Params {
    Params { host: "127.0.0.1".to_owned(), port, username: None, password: None, tls: false }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn get(client: &mut redis::Connection) -> Option<String> {
    redis::cmd("GET").arg(KEY).query(client).unwrap()
}

fn delete(client: &mut redis::Connection) {
    redis::cmd("DEL").arg(KEY).exec(client).unwrap();
}

/// Runs a script of the other party.
fn they(client: &mut redis::Connection, script: &str, value: &str, term_ms: u32) -> u32 {
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(1).arg(KEY).arg(value).arg(term_ms).query(client).unwrap()
}

fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn we_and_the_source_system_exclude_each_other() {
    let server = Server::start(&[]);
    let (mut lock, mut client) = (server.lock(), server.client());
    assert_eq!(lock.key(), KEY);

    assert!(lock.try_acquire(TERM, soon()).unwrap());
    assert_eq!(they(&mut client, THEIR_ACQUIRE, "theirs", 30_000), 0);
    assert_eq!(they(&mut client, THEIR_EXTEND, "theirs", 30_000), 0);
    assert_eq!(they(&mut client, THEIR_RELEASE, "theirs", 30_000), 0);
    lock.release(soon()).unwrap();
    assert_eq!(get(&mut client), None);

    assert_eq!(they(&mut client, THEIR_ACQUIRE, "theirs", 30_000), 1);
    assert!(!lock.try_acquire(TERM, soon()).unwrap());
    assert_eq!(lock.extend(TERM, soon()).unwrap(), Extended::Lost);
    lock.release(soon()).unwrap();
    assert_eq!(get(&mut client).as_deref(), Some("theirs"));
    assert_eq!(they(&mut client, THEIR_EXTEND, "theirs", 30_000), 1);
    assert_eq!(they(&mut client, THEIR_RELEASE, "theirs", 30_000), 1);
    assert!(lock.try_acquire(TERM, soon()).unwrap());
}

#[test]
fn two_of_us_exclude_each_other() {
    let server = Server::start(&[]);
    let (mut a, mut b) = (server.lock(), server.lock());
    let mut other_slot = RedisLock::new(&server.params(), PREFIX, "another_slot");
    assert!(a.try_acquire(TERM, soon()).unwrap());
    assert!(!b.try_acquire(TERM, soon()).unwrap());
    assert!(other_slot.try_acquire(TERM, soon()).unwrap());
    // The loser's release takes nothing away.
    b.release(soon()).unwrap();
    assert_eq!(a.extend(TERM, soon()).unwrap(), Extended::Yes);
    a.release(soon()).unwrap();
    assert!(b.try_acquire(TERM, soon()).unwrap());
}

#[test]
fn every_acquire_has_a_value_of_its_own_and_its_term() {
    let server = Server::start(&[]);
    let (mut lock, mut client) = (server.lock(), server.client());
    let mut values = Vec::new();
    for _ in 0..3 {
        assert!(lock.try_acquire(TERM, soon()).unwrap());
        let left_ms: u64 = redis::cmd("PTTL").arg(KEY).query(&mut client).unwrap();
        assert!(25_000 < left_ms && left_ms <= 30_000, "{left_ms}");
        values.push(get(&mut client).unwrap());
        lock.release(soon()).unwrap();
    }
    assert!(values.iter().all(|value| value.len() == 34), "{values:?}");
    values.sort();
    values.dedup();
    assert_eq!(values.len(), 3);
}

/// Goal: what a holder that is gone has left is cleared, and nothing that came after it.
#[test]
fn only_the_very_value_that_was_met_is_cleared() {
    let server = Server::start(&[]);
    let (mut dead, mut lock, mut client) = (server.lock(), server.lock(), server.client());
    dead.set_mark(Some("1.2.3".to_owned()));
    assert!(dead.try_acquire(TERM, soon()).unwrap());
    assert!(!lock.try_acquire(TERM, soon()).unwrap());
    let met = lock.met().unwrap().to_owned();
    assert_eq!(get(&mut client).as_ref(), Some(&met));
    assert_eq!(walhouse::redis::value::shown(&met).unwrap().mark, "1.2.3");

    // It has taken the lock once more by now: it lives.
    dead.release(soon()).unwrap();
    assert!(dead.try_acquire(TERM, soon()).unwrap());
    lock.clear(&met, soon()).unwrap();
    assert!(!lock.try_acquire(TERM, soon()).unwrap());
    let met = lock.met().unwrap().to_owned();
    lock.clear(&met, soon()).unwrap();
    assert!(lock.try_acquire(TERM, soon()).unwrap());
    assert_eq!(dead.extend(TERM, soon()).unwrap(), Extended::Lost);
}

#[test]
fn extend_renews_the_term_and_keeps_the_value() {
    let server = Server::start(&[]);
    let (mut lock, mut client) = (server.lock(), server.client());
    assert!(lock.try_acquire(Duration::from_secs(10), soon()).unwrap());
    let value = get(&mut client);
    assert_eq!(lock.extend(TERM, soon()).unwrap(), Extended::Yes);
    assert_eq!(get(&mut client), value);
    let left_ms: u64 = redis::cmd("PTTL").arg(KEY).query(&mut client).unwrap();
    assert!(25_000 < left_ms, "{left_ms}");
}

#[test]
fn a_key_that_is_gone_within_the_term_is_taken_again() {
    let server = Server::start(&[]);
    let (mut lock, mut client) = (server.lock(), server.client());
    assert!(lock.try_acquire(TERM, soon()).unwrap());
    let value = get(&mut client);
    delete(&mut client);
    assert_eq!(lock.extend(TERM, soon()).unwrap(), Extended::Retaken);
    assert_eq!(get(&mut client), value);
    assert_eq!(lock.extend(TERM, soon()).unwrap(), Extended::Yes);

    delete(&mut client);
    assert_eq!(they(&mut client, THEIR_ACQUIRE, "theirs", 30_000), 1);
    assert_eq!(lock.extend(TERM, soon()).unwrap(), Extended::Lost);
    assert_eq!(get(&mut client).as_deref(), Some("theirs"));
}

#[test]
fn a_key_that_is_gone_after_the_term_is_lost() {
    let server = Server::start(&[]);
    let (mut lock, mut client) = (server.lock(), server.client());
    assert!(lock.try_acquire(Duration::from_millis(50), soon()).unwrap());
    let acquired_at = Instant::now();
    wait_until("the term is over", || {
        Duration::from_millis(50) < acquired_at.elapsed() && get(&mut client).is_none()
    });
    assert_eq!(lock.extend(TERM, soon()).unwrap(), Extended::Lost);
    assert_eq!(get(&mut client), None);
    assert!(lock.try_acquire(TERM, soon()).unwrap());
}

#[test]
fn redis_restarted_empty_costs_no_lock_unless_another_was_faster() {
    let mut server = Server::start(&[]);
    let mut lock = server.lock();
    assert!(lock.try_acquire(TERM, soon()).unwrap());
    server.stop();
    let error = lock.extend(TERM, soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    server.start_again();
    assert_eq!(lock.extend(TERM, soon()).unwrap(), Extended::Retaken);

    server.stop();
    server.start_again();
    assert_eq!(they(&mut server.client(), THEIR_ACQUIRE, "theirs", 30_000), 1);
    assert_eq!(lock.extend(TERM, soon()).unwrap(), Extended::Lost);
}

#[test]
fn a_restart_between_two_calls_is_not_even_an_error() {
    let mut server = Server::start(&[]);
    let mut lock = server.lock();
    assert!(lock.try_acquire(TERM, soon()).unwrap());
    server.stop();
    server.start_again();
    assert_eq!(lock.extend(TERM, soon()).unwrap(), Extended::Retaken);
    redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").exec(&mut server.client()).unwrap();
    assert_eq!(lock.extend(TERM, soon()).unwrap(), Extended::Yes);
}

#[test]
fn flushed_scripts_are_sent_again() {
    let server = Server::start(&[]);
    let (mut lock, mut client) = (server.lock(), server.client());
    let mut flush = || redis::cmd("SCRIPT").arg("FLUSH").exec(&mut client).unwrap();
    assert!(lock.try_acquire(TERM, soon()).unwrap());
    flush();
    assert_eq!(lock.extend(TERM, soon()).unwrap(), Extended::Yes);
    flush();
    assert!(matches!(lock.holder(soon()).unwrap(), Holder::Us { .. }));
    flush();
    lock.release(soon()).unwrap();
    assert_eq!(lock.holder(soon()).unwrap(), Holder::Nobody);
}

#[test]
fn holder_tells_who_and_for_how_long() {
    let server = Server::start(&[]);
    let (mut lock, mut other, mut client) = (server.lock(), server.lock(), server.client());
    assert_eq!(lock.holder(soon()).unwrap(), Holder::Nobody);
    assert!(lock.try_acquire(TERM, soon()).unwrap());
    let near = |left: Duration| Duration::from_secs(25) < left && left <= TERM;
    assert!(matches!(lock.holder(soon()).unwrap(), Holder::Us { left } if near(left)));
    assert!(matches!(other.holder(soon()).unwrap(), Holder::Another { left } if near(left)));
    redis::cmd("SET").arg(KEY).arg("by hand").exec(&mut client).unwrap();
    assert_eq!(lock.holder(soon()).unwrap(), Holder::Another { left: Duration::MAX });
}

/// A proxy that hands everything on until it is told to swallow what the server answers.
struct Proxy {
    port: u16,
    swallow: Arc<AtomicBool>,
}

impl Proxy {
    fn before(server_port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let swallow = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&swallow);
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let server = TcpStream::connect(("127.0.0.1", server_port)).unwrap();
                let (up, down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || hand_on(up, server, None));
                let flag = Arc::clone(&flag);
                thread::spawn(move || hand_on(down, client, Some(flag)));
            }
        });
        Proxy { port, swallow }
    }
}

fn hand_on(mut from: TcpStream, mut to: TcpStream, swallow: Option<Arc<AtomicBool>>) {
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let swallowed = swallow.as_ref().is_some_and(|flag| flag.load(Ordering::SeqCst));
        if !swallowed && to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// Goal: an acquire that Redis did and whose answer never came does not lock us out.
#[test]
fn our_own_orphan_is_recognised() {
    let server = Server::start(&[]);
    let (proxy, mut client) = (Proxy::before(server.port), server.client());
    let mut lock = RedisLock::new(&params(proxy.port), PREFIX, SLOT);
    let shortly = || Instant::now() + Duration::from_millis(300);
    // So that the connection is there and the script is known.
    assert!(lock.try_acquire(TERM, soon()).unwrap());
    lock.release(soon()).unwrap();

    proxy.swallow.store(true, Ordering::SeqCst);
    let error = lock.try_acquire(TERM, shortly()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("no answer within "), "{error}");
    let orphan = get(&mut client).expect("redis did what it was asked");
    proxy.swallow.store(false, Ordering::SeqCst);
    assert!(lock.try_acquire(TERM, soon()).unwrap());
    assert_eq!(get(&mut client), Some(orphan));
    lock.release(soon()).unwrap();

    proxy.swallow.store(true, Ordering::SeqCst);
    lock.try_acquire(TERM, shortly()).unwrap_err();
    assert!(get(&mut client).is_some());
    proxy.swallow.store(false, Ordering::SeqCst);
    lock.release(soon()).unwrap();
    assert_eq!(get(&mut client), None);

    // A release whose answer was lost is repeated and harmless.
    assert!(lock.try_acquire(TERM, soon()).unwrap());
    proxy.swallow.store(true, Ordering::SeqCst);
    lock.release(shortly()).unwrap_err();
    proxy.swallow.store(false, Ordering::SeqCst);
    assert_eq!(they(&mut client, THEIR_ACQUIRE, "theirs", 30_000), 1);
    lock.release(soon()).unwrap();
    assert_eq!(get(&mut client).as_deref(), Some("theirs"));
}

#[test]
fn a_lost_answer_to_extend_keeps_the_lock() {
    let server = Server::start(&[]);
    let proxy = Proxy::before(server.port);
    let mut lock = RedisLock::new(&params(proxy.port), PREFIX, SLOT);
    assert!(lock.try_acquire(TERM, soon()).unwrap());
    proxy.swallow.store(true, Ordering::SeqCst);
    lock.extend(TERM, Instant::now() + Duration::from_millis(300)).unwrap_err();
    proxy.swallow.store(false, Ordering::SeqCst);
    assert_eq!(lock.extend(TERM, soon()).unwrap(), Extended::Yes);
}

/// Goal: whoever listens and never answers costs what was granted, no more.
#[test]
fn a_mute_server_is_left_at_the_deadline() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let plain = params(mute.local_addr().unwrap().port());
    let with_password =
        Params { password: Some(Secret::new("hush-hush")), username: None, ..plain.clone() };
    let with_tls = Params { tls: true, ..with_password.clone() };
    let granted = Duration::from_millis(300);
    for params in [plain, with_password, with_tls] {
        let mut lock = RedisLock::new(&params, PREFIX, SLOT);
        // A busy machine may delay one of them, but not the fastest.
        let mut fastest = PATIENCE;
        for _ in 0..3 {
            let began = Instant::now();
            let error = lock.try_acquire(TERM, began + granted).unwrap_err();
            fastest = fastest.min(began.elapsed());
            assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
            assert!(error.to_string().contains("no answer within "), "{error}");
        }
        assert!(granted <= fastest && fastest < 2 * granted, "{fastest:?} for {params:?}");
        lock.release(Instant::now() + granted).unwrap_err();
    }
}

#[test]
fn a_deadline_that_has_passed_is_an_error_at_once() {
    let server = Server::start(&[]);
    let mut lock = server.lock();
    lock.try_acquire(TERM, Instant::now()).unwrap_err();
    assert!(lock.try_acquire(TERM, soon()).unwrap());
    assert_eq!(lock.extend(TERM, Instant::now()).unwrap_err().kind(), ErrorKind::Unreachable);
    assert_eq!(lock.extend(TERM, soon()).unwrap(), Extended::Yes);
}

#[test]
fn nobody_there_is_unreachable() {
    let port = free_port();
    let mut lock = RedisLock::new(&params(port), PREFIX, SLOT);
    let error = lock.try_acquire(TERM, soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    let start = format!("acquire leader lock `{KEY}` in redis at `127.0.0.1:{port}`: ");
    assert!(error.to_string().starts_with(&start), "{error}");

    let nowhere = Params { host: "redis.invalid".to_owned(), ..params(port) };
    let error = RedisLock::new(&nowhere, PREFIX, SLOT).try_acquire(TERM, soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
}

#[test]
fn names_are_looked_up() {
    let server = Server::start(&[]);
    // It may have an address of the other family, at which nobody listens.
    let named = Params { host: "localhost".to_owned(), ..server.params() };
    assert!(RedisLock::new(&named, PREFIX, SLOT).try_acquire(TERM, soon()).unwrap());
}

#[test]
fn a_replica_refuses_until_it_is_the_primary() {
    let server = Server::start(&[]);
    let (mut lock, mut client) = (server.lock(), server.client());
    let mut replica_of = |host: &str, port: &str| {
        redis::cmd("REPLICAOF").arg(host).arg(port).exec(&mut client).unwrap();
    };
    replica_of("127.0.0.1", "1");
    let error = lock.try_acquire(TERM, soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("READONLY"), "{error}");
    assert!(error.hint_text().unwrap().contains("RUN_REPLICATION_REDIS_HOST"));
    replica_of("NO", "ONE");
    assert!(lock.try_acquire(TERM, soon()).unwrap());
}

/// Goal: a Redis that is still reading its file is tried again, not complained about. Method: a
/// file large enough, read slowly.
#[test]
fn a_loading_server_is_an_error_that_passes() {
    let mut server = Server::start(&[
        "--enable-debug-command",
        "yes",
        "--key-load-delay",
        "1000",
        "--loading-process-events-interval-bytes",
        "1024",
    ]);
    let mut client = server.client();
    redis::cmd("DEBUG").arg("POPULATE").arg(1500).arg("k").arg(100).exec(&mut client).unwrap();
    redis::cmd("SAVE").exec(&mut client).unwrap();
    server.stop();
    server.start_again();
    let mut lock = server.lock();
    let error = lock.try_acquire(TERM, soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("LOADING"), "{error}");
    wait_until("redis is loaded", || lock.try_acquire(TERM, soon()).is_ok_and(|held| held));
}

#[test]
fn a_key_of_another_type_is_told() {
    let server = Server::start(&[]);
    redis::cmd("LPUSH").arg(KEY).arg("x").exec(&mut server.client()).unwrap();
    let error = server.lock().try_acquire(TERM, soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Setup);
    assert!(error.to_string().contains("WRONGTYPE"), "{error}");
}

#[test]
fn users_and_passwords_are_checked_and_never_told() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let mut set_user = |rules: &[&str]| {
        redis::cmd("ACL").arg("SETUSER").arg(rules).exec(&mut client).unwrap();
    };
    // What the hint of a refusal tells to grant is enough.
    let rules = ["walhouse", "reset", "on", ">s3cret-Pw", "~runs-replication:*"];
    set_user(&rules);
    set_user(&["walhouse", "+evalsha", "+eval", "+get", "+set", "+del", "+pttl"]);
    let with = |username: Option<&str>, password: Option<&str>| {
        let username = username.map(str::to_owned);
        let password = password.map(Secret::new);
        RedisLock::new(&Params { username, password, ..server.params() }, PREFIX, SLOT)
    };
    let mut lock = with(Some("walhouse"), Some("s3cret-Pw"));
    assert!(lock.try_acquire(TERM, soon()).unwrap());
    assert_eq!(lock.extend(TERM, soon()).unwrap(), Extended::Yes);
    assert!(matches!(lock.holder(soon()).unwrap(), Holder::Us { .. }));
    lock.release(soon()).unwrap();

    let refused = |mut lock: RedisLock, hint: &str| {
        let error = lock.try_acquire(TERM, soon()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
        assert!(error.hint_text().unwrap_or_default().contains(hint), "{error}");
        let all = format!("{error} {error:?} {:?}", error.hint_text());
        assert!(!all.contains("s3cret") && !all.contains("wrong-Pw"), "{all}");
    };
    refused(with(Some("walhouse"), Some("wrong-Pw")), "RUN_REPLICATION_REDIS_PASSWORD");
    refused(with(Some("nobody"), Some("s3cret-Pw")), "RUN_REPLICATION_REDIS_PASSWORD");
    // A password for a server that has none.
    refused(with(None, Some("s3cret-Pw")), "RUN_REPLICATION_REDIS_PASSWORD");
    set_user(&["walhouse", "-set"]);
    refused(with(Some("walhouse"), Some("s3cret-Pw")), "ACL SETUSER");
    set_user(&["walhouse", "-eval", "-evalsha"]);
    refused(with(Some("walhouse"), Some("s3cret-Pw")), "ACL SETUSER");
    set_user(&["default", "off"]);
    refused(with(None, None), "RUN_REPLICATION_REDIS_PASSWORD");
}

#[test]
fn the_password_of_the_default_user_needs_no_name() {
    let server = Server::start(&["--requirepass", "s3cret-Pw"]);
    let password = Some(Secret::new("s3cret-Pw"));
    let with_password = Params { password, ..server.params() };
    assert!(RedisLock::new(&with_password, PREFIX, SLOT).try_acquire(TERM, soon()).unwrap());
    let error = server.lock().try_acquire(TERM, soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    assert!(error.to_string().contains("NOAUTH"), "{error}");
}

/// An authority, and a server certificate of it for `localhost`.
fn make_certificates(dir: &Path) {
    let openssl = |args: &[&str]| {
        let out = Command::new("openssl").args(args).current_dir(dir).output();
        let out = out.expect("openssl is on the PATH");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let ca = ["req", "-x509", "-days", "2", "-subj", "/CN=test ca", "-keyout", "ca.key"];
    openssl(&[&ca[..], &["-out", "ca.pem"], &new_key].concat());
    let request = ["req", "-subj", "/CN=redis", "-keyout", "server.key", "-out", "server.csr"];
    openssl(&[&request[..], &new_key].concat());
    fs::write(dir.join("ext"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")
        .unwrap();
    let sign = ["x509", "-req", "-days", "2", "-in", "server.csr", "-CA", "ca.pem"];
    let with = ["-CAkey", "ca.key", "-CAcreateserial", "-extfile", "ext", "-out", "server.pem"];
    openssl(&[&sign[..], &with].concat());
    let expired = ["x509", "-req", "-days", "-1", "-in", "server.csr", "-CA", "ca.pem"];
    let with = ["-CAkey", "ca.key", "-CAcreateserial", "-extfile", "ext", "-out", "expired.pem"];
    openssl(&[&expired[..], &with].concat());
}

#[test]
fn tls_checks_the_authority_and_the_name() {
    let temp_dir = TempDir::new();
    let certificates = &temp_dir.0;
    make_certificates(certificates);
    let file = |name: &str| certificates.join(name).to_str().unwrap().to_owned();
    let tls_port = free_port();
    let tls_port_text = tls_port.to_string();
    let server = Server::start(&[
        "--tls-port",
        &tls_port_text,
        "--tls-cert-file",
        &file("server.pem"),
        "--tls-key-file",
        &file("server.key"),
        "--tls-ca-cert-file",
        &file("ca.pem"),
        "--tls-auth-clients",
        "no",
    ]);
    let over_tls = |host: &str, port: u16| {
        let params = Params { host: host.to_owned(), port, tls: true, ..server.params() };
        RedisLock::new(&params, PREFIX, SLOT)
    };
    let ca = certificates.join("ca.pem");

    let mut lock = over_tls("localhost", tls_port).with_ca_file(&ca).unwrap();
    assert!(lock.try_acquire(TERM, soon()).unwrap());
    assert_eq!(lock.extend(TERM, soon()).unwrap(), Extended::Yes);
    lock.release(soon()).unwrap();

    let refused = |mut lock: RedisLock, cause: &str| {
        let shortly = Instant::now() + Duration::from_secs(1);
        let error = lock.try_acquire(TERM, shortly).unwrap_err();
        assert!(error.to_string().contains(cause), "{error}");
        let hint = error.hint_text().unwrap_or_else(|| panic!("no hint: {error}"));
        assert!(hint.contains("SSL_CERT_FILE"), "{hint}");
        assert!(hint.contains("RUN_REPLICATION_REDIS_TLS_DISABLED"), "{hint}");
    };
    refused(over_tls("localhost", tls_port), "UnknownIssuer");
    refused(over_tls("127.0.0.1", tls_port).with_ca_file(&ca).unwrap(), "certificate");
    let certify = |with: &str| {
        let set = ["SET", "tls-cert-file", &file(with)].map(str::to_owned);
        redis::cmd("CONFIG").arg(&set).exec(&mut server.client()).unwrap();
    };
    certify("expired.pem");
    refused(over_tls("localhost", tls_port).with_ca_file(&ca).unwrap(), "xpired");
    certify("server.pem");
    // TLS spoken to a server that speaks none: Redis waits for the end of the line.
    refused(over_tls("localhost", server.port).with_ca_file(&ca).unwrap(), "no answer within ");
    // None spoken to a server that wants it.
    let plain = Params { port: tls_port, ..server.params() };
    let error = RedisLock::new(&plain, PREFIX, SLOT).try_acquire(TERM, soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");

    let missing = over_tls("localhost", tls_port).with_ca_file(&certificates.join("none"));
    assert_eq!(missing.err().unwrap().kind(), ErrorKind::Setup);
    let no_pem = over_tls("localhost", tls_port).with_ca_file(&certificates.join("ext"));
    let error = no_pem.err().unwrap();
    assert!(error.to_string().ends_with("expected PEM certificates, got none"), "{error}");
}
