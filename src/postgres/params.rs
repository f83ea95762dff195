//! The parameters of a `DATABASE_URL`: where Postgres is and how to reach it.
//!
//! Accepts what libpq accepts, URLs and key=value pairs, and tolerates what ORMs and poolers add.
//! Reads neither files nor the environment: no `PGPASSWORD`, no service file, no `~/.postgresql`.
//! See <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING>.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::halt::Halt;
use crate::secret::Secret;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresParams {
    /// Tried in order; each attempt tries them all within the attempt's time.
    pub hosts: Vec<Host>,
    pub user: String,
    pub password: Option<Secret>,
    pub database: String,
    pub ssl_mode: SslMode,
    /// A file, or the word `system` for the machine's own roots.
    pub ssl_root_cert: Option<PathBuf>,
    pub ssl_cert: Option<PathBuf>,
    pub ssl_key: Option<PathBuf>,
    pub connect_timeout: Duration,
    pub target: TargetSession,
    /// Extra `options` start-up parameter, as libpq accepts it.
    pub options: Option<String>,
    /// Ends each wait for the server before its deadline.
    pub halt: Halt,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// A DNS name, an IP address, or an absolute path of a Unix socket directory.
    pub name: String,
    pub port: u16,
    /// The one of its addresses that is meant, once a session has chosen it.
    pub address: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSession {
    Any,
    ReadWrite,
}

/// Why a text is refused. Holds no piece of the text, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostgresParamsError {
    NotPostgres,
    StrayAt,
    Escape,
    Query,
    Ipv6,
    Pairs,
    Quote,
    Nul,
    HostName,
    Port,
    PortCount,
    /// A parameter of a few values has another one.
    Value {
        parameter: &'static str,
        expected: &'static str,
    },
    CertWithoutKey,
    WeakSystemRoots,
    HostAddr,
    Service,
}

const PORT: u16 = 5432;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Parameters as they were said, in order; of several with one key the last one holds.
type Settings = Vec<(String, String)>;

impl Host {
    /// By the address that its name has when connecting.
    pub fn new(name: impl Into<String>, port: u16) -> Host {
        Host { name: name.into(), port, address: None }
    }

    /// The address, if no resolver is needed.
    pub fn fixed_address(&self) -> Option<IpAddr> {
        self.address.or_else(|| self.name.parse().ok())
    }
}

impl PostgresParams {
    /// The parameters and the warnings about them.
    ///
    /// Defaults: host `localhost`, port 5432, user `postgres`, the database named as the user, TLS
    /// if the server supports it, and with several hosts the one that accepts writes.
    pub fn parse(text: &str) -> Result<(PostgresParams, Vec<String>), PostgresParamsError> {
        let settings = match text.split_once("://") {
            Some(("postgres" | "postgresql", rest)) => url_settings(rest)?,
            // A key=value value may well hold the characters.
            Some((scheme, _)) if !scheme.contains('=') => {
                return Err(PostgresParamsError::NotPostgres);
            }
            Some(_) | None => pair_settings(text)?,
        };
        from_settings(settings)
    }
}

