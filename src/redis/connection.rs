//! One lazy connection to one Redis, on which every call ends by its deadline.
//!
//! Names are resolved on a separate thread: a hanging resolver must not delay noticing that the
//! lock is lost. It supports neither cluster nor sentinel, and never waits before a retry: that is
//! the caller's backoff.
//!
//! The deadline bounds each silence of the server. A server that sends its few bytes one by one,
//! just in time, could stretch a call; the holder of a lease must also watch it elsewhere.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use redis::{
    Client, ConnectionAddr, FromRedisValue, IntoConnectionInfo, RedisConnectionInfo, RedisError,
    RedisResult, Script, ServerErrorKind, TlsCertificates,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::params::Params;
use crate::error::{Error, ErrorKind, Result};

/// Lua with its hash. It must be harmless to run twice.
pub(super) struct Lua {
    text: &'static str,
    hash: String,
}

/// One script on one key.
pub(super) struct RedisCommand<'a> {
    /// The `doing` of the error.
    pub(super) doing: &'a str,
    pub(super) lua: &'a Lua,
    pub(super) key: &'a str,
    pub(super) args: &'a [&'a str],
    pub(super) deadline: Instant,
}

pub(super) struct RedisConnection {
    params: Params,
    ca_pem: Option<Vec<u8>>,
    /// A lookup that has not answered yet. It outlives the call that began it, so that a resolver
    /// that hangs costs one thread, however often we try.
    lookup: Option<Receiver<io::Result<Vec<SocketAddr>>>>,
    live: Option<redis::Connection>,
}

impl Lua {
    pub(super) fn new(text: &'static str) -> Lua {
        Lua { text, hash: Script::new(text).get_hash().to_owned() }
    }
}

impl RedisConnection {
    pub(super) fn new(params: &Params) -> RedisConnection {
        if params.tls {
            // The client library takes the provider of the process. A second one is refused, and
            // then the first is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        RedisConnection { params: params.clone(), ca_pem: None, lookup: None, live: None }
    }

    /// Trusts these authorities alone, instead of the system's.
    pub(super) fn trust_ca_file(&mut self, path: &Path) -> Result<()> {
        let refused = |cause: Box<dyn std::error::Error + Send + Sync>| {
            let doing = format!("read certificate authorities of redis from `{}`", path.display());
            Error::new(ErrorKind::Setup, doing).because(cause)
        };
        let pem = fs::read(path).map_err(|e| refused(e.into()))?;
        let mut certificates_len = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            certificate.map_err(|e| refused(e.into()))?;
            certificates_len += 1;
        }
        if certificates_len == 0 {
            return Err(refused("expected PEM certificates, got none".into()));
        }
        self.ca_pem = Some(pem);
        self.live = None;
        Ok(())
    }

    pub(super) fn run<T: FromRedisValue>(&mut self, command: &RedisCommand) -> Result<T> {
        let asked_at = Instant::now();
        let reused = self.live.is_some();
        let mut result = self.attempt(command);
        // An idle connection is often dead before anybody notices: ask once more on a new one.
        if reused && result.as_ref().is_err_and(RedisError::is_connection_dropped) {
            result = self.attempt(command);
        }
        result.map_err(|error| {
            let mut explained = self.explain(command, &error, asked_at.elapsed());
            // A Redis without TLS reads the greeting as the first half of a line, and waits.
            if self.params.tls && !reused && error.is_timeout() {
                explained = explained.hint(TLS_HINT);
            }
            explained
        })
    }

    fn attempt<T: FromRedisValue>(&mut self, command: &RedisCommand) -> RedisResult<T> {
        let &RedisCommand { lua, key, args, deadline, .. } = command;
        let mut connection = match self.live.take() {
            Some(connection) => connection,
            None => self.connect(deadline)?,
        };

        arm(&connection, deadline)?;
        let mut answer = redis::cmd("EVALSHA")
            .arg(lua.hash.as_str())
            .arg(1)
            .arg(key)
            .arg(args)
            .query(&mut connection);
        if let Err(error) = &answer
            && error.kind() == redis::ErrorKind::Server(ServerErrorKind::NoScript)
        {
            arm(&connection, deadline)?;
            answer =
                redis::cmd("EVAL").arg(lua.text).arg(1).arg(key).arg(args).query(&mut connection);
        }
        // After any error the connection is dropped: its answer may still be under way, or it leads
        // to a server that is not the primary any more.
        if answer.is_ok() {
            self.live = Some(connection);
        }
        answer
    }

    fn connect(&mut self, deadline: Instant) -> RedisResult<redis::Connection> {
        let addresses = self.resolve(deadline)?;
        // Naming the library would cost two more answers to wait for.
        let mut settings = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some(username) = &self.params.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = &self.params.password
            && !password.expose().is_empty()
        {
            settings = settings.set_password(password.expose());
        }

        if self.params.tls {
            // The certificate is checked against the name, so the library must have the name, and
            // looks it up again. It grants its timeout to each address.
            let info = ConnectionAddr::TcpTls {
                host: self.params.host.clone(),
                port: self.params.port,
                insecure: false,
                tls_params: None,
            }
            .into_connection_info()?
            .set_redis_settings(settings);
            let client = match &self.ca_pem {
                Some(pem) => Client::build_with_tls(
                    info,
                    TlsCertificates { client_tls: None, root_cert: Some(pem.clone()) },
                )?,
                None => Client::open(info)?,
            };
            return client.get_connection_with_timeout(share(deadline, addresses.len())?);
        }

        let mut last = io::Error::new(io::ErrorKind::NotFound, "name has no address").into();
        for (i, address) in addresses.iter().enumerate() {
            let info = ConnectionAddr::Tcp(address.ip().to_string(), address.port())
                .into_connection_info()?
                .set_redis_settings(settings.clone());
            // An address that is silent may not use up the time of those behind it.
            let timeout = share(deadline, addresses.len() - i)?;
            match Client::open(info)?.get_connection_with_timeout(timeout) {
                Err(error) if error.is_io_error() => last = error,
                settled => return settled,
            }
        }
        Err(last)
    }

