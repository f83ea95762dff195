//! Which server is the primary, and every connection of a session to that one.
//!
//! A list of hosts, and a name with several addresses, may mean several servers, of which one
//! accepts writes; during a failover that changes from moment to moment. So all of them are asked
//! at once: one that hangs does not delay the others, and each has the full time. `search` judges
//! their answers. From then on the session knows one address, and each time the server there must
//! be the same cluster on the same timeline: neither a standby in its place nor the other branch of
//! a fork is accepted.
//!
//! With one host and one address this is one connection, as it would be anyway. With several it is
//! one short session on each, every time that a stream is looked for.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::connection::{Connection, StartupOptions, SystemIdentity};
use super::params::{Host, PostgresParams};
use super::server::{IDENTITY, Server};
use super::sql::{Sql, SqlError, hosts};
use super::startup;
use crate::error::{Error, ErrorKind, Result};
use crate::halt::Halt;
use search::{HostPlace, HostSearch, SeenServer};

mod search;

/// As for ordinary SQL: the kernel's patience with a peer that is gone.
const SESSION_RECEIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// A name with more addresses than this means no set of servers that anybody fails over between.
const ADDRESSES_MAX: usize = 16;
/// How soon to ask a server that refused again, while others are still silent.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How soon a stop is noticed while waiting for servers.
const NOTICE_EVERY: Duration = Duration::from_millis(50);

/// The cluster and the timeline that ClickHouse's rows came from last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownServer {
    pub system_identifier: u64,
    pub timeline: u32,
}

/// One server at one address, that was a primary when it was found.
#[derive(Debug, Clone)]
pub struct Primary {
    /// Of one host with one address.
    params: PostgresParams,
    identity: KnownServer,
    /// Silence for longer ends a session.
    patience: Option<Duration>,
}

/// Resolves a host name, for callers that do not use the system's resolver.
pub type Resolve = fn(&Host, Instant) -> std::result::Result<Vec<Option<IpAddr>>, String>;

impl Primary {
    /// Asks every server that `params` may mean until the primary is known, and returns it with the
    /// session that was opened for the question.
    ///
    /// Of several primaries it uses the one on the highest timeline; one that, by `known`, a
    /// failover has left behind only if no other server can be meant. It calls `go_on` meanwhile,
    /// whose error ends the search.
    pub fn find(
        params: &PostgresParams,
        application_name: &str,
        known: Option<KnownServer>,
        deadline: Instant,
        go_on: impl Fn() -> Result<()>,
    ) -> Result<(Primary, Sql)> {
        let resolve: Resolve =
            |host, until| hosts::addresses(host, until).map_err(|error| error.cause);
        Primary::find_by(resolve, params, application_name, known, deadline, go_on)
    }

    /// [`Primary::find`] with a resolver of the caller's.
    pub fn find_by(
        resolve: Resolve,
        params: &PostgresParams,
        application_name: &str,
        known: Option<KnownServer>,
        deadline: Instant,
        go_on: impl Fn() -> Result<()>,
    ) -> Result<(Primary, Sql)> {
        let doing = format!("connect to Postgres database `{}`", params.database);
        if params.hosts.is_empty() {
            return Err(Error::new(ErrorKind::Setup, doing).because("no host is set"));
        }
        let started_at = Instant::now();
        let mut deadline = deadline;
        if !params.connect_timeout.is_zero() {
            deadline = deadline.min(started_at + params.connect_timeout);
        }
        // Room for one message of each thread; a thread with more waits for room.
        let (answers, inbox) = bounded(params.hosts.len() * (ADDRESSES_MAX + 1));
        let over = Over::default();
        let mut search =
            HostSearch::new(known, params.hosts.len(), Primary::may_move(params), deadline);
        for at in 0..params.hosts.len() {
            let asking = Asking {
                params: params.clone(),
                application_name: application_name.to_owned(),
                answers: answers.clone(),
                deadline,
                over: Arc::clone(&over.0),
            };
            spawn(move || asking.host(at, resolve));
        }
        drop(answers);
        let mut open: Vec<(HostPlace, PostgresParams, Sql)> = Vec::new();
        while let Some(until) = search.deadline() {
            go_on()?;
            match inbox.recv_deadline(until.min(Instant::now() + NOTICE_EVERY)) {
                Ok(Answer::Resolved { host, addresses }) => {
                    search.on_resolved(host, params.hosts[host].to_string(), addresses);
                }
                Ok(Answer::Asked(asked)) => {
                    let Asked { place, params, outcome } = *asked;
                    let name = name_of(&params);
                    match outcome? {
                        Ok((seen, sql)) => {
                            if !seen.in_recovery {
                                open.push((place, params, sql));
                            }
                            search.on_seen(Instant::now(), place, name, seen);
                        }
                        Err(error) => search.on_refused(place, name, error),
                    }
                }
                Err(RecvTimeoutError::Timeout) => search.on_time(Instant::now()),
                Err(RecvTimeoutError::Disconnected) => search.on_end(),
            }
        }
        let Some((place, identity)) = search.chosen() else {
            let waited = started_at.elapsed();
            return Err(hosts::refused_by_all(search.into_refused(&params.hosts, waited), doing));
        };
        if let Some(others) = search.others() {
            log::warn!("{others}");
        }
        let at = open.iter().position(|(of, ..)| *of == place);
        let (_, params, sql) = open.swap_remove(at.expect("what is chosen is open"));
        Ok((Primary { params, identity, patience: None }, sql))
    }

