//! `walhouse status`: what the running process says of itself, or else what the servers say.

mod ask;
mod servers;

use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use self::ask::StatusEndpoint;

use super::{refuse, with_config};
use crate::config::Config;
use crate::overview::{Overview, table};

/// A process that answers does so at once; the command does not wait for one that is stopped.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Clears the terminal and begins at its upper left.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// As the arguments say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    pub json: bool,
    /// Seconds between two refreshes.
    pub watch: Option<u64>,
    pub url: Option<String>,
}

pub(super) fn status(options: &Options) -> ExitCode {
    match &options.url {
        Some(url) => match StatusEndpoint::parse(url) {
            Ok(endpoint) => show(options, || {
                ask::overview(&endpoint, Instant::now() + ASK_TIMEOUT)
                    .map_err(|cause| format!("ask {endpoint}: {cause}"))
            }),
            Err(cause) => refuse(&format!("walhouse: read --url `{url}`: {cause}")),
        },
        None => with_config(|config| show(options, || Ok(look(&config)))),
    }
}

/// The process where it answers, or else the servers.
fn look(config: &Config) -> Overview {
    let told = match config.http_listen.map(reachable) {
        None => "REPLICATION_HTTP_LISTEN is off".to_owned(),
        Some(addr) if addr.port() == 0 => "REPLICATION_HTTP_LISTEN names no port".to_owned(),
        Some(addr) => {
            let endpoint = StatusEndpoint::at(addr);
            match ask::overview(&endpoint, Instant::now() + ASK_TIMEOUT) {
                Ok(overview) => return overview,
                Err(cause) => format!("no walhouse answers on {endpoint}: {cause}"),
            }
        }
    };
    // If stderr is closed there is nobody to report it to.
    let _ = writeln!(std::io::stderr(), "walhouse: {told}; asking the servers");
    servers::overview(config)
}

/// An address that means all of this machine's is asked at the loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Once, or over and over until the terminal or the reader is gone.
fn show(options: &Options, look: impl Fn() -> Result<Overview, String>) -> ExitCode {
    let clear = options.watch.is_some() && !options.json && std::io::stdout().is_terminal();
    loop {
        let found = look();
        let mut text = match &found {
            Ok(overview) if options.json => overview.to_json(),
            Ok(overview) => table::table(overview),
            Err(cause) => {
                let _ = writeln!(std::io::stderr(), "walhouse: {cause}");
                String::new()
            }
        };
        if clear {
            text.insert_str(0, CLEAR);
        }
        let mut stdout = std::io::stdout();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        match (options.watch, written) {
            (Some(seconds), Ok(())) => std::thread::sleep(Duration::from_secs(seconds)),
            _ => {
                let is_healthy = found.is_ok_and(|overview| overview.healthy);
                return if is_healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_are_asked_at_the_loopback() {
        for (listen, expected) in [
            ("0.0.0.0:9465", "127.0.0.1:9465"),
            ("[::]:9465", "[::1]:9465"),
            ("10.0.0.1:80", "10.0.0.1:80"),
        ] {
            let listen = listen.parse().expect("an address");
            assert_eq!(reachable(listen).to_string(), expected);
        }
    }
}