fn from_settings(settings: Settings) -> Result<(PostgresParams, Vec<String>), PostgresParamsError> {
    let mut warnings = Vec::new();
    let (mut host, mut hostaddr, mut port) = (None, None, None);
    let (mut user, mut password, mut database) = (None, None, None);
    let (mut ssl_mode, mut ssl_root_cert, mut ssl_cert, mut ssl_key) = (None, None, None, None);
    let (mut connect_timeout, mut target, mut options) = (CONNECT_TIMEOUT, None, None);
    for (key, value) in settings {
        if value.contains('\0') {
            return Err(PostgresParamsError::Nul);
        }
        if value.is_empty() {
            continue;
        }
        match key.as_str() {
            "host" => host = Some(value),
            "hostaddr" => hostaddr = Some(value),
            "port" => port = Some(value),
            "user" => user = Some(value),
            "password" => password = Some(Secret::new(value)),
            "dbname" => database = Some(value),
            "sslmode" => ssl_mode = Some(parse_ssl_mode(&value)?),
            "ssl" => ssl_mode = ssl_mode.or(Some(parse_ssl(&value)?)),
            "sslrootcert" => ssl_root_cert = Some(PathBuf::from(value)),
            "sslcert" => ssl_cert = Some(PathBuf::from(value)),
            "sslkey" => ssl_key = Some(PathBuf::from(value)),
            "connect_timeout" => connect_timeout = parse_timeout(&value, &mut warnings)?,
            "target_session_attrs" => target = Some(parse_target(&value)?),
            "options" => options = Some(value),
            "service" => return Err(PostgresParamsError::Service),
            _ => warnings.extend(bear(&key, &value)),
        }
    }

    let hosts = match (host, hostaddr) {
        (Some(_), Some(_)) => return Err(PostgresParamsError::HostAddr),
        (host, hostaddr) => parse_hosts(host.or(hostaddr).as_deref(), port.as_deref())?,
    };
    let uses_system_roots = ssl_root_cert.as_deref().is_some_and(|p| p.as_os_str() == "system");
    let ssl_mode = match ssl_mode {
        // As in libpq: the machine's roots vouch for anybody, so the name must be checked too.
        None if uses_system_roots => SslMode::VerifyFull,
        Some(mode) if uses_system_roots && mode != SslMode::VerifyFull => {
            return Err(PostgresParamsError::WeakSystemRoots);
        }
        mode => mode.unwrap_or(SslMode::Prefer),
    };
    if ssl_cert.is_some() != ssl_key.is_some() {
        return Err(PostgresParamsError::CertWithoutKey);
    }
    let user = user.unwrap_or_else(|| "postgres".into());
    let one_or_any = if hosts.len() > 1 { TargetSession::ReadWrite } else { TargetSession::Any };
    let params = PostgresParams {
        hosts,
        database: database.unwrap_or_else(|| user.clone()),
        user,
        password,
        ssl_mode,
        ssl_root_cert,
        ssl_cert,
        ssl_key,
        connect_timeout,
        target: target.unwrap_or(one_or_any),
        options,
        halt: Halt::default(),
    };
    Ok((params, warnings))
}

/// Pools, keepalives, prepared statements of other clients, and what we do anyway.
const NEEDLESS: [&str; 24] = [
    "channel_binding",
    "client_encoding",
    "connection_limit",
    "fallback_application_name",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "max_connection_lifetime",
    "max_idle_connection_lifetime",
    "pgbouncer",
    "pool_size",
    "pool_timeout",
    "replication",
    "single_use_connections",
    "socket_timeout",
    "sslaccept",
    "sslcompression",
    "sslsni",
    "statement_cache_size",
    "statement_timeout",
    "tcp_user_timeout",
    "uselibpqcompat",
];

/// The warning about a parameter that has no effect here, if it needs one.
fn bear(key: &str, value: &str) -> Option<String> {
    match (key, value) {
        ("pgbouncer", "true" | "1") => Some(
            "`pgbouncer` says that there is a pooler in between: logical replication needs a \
             direct connection"
                .into(),
        ),
        ("schema", "public") => None,
        ("schema", _) => {
            Some("`schema` is ignored: the tables are read from schema `public`".into())
        }
        ("application_name", _) => {
            Some("`application_name` is ignored: walhouse gives its own".into())
        }
        ("sslaccept", "strict") => {
            Some("`sslaccept` is ignored: `sslmode=verify-full` checks the certificate".into())
        }
        ("channel_binding", "require") => Some(
            "`channel_binding` is ignored: walhouse uses it where it can and does not require it"
                .into(),
        ),
        ("gssencmode", "disable" | "prefer")
        | ("load_balance_hosts", "disable")
        | ("sslnegotiation", "postgres") => None,
        _ if NEEDLESS.contains(&key) => None,
        _ => Some(format!("unknown parameter `{}` is ignored", key.escape_debug())),
    }
}

fn parse_ssl_mode(value: &str) -> Result<SslMode, PostgresParamsError> {
    match value {
        "disable" => Ok(SslMode::Disable),
        // `allow` tries without TLS first, which gains nothing over trying with it first.
        "allow" | "prefer" => Ok(SslMode::Prefer),
        // `no-verify` is node-postgres's word for libpq's `require`.
        "require" | "no-verify" => Ok(SslMode::Require),
        "verify-ca" => Ok(SslMode::VerifyCa),
        "verify-full" => Ok(SslMode::VerifyFull),
        _ => Err(PostgresParamsError::Value {
            parameter: "sslmode",
            expected: "disable, prefer, require, verify-ca or verify-full",
        }),
    }
}