    /// `params` must mean one server.
    pub fn new(params: PostgresParams, identity: KnownServer) -> Primary {
        Primary { params, identity, patience: None }
    }

    /// For the sessions to come: see [`Sql::set_patience`].
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = Some(patience);
    }

    /// For the sessions to come: what ends their waits before the deadlines.
    pub fn set_halt(&mut self, halt: &Halt) {
        self.params.halt = halt.clone();
    }

    /// Whether another server may be met another time: among several hosts, or behind a name.
    pub fn may_move(params: &PostgresParams) -> bool {
        let is_fixed = |host: &Host| host.name.starts_with('/') || host.fixed_address().is_some();
        params.hosts.len() != 1 || !params.hosts.iter().all(is_fixed)
    }

    pub fn identity(&self) -> KnownServer {
        self.identity
    }

    /// `host:port`, and the address where the name is not one itself.
    pub fn name(&self) -> String {
        name_of(&self.params)
    }

    /// Another ordinary session with the same server.
    pub fn sql(&self, application_name: &str, deadline: Instant) -> Result<Sql> {
        let mut sql = Sql::connect(&self.params, application_name, deadline)?;
        if let Some(patience) = self.patience {
            sql.set_patience(patience);
        }
        let server = Server::inspect(&mut sql, deadline)?;
        let identity =
            KnownServer { system_identifier: server.system_identifier, timeline: server.timeline };
        self.check(server.in_recovery, identity)?;
        Ok(sql)
    }

    /// A replication connection to the same server.
    pub fn replication(
        &self,
        options: &StartupOptions,
        deadline: Instant,
    ) -> Result<(Connection, SystemIdentity)> {
        let mut connection = startup::connect(&self.params, options, deadline)?;
        let answer = connection.simple_query("SELECT pg_catalog.pg_is_in_recovery()", deadline)?;
        let in_recovery = answer.first().and_then(|rows| rows.value(0, "pg_is_in_recovery"));
        let system = connection.identify_system(deadline)?;
        let identity = KnownServer {
            system_identifier: system.system_id.parse().map_err(|_| {
                Error::new(ErrorKind::Protocol, format!("identify the system of `{}`", self.name()))
                    .because("its system identifier is not a number")
            })?,
            timeline: system.timeline,
        };
        self.check(in_recovery != Some("f"), identity)?;
        Ok((connection, system))
    }

    /// The same for ordinary SQL on a connection of the kind that streams. A role that may not
    /// replicate can have one, and it takes no place of a walsender.
    pub fn session(&self, application_name: &str, deadline: Instant) -> Result<Connection> {
        let options = StartupOptions {
            application_name: application_name.to_owned(),
            replication: false,
            options: Vec::new(),
            receive_timeout: SESSION_RECEIVE_TIMEOUT,
        };
        let mut connection = startup::connect(&self.params, &options, deadline)?;
        let query = format!("SELECT {IDENTITY}");
        let answer = connection.simple_query(&query, deadline)?;
        let value = |column| answer.first().and_then(|rows| rows.value(0, column));
        let identity = || {
            Some(KnownServer {
                system_identifier: value("system_identifier")?.parse().ok()?,
                timeline: u32::from_str_radix(value("timeline")?, 16).ok()?,
            })
        };
        let identity = identity().ok_or_else(|| {
            Error::new(ErrorKind::Protocol, format!("identify the server `{}`", self.name()))
                .because("the answer has an unexpected form")
        })?;
        self.check(value("in_recovery") != Some("f"), identity)?;
        Ok(connection)
    }

    fn check(&self, in_recovery: bool, found: KnownServer) -> Result<()> {
        let doing = || format!("connect to `{}` again", self.name());
        if in_recovery {
            return Err(Error::new(ErrorKind::Unreachable, doing())
                .because("it was a primary and is a standby now"));
        }
        if found != self.identity {
            let KnownServer { system_identifier, timeline } = self.identity;
            return Err(Error::new(ErrorKind::Unreachable, doing()).because(format!(
                "expected system {system_identifier} on timeline {timeline}, got {} on timeline \
                 {}: another server has taken its place",
                found.system_identifier, found.timeline
            )));
        }
        Ok(())
    }
}