    fn resolve(&mut self, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
        let Params { host, port, .. } = &self.params;
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, *port)]);
        }
        let lookup = match self.lookup.take() {
            Some(lookup) => lookup,
            None => {
                let (answer, lookup) = bounded(1);
                let (host, port) = (host.clone(), *port);
                thread::Builder::new().name("redis_lookup".to_owned()).spawn(move || {
                    let addresses = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
                    // If the lock was dropped meanwhile, nobody waits any more.
                    let _ = answer.send(addresses);
                })?;
                lookup
            }
        };
        match lookup.recv_deadline(deadline) {
            Ok(addresses) => addresses,
            Err(RecvTimeoutError::Timeout) => {
                self.lookup = Some(lookup);
                Err(io::Error::new(io::ErrorKind::TimedOut, "lookup of the name hangs"))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(io::Error::other("lookup of the name panicked"))
            }
        }
    }

    fn explain(&self, command: &RedisCommand, error: &RedisError, waited: Duration) -> Error {
        use redis::ErrorKind as Redis;

        let Params { host, port, tls, .. } = &self.params;
        let doing = format!("{} `{}` in redis at `{host}:{port}`", command.doing, command.key);
        // The words of the server, if it said any, in place of the library's name for them.
        let code = error.code().unwrap_or_default();
        let detail = error.detail().unwrap_or_default();
        let cause = match error.kind() {
            Redis::Server(_) | Redis::Extension => format!("{code} {detail}"),
            Redis::AuthenticationFailed => "the username or password was refused".to_owned(),
            _ if error.is_timeout() => format!("no answer within {} ms", waited.as_millis()),
            _ => error.to_string(),
        };
        let unreachable = || Error::new(ErrorKind::Unreachable, &*doing).because(&*cause);
        let setup = || Error::new(ErrorKind::Setup, &*doing).because(&*cause);

        // An error in a script may come back as an ERR around the real one.
        let kind = match error.kind() {
            Redis::Server(ServerErrorKind::ResponseError) if detail.contains("READONLY ") => {
                Redis::Server(ServerErrorKind::ReadOnly)
            }
            Redis::Server(ServerErrorKind::ResponseError)
                if detail.starts_with("The user executing the script can't ") =>
            {
                Redis::Server(ServerErrorKind::NoPerm)
            }
            kind => kind,
        };
        match kind {
            // Any other I/O error, with connection and name fine, comes from the TLS handshake.
            Redis::Io if *tls && !error.is_timeout() && !error.is_connection_dropped() => {
                unreachable().hint(TLS_HINT)
            }
            Redis::Io => unreachable(),
            Redis::AuthenticationFailed => setup().hint(CREDENTIALS_HINT),
            Redis::Server(ServerErrorKind::NoPerm) => setup().hint(format!(
                "Run: ACL SETUSER {} ~{} +evalsha +eval +get +set +del +pttl",
                self.params.username.as_deref().unwrap_or("default"),
                command.key
            )),
            Redis::Server(ServerErrorKind::ReadOnly) => unreachable().hint(
                "If this lasts, point RUN_REPLICATION_REDIS_HOST (or REDIS_HOST) at the primary.",
            ),
            Redis::Server(
                ServerErrorKind::BusyLoading
                | ServerErrorKind::MasterDown
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown,
            ) => unreachable(),
            Redis::Server(
                ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot,
            ) => setup().hint(
                "The leader lock needs a Redis that is not a cluster: set \
                 RUN_REPLICATION_REDIS_HOST, or REPLICATION_LEADER_LOCK=postgres.",
            ),
            Redis::Parse => Error::new(ErrorKind::Protocol, &*doing).because(&*cause),
            // Codes that the library has no kind for.
            _ => match code {
                "NOAUTH" | "WRONGPASS" => setup().hint(CREDENTIALS_HINT),
                "BUSY" | "MISCONF" | "OOM" | "NOREPLICAS" => unreachable(),
                _ => setup(),
            },
        }
    }
}

const TLS_HINT: &str = "If the certificate is not trusted, name its CA in SSL_CERT_FILE; if this \
                        Redis does not speak TLS, set RUN_REPLICATION_REDIS_TLS_DISABLED=true.";

const CREDENTIALS_HINT: &str = "Set RUN_REPLICATION_REDIS_USERNAME and \
     RUN_REPLICATION_REDIS_PASSWORD (or REDIS_USERNAME and REDIS_PASSWORD) to what this Redis \
     expects.";

/// The library clears the socket's timeouts once it is connected.
fn arm(connection: &redis::Connection, deadline: Instant) -> RedisResult<()> {
    let timeout = share(deadline, 1)?;
    connection.set_read_timeout(Some(timeout))?;
    connection.set_write_timeout(Some(timeout))
}

/// The time left until the deadline, split among `parts`; never zero, which sockets reject.
fn share(deadline: Instant, parts: usize) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let parts = u32::try_from(parts).unwrap_or(u32::MAX).max(1);
    Ok((left / parts).max(Duration::from_millis(1)))
}