/// JDBC's and node-postgres's flag.
fn parse_ssl(value: &str) -> Result<SslMode, PostgresParamsError> {
    match value {
        "true" | "1" => Ok(SslMode::Require),
        "false" | "0" => Ok(SslMode::Disable),
        _ => Err(PostgresParamsError::Value { parameter: "ssl", expected: "true or false" }),
    }
}

fn parse_timeout(value: &str, warnings: &mut Vec<String>) -> Result<Duration, PostgresParamsError> {
    match value.parse::<i64>() {
        Ok(seconds) if seconds <= 0 => {
            let used = CONNECT_TIMEOUT.as_secs();
            warnings.push(format!("`connect_timeout` without a limit is not supported: {used} s"));
            Ok(CONNECT_TIMEOUT)
        }
        Ok(seconds) if seconds <= 3600 => Ok(Duration::from_secs(seconds.unsigned_abs())),
        Ok(_) | Err(_) => Err(PostgresParamsError::Value {
            parameter: "connect_timeout",
            expected: "a number of seconds up to 3600",
        }),
    }
}

fn parse_target(value: &str) -> Result<TargetSession, PostgresParamsError> {
    match value {
        "any" => Ok(TargetSession::Any),
        "read-write" | "primary" => Ok(TargetSession::ReadWrite),
        _ => Err(PostgresParamsError::Value {
            parameter: "target_session_attrs",
            expected: "any, read-write or primary",
        }),
    }
}

/// Two lists side by side, as libpq has them; one port serves all hosts.
fn parse_hosts(names: Option<&str>, ports: Option<&str>) -> Result<Vec<Host>, PostgresParamsError> {
    let names: Vec<&str> = names.unwrap_or_default().split(',').collect();
    let ports: Vec<&str> = ports.unwrap_or_default().split(',').collect();
    if ports.len() != 1 && ports.len() != names.len() {
        return Err(PostgresParamsError::PortCount);
    }
    let host = |(name, port): (&str, &&str)| {
        let name = if name.is_empty() { "localhost" } else { name };
        if !name.starts_with('/') && name.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err(PostgresParamsError::HostName);
        }
        let port = match *port {
            "" => PORT,
            port => port.parse().ok().filter(|n| *n > 0).ok_or(PostgresParamsError::Port)?,
        };
        Ok(Host::new(name, port))
    };
    names.iter().copied().zip(ports.iter().cycle()).map(host).collect()
}

/// `[user[:password]@][host[:port][,...]][/database][?key=value[&...]]`
fn url_settings(rest: &str) -> Result<Settings, PostgresParamsError> {
    let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let (userinfo, places) = match authority.rsplit_once('@') {
        Some((userinfo, places)) => (Some(userinfo), places),
        None => (None, authority),
    };
    // An unescaped `/` or `?` in a password ends the host too early, and the rest of the password
    // would pass for a database or a parameter, which are logged.
    if tail.contains('@') {
        return Err(PostgresParamsError::StrayAt);
    }

    let mut settings = Settings::new();
    let mut say = |key: &str, value: String| settings.push((key.into(), value));
    if let Some(userinfo) = userinfo {
        let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
        say("user", decode(user)?);
        say("password", decode(password)?);
    }
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    for place in places.split(',') {
        let (host, port) = match place.strip_prefix('[') {
            Some(place) => {
                let (address, rest) = place.split_once(']').ok_or(PostgresParamsError::Ipv6)?;
                (address, if rest.is_empty() { Some("") } else { rest.strip_prefix(':') })
            }
            None => match place.split_once(':') {
                Some((_, rest)) if rest.contains(':') => return Err(PostgresParamsError::Ipv6),
                Some((host, port)) => (host, Some(port)),
                None => (place, Some("")),
            },
        };
        hosts.push(decode(host)?);
        ports.push(port.ok_or(PostgresParamsError::Port)?);
    }
    say("host", hosts.join(","));
    // The lists have one length; all empty means none, so that `?port=` may stand for all.
    if ports.iter().any(|port| !port.is_empty()) {
        say("port", ports.join(","));
    }
    say("dbname", decode(path.strip_prefix('/').unwrap_or(path))?);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or(PostgresParamsError::Query)?;
        say(&decode(key)?, decode(value)?);
    }
    Ok(settings)
}

