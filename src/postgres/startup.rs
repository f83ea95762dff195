//! From the settings to a connection that is ready for queries: finding a server that will do, TLS,
//! start-up.
//!
//! Hosts are tried in their order, not at random, and nothing is remembered between two calls.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use postgres_protocol::escape::escape_identifier;
use postgres_protocol::message::{backend, frontend};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};

use super::auth::{self, Dialogue};
use super::connection::{Connection, POOLER_HINT, StartupOptions, lost, protocol, unexpected};
use super::link::{Endpoint, Link, remaining};
use super::params::{Host, PostgresParams, SslMode, TargetSession};
use super::server_error::{NoneWouldDo, ServerError, server_error};
use super::tls;
use crate::error::{Error, ErrorKind, Result};
use crate::wal::wire::Wire;

/// Before authentication the server sends nothing long; a peer that sends more is not Postgres.
const STARTUP_FRAME_BYTES_MAX: usize = 64 * 1024;

const NEGOTIATE_PROTOCOL_VERSION_TAG: u8 = b'v';

/// Connects to the first server that will do, in the order of `params.hosts`. Each host, and each
/// address of a host, has its share of the time left, so that one that hangs cannot eat it all.
pub fn connect(
    params: &PostgresParams,
    options: &StartupOptions,
    deadline: Instant,
) -> Result<Connection> {
    let encrypts = params.ssl_mode != SslMode::Disable
        && params.hosts.iter().any(|host| !is_socket_directory(host));
    let tls = if encrypts { Some(tls::client_config(params)?) } else { None };
    let attempt = Attempt { params, options, tls };
    let mut errors = Vec::new();
    for (i, host) in params.hosts.iter().enumerate() {
        let deadline = share_of(deadline, params.hosts.len() - i);
        match attempt.host(host, deadline) {
            Ok(connection) => return Ok(connection),
            Err(error) => errors.extend(error),
        }
    }
    Err(most_telling(errors))
}

/// Shared by all attempts of one `connect`.
struct Attempt<'a> {
    params: &'a PostgresParams,
    options: &'a StartupOptions,
    tls: Option<Arc<ClientConfig>>,
}

impl Attempt<'_> {
    fn host(&self, host: &Host, deadline: Instant) -> std::result::Result<Connection, Vec<Error>> {
        let server = format!("{}:{}", host.name, host.port);
        let doing = format!("connect to `{server}`");
        let endpoints = endpoints(host, deadline)
            .map_err(|error| vec![lost(&format!("look up `{}`", host.name), error)])?;
        let mut errors = Vec::new();
        for (i, endpoint) in endpoints.iter().enumerate() {
            let mut deadline = share_of(deadline, endpoints.len() - i);
            if !self.params.connect_timeout.is_zero() {
                deadline = deadline.min(Instant::now() + self.params.connect_timeout);
            }
            let dial =
                Dial { attempt: self, host, endpoint, server: &server, doing: &doing, deadline };
            match dial.connect() {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    // Its other addresses would say the same, and count one more failed login.
                    let refused = server_error(&error).is_some_and(|cause| {
                        cause.sqlstate.starts_with("28") || cause.sqlstate == "3D000"
                    });
                    errors.push(error);
                    if refused {
                        break;
                    }
                }
            }
        }
        if errors.is_empty() {
            errors.push(Error::new(ErrorKind::Unreachable, doing).because("name has no address"));
        }
        Err(errors)
    }
}

/// One address of one host.
#[derive(Clone, Copy)]
struct Dial<'a> {
    attempt: &'a Attempt<'a>,
    host: &'a Host,
    endpoint: &'a Endpoint,
    server: &'a str,
    doing: &'a str,
    deadline: Instant,
}

