//! The addresses of a host list, how they share the time, and the error if none of them accepts us.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::connector::SSL_REQUEST;
use super::{SqlError, no_answer};
use crate::error::{Error, ErrorKind};
use crate::postgres::params::Host;

/// The end of one of `parts` equal parts of the time that is left.
pub fn share(deadline: Instant, parts: usize) -> Instant {
    let now = Instant::now();
    let parts = u32::try_from(parts.max(1)).unwrap_or(u32::MAX);
    now + deadline.saturating_duration_since(now) / parts
}

/// `None` is a Unix socket.
pub fn addresses(
    host: &Host,
    until: Instant,
) -> std::result::Result<Vec<Option<IpAddr>>, SqlError> {
    if host.name.starts_with('/') {
        return Ok(vec![None]);
    }
    if let Some(address) = host.fixed_address() {
        return Ok(vec![Some(address)]);
    }
    // The resolver knows no deadline. A thread that outlives ours ends by the resolver's own.
    let (answer, answers) = crossbeam_channel::bounded(1);
    let (name, port) = (host.name.clone(), host.port);
    let spawned = thread::Builder::new().name("resolve".into()).spawn(move || {
        let found = (name.as_str(), port).to_socket_addrs().map(|all| all.collect::<Vec<_>>());
        // The caller may have stopped waiting.
        let _ = answer.send(found);
    });
    let unreachable = |cause: String| SqlError::new(ErrorKind::Unreachable, cause);
    spawned.map_err(|error| unreachable(format!("start a thread: {error}")))?;
    let found: Vec<SocketAddr> = answers
        .recv_deadline(until)
        .map_err(|_| unreachable("no answer from the name resolver in time".into()))?
        .map_err(|error| unreachable(format!("resolve the name: {error}")))?;
    let mut all: Vec<Option<IpAddr>> = Vec::new();
    for address in found {
        if !all.contains(&Some(address.ip())) {
            all.push(Some(address.ip()));
        }
    }
    match all.is_empty() {
        true => Err(unreachable("the name has no address".into())),
        false => Ok(all),
    }
}

/// Checks, within the time, that a server answers at the Unix socket: the client would wait for
/// ever.
pub fn probe(host: &Host, until: Instant) -> std::result::Result<(), SqlError> {
    let waited = until.saturating_duration_since(Instant::now());
    let path = Path::new(&host.name).join(format!(".s.PGSQL.{}", host.port));
    let unreachable = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => no_answer(waited),
        _ => SqlError::new(ErrorKind::Unreachable, error.to_string()),
    };
    // The question for TLS: any answer will do, and Postgres logs nothing when we leave then.
    let mut socket = UnixStream::connect(path).map_err(unreachable)?;
    socket.set_read_timeout(Some(waited.max(Duration::from_millis(1)))).map_err(unreachable)?;
    socket.set_write_timeout(Some(waited.max(Duration::from_millis(1)))).map_err(unreachable)?;
    socket.write_all(&SSL_REQUEST).map_err(unreachable)?;
    socket.read_exact(&mut [0]).map_err(unreachable)
}

pub fn name_of(host: &Host, address: Option<IpAddr>) -> String {
    match address {
        Some(address) if address.to_string() != host.name => {
            format!("{}:{} ({address})", host.name, host.port)
        }
        _ => format!("{}:{}", host.name, host.port),
    }
}

/// Setup only when every host said so: while one is merely away, trying again may help.
pub fn refused_by_all(refused: Vec<(String, SqlError)>, doing: String) -> Error {
    let first = refused.first().map_or(ErrorKind::Unreachable, |(_, error)| error.kind);
    let same = refused.iter().all(|(_, error)| error.kind == first);
    let kind = if same { first } else { ErrorKind::Unreachable };
    let causes: Vec<String> =
        refused.iter().map(|(name, error)| format!("`{name}`: {}", error.cause)).collect();
    let error = Error::new(kind, doing).because(causes.join("; "));
    // Errors that need a fix come before those that may pass.
    let (mut wrong, mut away): (Vec<_>, Vec<_>) =
        refused.into_iter().partition(|(_, error)| error.kind == ErrorKind::Setup);
    wrong.append(&mut away);
    match wrong.into_iter().find_map(|(_, error)| error.hint) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_that_is_merely_away_makes_the_whole_worth_another_try() {
        let away = || ("a:1".to_owned(), SqlError::new(ErrorKind::Unreachable, "refused"));
        let wrong = || ("b:1".to_owned(), SqlError::new(ErrorKind::Setup, "no").with_hint("h"));
        let error = refused_by_all(vec![away(), wrong()], "connect".into());
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert_eq!(error.to_string(), "connect: `a:1`: refused; `b:1`: no");
        assert_eq!(error.hint_text(), Some("h"));
        let error = refused_by_all(vec![wrong(), wrong()], "connect".into());
        assert_eq!(error.kind(), ErrorKind::Setup);
    }

    #[test]
    fn the_time_left_is_shared_fairly() {
        let now = Instant::now();
        let end = share(now + Duration::from_secs(9), 3);
        assert!(end <= now + Duration::from_secs(4) && end >= now + Duration::from_secs(2));
        assert!(share(now - Duration::from_secs(1), 0) >= now);
    }
}