/// The finding of a thread of the search.
enum Answer {
    /// A separate thread asks each address.
    Resolved {
        host: usize,
        addresses: std::result::Result<usize, String>,
    },
    Asked(Box<Asked>),
}

struct Asked {
    place: HostPlace,
    params: PostgresParams,
    /// The outer error is about our own settings, so that no other host can help.
    outcome: Result<Outcome>,
}

type Outcome = std::result::Result<(SeenServer, Sql), SqlError>;

/// The query to a host. Its threads end by themselves: soon after the search, and those whose
/// server hangs at the deadline.
#[derive(Clone)]
struct Asking {
    params: PostgresParams,
    application_name: String,
    answers: Sender<Answer>,
    deadline: Instant,
    over: Arc<AtomicBool>,
}

/// Reports, when it is dropped, that nobody listens any more.
#[derive(Default)]
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Asking {
    fn host(self, at: usize, resolve: Resolve) {
        let host = self.params.hosts[at].clone();
        let addresses = match host.address {
            Some(address) => Ok(vec![Some(address)]),
            None => resolve(&host, self.deadline),
        };
        let mut addresses = match addresses {
            Ok(addresses) => addresses,
            Err(cause) => {
                let _ = self.answers.send(Answer::Resolved { host: at, addresses: Err(cause) });
                return;
            }
        };
        addresses.truncate(ADDRESSES_MAX);
        let count = addresses.len();
        let _ = self.answers.send(Answer::Resolved { host: at, addresses: Ok(count) });
        for (n, address) in addresses.into_iter().enumerate() {
            let mut params = self.params.clone();
            params.hosts = vec![Host { address, ..host.clone() }];
            let place = HostPlace { host: at, address: n };
            let asking = self.clone();
            spawn(move || asking.server(place, params));
        }
    }

    fn server(self, place: HostPlace, params: PostgresParams) {
        loop {
            let outcome = self.ask(&params);
            // A refusal that needs another setting keeps its kind.
            let may_pass = match &outcome {
                Ok(Ok((seen, _))) => seen.in_recovery,
                Ok(Err(error)) => error.kind == ErrorKind::Unreachable,
                Err(_) => false,
            };
            let asked = Box::new(Asked { place, params: params.clone(), outcome });
            if self.answers.send(Answer::Asked(asked)).is_err() || !may_pass {
                return;
            }
            thread::sleep(AGAIN_AFTER);
            if self.over.load(Ordering::Acquire) || self.deadline <= Instant::now() + AGAIN_AFTER {
                return;
            }
        }
    }

    fn ask(&self, params: &PostgresParams) -> Result<Outcome> {
        let mut sql = match Sql::connect_only(params, &self.application_name, self.deadline)? {
            Ok(sql) => sql,
            Err(error) => return Ok(Err(error)),
        };
        let server = match Server::ask(&mut sql, self.deadline) {
            Ok(server) => server,
            Err(error) => return Ok(Err(error)),
        };
        let identity =
            KnownServer { system_identifier: server.system_identifier, timeline: server.timeline };
        Ok(Ok((SeenServer { in_recovery: server.in_recovery, identity }, sql)))
    }
}

/// A machine that has no thread to spare answers late, and then as if that server were silent.
fn spawn(work: impl FnOnce() + Send + 'static) {
    let spawned = thread::Builder::new().name("find_primary".into()).spawn(work);
    if let Err(error) = spawned {
        log::warn!("start a thread to find the primary: {error}");
    }
}

fn name_of(params: &PostgresParams) -> String {
    params.hosts.first().map_or_else(String::new, |host| hosts::name_of(host, host.address))
}