impl Dial<'_> {
    fn connect(self) -> Result<Connection> {
        let params = self.attempt.params;
        // Like libpq, no TLS over a Unix socket, whatever the mode.
        let tls = match self.endpoint {
            Endpoint::Tcp(address) => self.attempt.tls.as_ref().map(|tls| (tls, address)),
            Endpoint::Unix(_) => None,
        };
        let mut connection = match tls {
            None => self.start_up(self.open()?)?,
            Some((tls, address)) => {
                let name = self.tls_name(address)?;
                match self.open_tls(tls, name) {
                    Ok(link) if params.ssl_mode == SslMode::Prefer && link.is_tls() => {
                        match self.start_up(link) {
                            // A line of pg_hba.conf may admit us without TLS only.
                            Err(error) if is_refused_by_hba(&error) => {
                                self.open().and_then(|link| self.start_up(link)).map_err(|_| error)
                            }
                            outcome => outcome,
                        }?
                    }
                    Ok(link) => self.start_up(link)?,
                    Err(_) if params.ssl_mode == SslMode::Prefer => self.start_up(self.open()?)?,
                    Err(error) => return Err(error),
                }
            }
        };
        self.check_target(&mut connection)?;
        Ok(connection)
    }

    fn open(self) -> Result<Link> {
        let halt = &self.attempt.params.halt;
        Link::open(self.endpoint, self.attempt.options.receive_timeout, self.deadline, halt)
            .map_err(|error| lost(self.doing, error))
    }

    /// Plain if the server has no TLS and the mode does not insist.
    fn open_tls(self, config: &Arc<ClientConfig>, name: ServerName<'static>) -> Result<Link> {
        let mut link = self.open()?;
        let mut message = BytesMut::new();
        frontend::ssl_request(&mut message);
        let mut answer = [0];
        // One byte and no more: anything sent along with it in the clear would be an injection.
        link.write_all(&message, self.deadline)
            .and_then(|()| link.read(&mut answer, remaining(self.deadline)?))
            .and_then(|n| if n == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) })
            .map_err(|error| lost(self.doing, error))?;
        match answer {
            [b'S'] => {
                link.start_tls(config.clone(), name, self.deadline)
                    .map_err(|error| lost(self.doing, error))?;
                Ok(link)
            }
            [b'N'] if self.attempt.params.ssl_mode == SslMode::Prefer => Ok(link),
            [b'N'] => Err(Error::new(ErrorKind::Setup, self.doing)
                .because("server does not support TLS")
                .hint("Set ssl = on in postgresql.conf, or sslmode=disable in the database URL.")),
            // The server is out of processes or memory, before authentication.
            [b'E'] => Err(Error::new(ErrorKind::Unreachable, self.doing)
                .because("server answered the request for TLS with an error")),
            [byte] => Err(protocol(
                self.doing,
                format!("expected an answer to the request for TLS, got 0x{byte:02x}"),
            )),
        }
    }

    fn tls_name(self, address: &SocketAddr) -> Result<ServerName<'static>> {
        match ServerName::try_from(self.host.name.clone()) {
            Ok(name) => Ok(name),
            // Where the name is not checked it need not be one that a certificate could carry.
            Err(_) if self.attempt.params.ssl_mode != SslMode::VerifyFull => {
                Ok(ServerName::from(address.ip()))
            }
            Err(error) => Err(Error::new(ErrorKind::Setup, self.doing).because(error)),
        }
    }

    fn start_up(self, link: Link) -> Result<Connection> {
        let Attempt { params, options, .. } = self.attempt;
        let mut parameters = vec![
            ("user", params.user.as_str()),
            ("database", params.database.as_str()),
            ("client_encoding", "UTF8"),
            ("application_name", options.application_name.as_str()),
        ];
        if options.replication {
            parameters.push(("replication", "database"));
        }
        if let Some(options) = &params.options {
            parameters.push(("options", options));
        }
        parameters.extend(options.options.iter().map(|(name, value)| (&**name, &**value)));
        let mut message = BytesMut::new();
        frontend::startup_message(parameters, &mut message)
            .map_err(|e| Error::new(ErrorKind::Setup, self.doing).because(e))?;

        let mut session = Startup {
            connection: Connection::new(link, self.server.to_owned(), options.receive_timeout),
            dial: self,
        };
        session.send(&message)?;
        auth::authenticate(&mut session, params)?;
        let mut backend_pid = 0;
        loop {
            let (tag, body) = session.receive()?;
            match tag {
                backend::BACKEND_KEY_DATA_TAG => {
                    // The secret for cancel requests follows; we end a connection to cancel.
                    let pid = Wire::new(&body).take_u32("backend pid");
                    backend_pid = pid.map_err(|e| protocol(self.doing, e))?;
                }
                // Speaks of protocol options, of which we ask none.
                NEGOTIATE_PROTOCOL_VERSION_TAG => {}
                backend::READY_FOR_QUERY_TAG => break,
                tag => return Err(unexpected(self.doing, tag)),
            }
        }
        session.connection.ready(backend_pid);
        Ok(session.connection)
    }

    fn check_target(self, connection: &mut Connection) -> Result<()> {
        if self.attempt.params.target == TargetSession::Any {
            return Ok(());
        }
        // A server that is not in recovery is a primary. Sessions that are read-only by default, as
        // on a managed server with a full disk, can still stream.
        let sql = "SELECT pg_catalog.pg_is_in_recovery()::text";
        let results = connection.query(self.doing.to_owned(), sql, self.deadline)?;
        let row = results.first().and_then(|rows| rows.rows.first());
        match row.map(Vec::as_slice) {
            Some([Some(recovery)]) if recovery == "false" => return Ok(()),
            Some([Some(recovery)]) if recovery == "true" => {}
            _ => return Err(protocol(self.doing, "malformed answer")),
        }
        // Not an error of settings: during a failover the new primary looks like this at first.
        Err(Error::new(ErrorKind::Unreachable, self.doing)
            .because("server is a standby, and target_session_attrs is read-write"))
    }

    /// The server's refusal at start-up, with what the operator can do.
    fn refused(self, cause: ServerError) -> Error {
        let PostgresParams { user, database, .. } = self.attempt.params;
        let role = escape_identifier(user);
        let names_startup_parameter = cause.message.contains("startup parameter");
        let routine = cause.routine.clone().unwrap_or_default();
        let hint = match &*cause.sqlstate {
            "42501" if routine == "CheckMyDatabase" => {
                let database = escape_identifier(database);
                format!("Run: GRANT CONNECT ON DATABASE {database} TO {role};")
            }
            "42501" if self.attempt.options.replication => format!(
                "Run: ALTER ROLE {role} REPLICATION; (on Amazon RDS: GRANT rds_replication TO \
                 {role};)"
            ),
            "28P01" => "Correct user and password in the database URL.".to_owned(),
            "28000" if routine == "InitializeSessionUserId" => {
                format!("Create the role {role}, or run: ALTER ROLE {role} LOGIN;")
            }
            "28000" => format!(
                "Allow role {role} to connect to database `{database}` in pg_hba.conf (for logical \
                 replication the line names the database, not `replication`), and run: SELECT \
                 pg_reload_conf();"
            ),
            "3D000" => "Correct the database in the database URL.".to_owned(),
            "08P01" | "0A000" => POOLER_HINT.to_owned(),
            _ if names_startup_parameter => POOLER_HINT.to_owned(),
            _ => return cause.into_error(self.doing),
        };
        cause.into_error(self.doing).hint(hint)
    }
}