/// `key=value key='with spaces, \' and \\'`, blanks around `=` allowed.
fn pair_settings(text: &str) -> Result<Settings, PostgresParamsError> {
    let mut settings = Settings::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, value) = rest.split_once('=').ok_or(PostgresParamsError::Pairs)?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(PostgresParamsError::Pairs);
        }
        let value = value.trim_start();
        let (quoted, value) = match value.strip_prefix('\'') {
            Some(value) => (true, value),
            None => (false, value),
        };
        let mut out = String::new();
        let mut chars = value.chars();
        loop {
            match chars.next() {
                Some('\\') => out.extend(chars.next()),
                Some('\'') if quoted => break,
                Some(c) if !quoted && c.is_whitespace() => break,
                Some(c) => out.push(c),
                None if quoted => return Err(PostgresParamsError::Quote),
                None => break,
            }
        }
        settings.push((key.into(), out));
        rest = chars.as_str().trim_start();
    }
    // An empty text is an error.
    if settings.is_empty() { Err(PostgresParamsError::Pairs) } else { Ok(settings) }
}

fn decode(text: &str) -> Result<String, PostgresParamsError> {
    // The decoder leaves a broken escape as it is; here it is most likely a raw `%` of a password.
    let is_escape =
        |digits: &str| digits.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    if !text.split('%').skip(1).all(is_escape) {
        return Err(PostgresParamsError::Escape);
    }
    match percent_decode_str(text).decode_utf8() {
        Ok(decoded) => Ok(decoded.into_owned()),
        Err(_) => Err(PostgresParamsError::Escape),
    }
}

/// As whom and where, for errors and logs: `user@host:port,host:port/database`.
impl fmt::Display for PostgresParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.user.escape_debug())?;
        for (n, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if n == 0 { "" } else { "," })?;
        }
        write!(f, "/{}", self.database.escape_debug())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.escape_debug();
        if self.name.contains(':') {
            write!(f, "[{name}]:{}", self.port)
        } else {
            write!(f, "{name}:{}", self.port)
        }
    }
}

impl fmt::Display for PostgresParamsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PostgresParamsError::NotPostgres => {
                "it begins with neither postgres:// nor postgresql://"
            }
            PostgresParamsError::StrayAt => {
                "there is an `@` after the host: write it as %40, and `/` and `?` of a password as \
                 %2F and %3F"
            }
            PostgresParamsError::Escape => {
                "an escape such as %2F is malformed, or is not UTF-8: write `%` itself as %25"
            }
            PostgresParamsError::Query => "a `=` is missing after the `?`",
            PostgresParamsError::Ipv6 => "write an IPv6 address in brackets, as in [::1]:5432",
            PostgresParamsError::Pairs => "this is neither a URL nor key=value pairs",
            PostgresParamsError::Quote => "a closing quote is missing",
            PostgresParamsError::Nul => "a value has a NUL byte",
            PostgresParamsError::HostName => "a host name has a space or a slash",
            PostgresParamsError::Port => "a port is not a number from 1 to 65535",
            PostgresParamsError::PortCount => "there must be one port, or as many ports as hosts",
            PostgresParamsError::Value { parameter, expected } => {
                return write!(f, "`{parameter}` is not {expected}");
            }
            PostgresParamsError::CertWithoutKey => {
                "`sslcert` and `sslkey` are the client's and must be set together; the server's \
                 authority is `sslrootcert`"
            }
            PostgresParamsError::WeakSystemRoots => {
                "`sslrootcert=system` needs `sslmode=verify-full`"
            }
            PostgresParamsError::HostAddr => {
                "`hostaddr` together with `host` is not supported: use one of them"
            }
            PostgresParamsError::Service => "`service` is not supported: no service file is read",
        })
    }
}

impl std::error::Error for PostgresParamsError {}

#[cfg(test)]
mod tests;