/// A connection until the server is ready for queries.
struct Startup<'a> {
    connection: Connection,
    dial: Dial<'a>,
}

impl Dialogue for Startup<'_> {
    fn receive(&mut self) -> Result<(u8, Vec<u8>)> {
        let Dial { doing, deadline, .. } = self.dial;
        match self.connection.receive(doing, STARTUP_FRAME_BYTES_MAX, deadline)? {
            (backend::ERROR_RESPONSE_TAG, body) => {
                Err(self.dial.refused(ServerError::parse(&body)))
            }
            frame => Ok(frame),
        }
    }

    fn send(&mut self, message: &[u8]) -> Result<()> {
        let Dial { doing, deadline, .. } = self.dial;
        let Err(error) = self.connection.send(doing, message, deadline) else { return Ok(()) };
        // A server that hangs up has usually said why, which is more useful than a broken pipe.
        match self.receive() {
            Err(reason) if reason.kind() == ErrorKind::Setup || server_error(&reason).is_some() => {
                Err(reason)
            }
            _ => Err(error),
        }
    }

    fn server_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.connection.server_certificate()
    }

    fn doing(&self) -> &str {
        self.dial.doing
    }
}

fn is_socket_directory(host: &Host) -> bool {
    host.name.starts_with('/')
}

fn is_refused_by_hba(error: &Error) -> bool {
    server_error(error).is_some_and(|cause| cause.sqlstate == "28000")
}

/// The end of our part, when `parties` of them divide the time until `deadline` evenly.
fn share_of(deadline: Instant, parties: usize) -> Instant {
    let now = Instant::now();
    let left = deadline.saturating_duration_since(now);
    now + left / u32::try_from(parties.max(1)).unwrap_or(u32::MAX)
}

fn endpoints(host: &Host, deadline: Instant) -> io::Result<Vec<Endpoint>> {
    if is_socket_directory(host) {
        let path = format!("{}/.s.PGSQL.{}", host.name, host.port);
        return Ok(vec![Endpoint::Unix(path.into())]);
    }
    if let Some(address) = host.fixed_address() {
        return Ok(vec![Endpoint::Tcp(SocketAddr::new(address, host.port))]);
    }
    // The resolver accepts no deadline, so it has its own thread, which may run past the deadline:
    // it ends by itself when the resolver gives up.
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let name = (host.name.clone(), host.port);
    std::thread::Builder::new().name("resolve".to_owned()).spawn(move || {
        let _ = sender.send(name.to_socket_addrs().map(Iterator::collect::<Vec<_>>));
    })?;
    let addresses = match receiver.recv_deadline(deadline) {
        Ok(answer) => answer?,
        Err(_) => remaining(deadline).and(Err(io::ErrorKind::Other.into()))?,
    };
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for address in addresses {
        let endpoint = Endpoint::Tcp(address);
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    Ok(endpoints)
}

/// Of several failed attempts, the errors that the operator can fix come first.
fn most_telling(mut errors: Vec<Error>) -> Error {
    if errors.is_empty() {
        return Error::new(ErrorKind::Setup, "connect to Postgres: no host")
            .hint("Name a host in the database URL.");
    }
    errors.sort_by_key(|error| error.kind() == ErrorKind::Unreachable);
    let first = errors.remove(0);
    if errors.is_empty() {
        return first;
    }
    let kind = first.kind();
    let hint = first.hint_text().map(str::to_owned);
    errors.insert(0, first);
    let error = Error::new(kind, "find a server").because(NoneWouldDo { attempts: errors });
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_is_divided_among_those_still_to_be_tried() {
        let deadline = Instant::now() + Duration::from_secs(30);
        let share = share_of(deadline, 3).saturating_duration_since(Instant::now());
        assert!(Duration::from_secs(9) < share && share <= Duration::from_secs(10), "{share:?}");
        assert!(share_of(Instant::now() - Duration::from_secs(1), 2) <= Instant::now());
    }

    #[test]
    fn error_that_can_be_mended_comes_before_the_unreachable() {
        let errors = vec![
            Error::new(ErrorKind::Unreachable, "connect to `a`"),
            Error::new(ErrorKind::Setup, "connect to `b`").hint("Do it."),
        ];
        let error = most_telling(errors);
        assert_eq!(error.to_string(), "find a server: connect to `b`; connect to `a`");
        assert_eq!((error.kind(), error.hint_text()), (ErrorKind::Setup, Some("Do it.")));
    }
}
