//! The parameters of a `CLICKHOUSE_URL`: where ClickHouse is and how to reach it, and how to
//! insert.
//!
//! The URL is that of the HTTP interface, as ClickHouse's own clients accept it. Its database is
//! not used: the tables of a service have their own.

use std::fmt;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use super::hosts::Hosts;
use crate::halt::Halt;
use crate::secret::Secret;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClickHouseParams {
    /// Without credentials, path or query. All of them replicate the same tables.
    pub hosts: Hosts,
    pub user: String,
    pub password: Secret,
    /// The database of the target tables and of walhouse's own tables.
    pub database: String,
    /// One request, from its first byte to its answer.
    pub request_timeout: Duration,
    /// Inserts travel as LZ4. On one machine that costs more than it saves.
    pub compress: bool,
    pub keep_alive: bool,
    pub keep_alive_idle: Option<Duration>,
    pub connections_max: usize,
    pub insert_strategy: InsertStrategy,
    /// Tables that are missing are made on every replica of it.
    pub cluster: Option<String>,
    /// An insert counts when so many replicas have it.
    pub quorum: Option<Quorum>,
    /// When a request is given up before its answer.
    pub halt: Halt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quorum {
    Replicas(u32),
    /// More than half of them.
    Auto,
}

impl Quorum {
    pub const REPLICAS_MAX: u32 = 1000;

    pub fn parse(text: &str) -> Option<Quorum> {
        match text.trim() {
            "auto" => Some(Quorum::Auto),
            text => {
                let replicas =
                    text.parse().ok().filter(|n| (1..=Self::REPLICAS_MAX).contains(n))?;
                Some(Quorum::Replicas(replicas))
            }
        }
    }

    /// Whether it asks for more than the host's own copy.
    pub fn asks_for_others(self) -> bool {
        self != Quorum::Replicas(1)
    }
}

/// As ClickHouse accepts it.
impl fmt::Display for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quorum::Replicas(replicas) => write!(f, "{replicas}"),
            Quorum::Auto => f.write_str("auto"),
        }
    }
}

/// Which path the server uses. Either way walhouse waits for the answer before it confirms
/// anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InsertStrategy {
    Insert,
    InsertAsync,
}

/// Why a URL is refused. Holds no piece of the text, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClickHouseParamsError {
    NotHttp,
    NativeProtocol,
    NotAUrl,
    NoHost,
    Port,
    StrayAt,
    Fragment,
    Escape,
    Secure,
    Compress,
    RequestTimeout,
    AccessToken,
}

impl ClickHouseParams {
    /// The same at one of its hosts alone.
    pub(super) fn at(&self, endpoint: &str) -> ClickHouseParams {
        ClickHouseParams { hosts: Hosts::one(endpoint.to_owned()), ..self.clone() }
    }

    /// The parameters and the warnings about them. What the URL does not set (keep-alive,
    /// connections, strategy) has its default.
    /// The tables live in `database`, whatever the URL says.
    pub fn parse(
        text: &str,
        database: &str,
    ) -> Result<(ClickHouseParams, Vec<String>), ClickHouseParamsError> {
        let mut warnings = Vec::new();
        let texts = one_for_each_host(text)?;
        let urls = texts.iter().map(|text| parse_url(text)).collect::<Result<Vec<_>, _>>()?;
        let url = urls.first().ok_or(ClickHouseParamsError::NoHost)?;
        let mut user = decode(url.username())?;
        let mut password = decode(url.password().unwrap_or_default())?;
        let mut is_secure = url.scheme() == "https";
        let mut request_timeout = Duration::from_secs(30);
        let mut compress = !urls.iter().all(is_loopback);

        note_database(&mut warnings, database, &decode(url.path().trim_matches('/'))?);
        for (key, value) in url.query_pairs() {
            match key.as_ref() {
                "secure" => match value.as_ref() {
                    "1" | "true" => is_secure = true,
                    // The scheme has said it.
                    "0" | "false" | "" => {}
                    _ => return Err(ClickHouseParamsError::Secure),
                },
                "compress" => match value.as_ref() {
                    "1" | "true" => compress = true,
                    "0" | "false" => compress = false,
                    _ => return Err(ClickHouseParamsError::Compress),
                },
                "database" => note_database(&mut warnings, database, &value),
                "user" | "username" if user.is_empty() => user = value.into_owned(),
                "password" if password.is_empty() => password = value.into_owned(),
                "user" | "username" | "password" => {
                    warnings.push(format!(
                        "parameter `{key}` is ignored: the URL has one in front of the host"
                    ));
                }
                "request_timeout" => {
                    let millis = value.parse().ok().filter(|ms| (1..=3_600_000).contains(ms));
                    request_timeout =
                        Duration::from_millis(millis.ok_or(ClickHouseParamsError::RequestTimeout)?);
                }
                "access_token" => return Err(ClickHouseParamsError::AccessToken),
                _ => warnings.push(unknown(&key)),
            }
        }

        let scheme = if is_secure { "https" } else { "http" };
        let mut endpoints = Vec::new();
        for (url, text) in urls.iter().zip(&texts) {
            let (port, warning) = port_of(url, text, is_secure);
            warnings.extend(warning.filter(|warning| !warnings.contains(warning)));
            let host = url
                .host_str()
                .filter(|host| !host.is_empty())
                .ok_or(ClickHouseParamsError::NoHost)?;
            let endpoint = format!("{scheme}://{host}:{port}");
            if !endpoints.contains(&endpoint) {
                endpoints.push(endpoint);
            }
        }
        let params = ClickHouseParams {
            hosts: Hosts::new(endpoints).ok_or(ClickHouseParamsError::NoHost)?,
            user: if user.is_empty() { "default".into() } else { user },
            password: Secret::new(password),
            database: database.into(),
            request_timeout,
            compress,
            keep_alive: false,
            keep_alive_idle: None,
            connections_max: 10,
            insert_strategy: InsertStrategy::Insert,
            cluster: None,
            quorum: None,
            halt: Halt::default(),
        };
        Ok((params, warnings))
    }
}

/// Where and as whom, for errors and logs.
impl fmt::Display for ClickHouseParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {}", self.hosts, self.user.escape_debug())
    }
}

impl fmt::Display for ClickHouseParamsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClickHouseParamsError::NotHttp => "it begins with neither http:// nor https://",
            ClickHouseParamsError::NativeProtocol => {
                "walhouse does not speak the native protocol: use the HTTP interface, usually port \
                 8123"
            }
            ClickHouseParamsError::NotAUrl => "this is not a URL",
            ClickHouseParamsError::NoHost => "the host is missing",
            ClickHouseParamsError::Port => "the port is not a number from 1 to 65535",
            ClickHouseParamsError::StrayAt => {
                "there is an `@` after the host: write it as %40, and `/`, `?` and `#` of a \
                 password as %2F, %3F and %23"
            }
            ClickHouseParamsError::Fragment => "it has a `#`: write it as %23",
            ClickHouseParamsError::Escape => "an escape such as %2F is malformed, or is not UTF-8",
            ClickHouseParamsError::Secure => "`secure` is not 1, 0, true or false",
            ClickHouseParamsError::Compress => "`compress` is not 1, 0, true or false",
            ClickHouseParamsError::RequestTimeout => {
                "`request_timeout` is not a number from 1 to 3600000"
            }
            ClickHouseParamsError::AccessToken => {
                "`access_token` is not supported: use user and password"
            }
        })
    }
}

impl std::error::Error for ClickHouseParamsError {}

fn parse_url(text: &str) -> Result<Url, ClickHouseParamsError> {
    let (scheme, rest) = text.split_once("://").ok_or(ClickHouseParamsError::NotHttp)?;
    match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" => {}
        "clickhouse" | "tcp" | "native" => return Err(ClickHouseParamsError::NativeProtocol),
        _ => return Err(ClickHouseParamsError::NotHttp),
    }
    // The parser would treat an unescaped `/` in a password as the end of the host, and the rest of
    // the password as a path, which would be logged.
    if rest.get(authority(rest).len()..).is_some_and(|tail| tail.contains('@')) {
        return Err(ClickHouseParamsError::StrayAt);
    }
    if rest.contains('#') {
        return Err(ClickHouseParamsError::Fragment);
    }
    let url = Url::parse(text).map_err(|cause| match cause {
        url::ParseError::EmptyHost => ClickHouseParamsError::NoHost,
        url::ParseError::InvalidPort => ClickHouseParamsError::Port,
        _ => ClickHouseParamsError::NotAUrl,
    })?;
    if url.port() == Some(0) {
        return Err(ClickHouseParamsError::Port);
    }
    Ok(url)
}

/// `http://u@a:1,b:2/?x` is `http://u@a:1/?x` and `http://u@b:2/?x`.
fn one_for_each_host(text: &str) -> Result<Vec<String>, ClickHouseParamsError> {
    let (scheme, rest) = text.split_once("://").ok_or(ClickHouseParamsError::NotHttp)?;
    let (authority, tail) = rest.split_at(authority(rest).len());
    // A password may have a comma.
    let hosts_at = authority.rfind('@').map_or(0, |at| at + 1);
    let (user, hosts) = authority.split_at(hosts_at);
    Ok(hosts.split(',').map(|host| format!("{scheme}://{user}{}{tail}", host.trim())).collect())
}

/// The port, and a warning about it if it needs one.
fn port_of(url: &Url, text: &str, is_secure: bool) -> (u16, Option<String>) {
    match url.port_or_known_default().filter(|_| names_port(text)) {
        Some(port @ (9000 | 9440)) => {
            let warning = format!(
                "port {port} usually speaks the native protocol, but walhouse needs the HTTP \
                 interface"
            );
            (port, Some(warning))
        }
        Some(port) => (port, None),
        None => {
            let port = if is_secure { 8443 } else { 8123 };
            (port, Some(format!("no port is given: using {port}")))
        }
    }
}

/// Whether the server is on this machine, as far as its name says so.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The parser forgets a port that is its scheme's default, which is not ours.
fn names_port(text: &str) -> bool {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = authority(rest);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let after_address = host.rsplit_once(']').map_or(host, |(_, rest)| rest);
    after_address.split_once(':').is_some_and(|(_, port)| !port.is_empty())
}

fn authority(rest: &str) -> &str {
    rest.split(['/', '\\', '?', '#']).next().unwrap_or_default()
}

fn decode(text: &str) -> Result<String, ClickHouseParamsError> {
    match percent_decode_str(text).decode_utf8() {
        Ok(decoded) => Ok(decoded.into_owned()),
        Err(_) => Err(ClickHouseParamsError::Escape),
    }
}

fn note_database(warnings: &mut Vec<String>, database: &str, named: &str) {
    if !["", "default", database].contains(&named) {
        let shown = named.escape_debug();
        warnings.push(format!("database `{shown}` is ignored: tables live in `{database}`"));
    }
}

fn unknown(key: &str) -> String {
    format!("unknown parameter `{}` is ignored", key.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(ClickHouseParams, Vec<String>), ClickHouseParamsError> {
        ClickHouseParams::parse(text, "trigger_dev")
    }

    #[track_caller]
    fn check(text: &str, expected: &str, warnings: &[&str]) {
        let (params, said) = parse(text).expect("the URL is good");
        let found = format!(
            "{} {} {} {}s",
            params.hosts,
            params.user,
            params.password.expose(),
            params.request_timeout.as_secs_f64()
        );
        assert_eq!(found, expected);
        assert_eq!(said, warnings, "{text}");
        assert_eq!(params.database, "trigger_dev");
    }

    #[test]
    fn urls_are_taken_apart() {
        check("http://h:8123", "http://h:8123 default  30s", &[]);
        check("https://u:p%40%2Fw@h:443/default", "https://h:443 u p@/w 30s", &[]);
        check("http://u:p@w@h:80/trigger_dev/", "http://h:80 u p@w 30s", &[]);
        check("HTTP://[::1]:8123?request_timeout=1500", "http://[::1]:8123 default  1.5s", &[]);
        check("http://h:1?user=u&password=p%2Bw", "http://h:1 u p+w 30s", &[]);
    }

    #[test]
    fn several_hosts_share_all_else() {
        check(
            "http://u:p,w@a:8123,b:8124,[::1]:1,a:8123/?request_timeout=1000",
            "http://a:8123,b:8124,[::1]:1 u p,w 1s",
            &[],
        );
        let warning = "no port is given: using 8443";
        check("https://a,b", "https://a:8443,b:8443 default  30s", &[warning]);
        let (params, _) = parse("http://127.0.0.1:1,h:1").expect("it is good");
        assert!(params.compress, "one of them is elsewhere");
        assert_eq!(params.hosts.all(), ["http://127.0.0.1:1", "http://h:1"]);
        for text in ["http://a:1,", "http://,a:1", "http://u@a:1,,b:1"] {
            assert_eq!(parse(text), Err(ClickHouseParamsError::NoHost), "{text}");
        }
        assert_eq!(parse("http://a:1,b:x"), Err(ClickHouseParamsError::Port));
    }

    #[test]
    fn a_quorum_is_a_number_or_auto() {
        assert_eq!(Quorum::parse(" 2 "), Some(Quorum::Replicas(2)));
        assert_eq!(Quorum::parse("auto").map(|quorum| quorum.to_string()), Some("auto".into()));
        for text in ["0", "-1", "two", "1001", ""] {
            assert_eq!(Quorum::parse(text), None, "{text}");
        }
        assert!(!Quorum::Replicas(1).asks_for_others() && Quorum::Auto.asks_for_others());
    }

    #[test]
    fn secure_turns_http_into_https() {
        check("http://h:8443?secure=true", "https://h:8443 default  30s", &[]);
        check("https://h:8443?secure=false", "https://h:8443 default  30s", &[]);
        let warning = "no port is given: using 8443";
        check("http://h?secure=1", "https://h:8443 default  30s", &[warning]);
    }

    #[test]
    fn inserts_are_compressed_unless_they_stay_on_the_machine() {
        for (text, expected) in [
            ("http://h:1", true),
            ("http://10.0.0.1:1", true),
            ("http://127.0.0.2:1", false),
            ("http://[::1]:1", false),
            ("https://localhost:1", false),
            ("http://localhost:1?compress=1", true),
            ("http://h:1?compress=0", false),
        ] {
            assert_eq!(parse(text).expect(text).0.compress, expected, "{text}");
        }
        let refused = parse("http://h:1?compress=lz4").map(|_| ());
        assert_eq!(refused, Err(ClickHouseParamsError::Compress));
    }

    #[test]
    fn a_port_is_never_the_one_of_web_servers_unless_it_is_written() {
        check("http://h", "http://h:8123 default  30s", &["no port is given: using 8123"]);
        let warning = "no port is given: using 8443";
        check("https://u:1@[::1]/", "https://[::1]:8443 u 1 30s", &[warning]);
    }

    #[test]
    fn what_is_ignored_is_said() {
        check(
            "http://h:9000/other?database=more&compression=1&user=u&user=v",
            "http://h:9000 u  30s",
            &[
                "database `other` is ignored: tables live in `trigger_dev`",
                "database `more` is ignored: tables live in `trigger_dev`",
                "unknown parameter `compression` is ignored",
                "parameter `user` is ignored: the URL has one in front of the host",
                "port 9000 usually speaks the native protocol, but walhouse needs the HTTP \
                 interface",
            ],
        );
    }

    #[test]
    fn bad_urls_are_refused_with_the_reason() {
        for (text, expected) in [
            ("h:8123", ClickHouseParamsError::NotHttp),
            ("ftp://h", ClickHouseParamsError::NotHttp),
            ("clickhouse://h:9000", ClickHouseParamsError::NativeProtocol),
            ("http://", ClickHouseParamsError::NoHost),
            ("http://u:pw@:8123", ClickHouseParamsError::NoHost),
            ("http://h:pw", ClickHouseParamsError::Port),
            ("http://h:70000", ClickHouseParamsError::Port),
            ("http://h:0", ClickHouseParamsError::Port),
            ("http://a b", ClickHouseParamsError::NotAUrl),
            ("http://[::1", ClickHouseParamsError::NotAUrl),
            ("http://u:1/w@h", ClickHouseParamsError::StrayAt),
            ("http://u:1?w@h", ClickHouseParamsError::StrayAt),
            ("http://u:1#w@h", ClickHouseParamsError::StrayAt),
            ("http://u:1\\w@h", ClickHouseParamsError::StrayAt),
            ("http://h#x", ClickHouseParamsError::Fragment),
            ("http://u:%ff@h", ClickHouseParamsError::Escape),
            ("http://h?secure=yes", ClickHouseParamsError::Secure),
            ("http://h?request_timeout=0", ClickHouseParamsError::RequestTimeout),
            ("http://h?request_timeout=30s", ClickHouseParamsError::RequestTimeout),
            ("http://h?access_token=t", ClickHouseParamsError::AccessToken),
        ] {
            assert_eq!(parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn display_and_debug_hide_the_password() {
        let (params, _) = parse("http://u:hunter2@h:1").unwrap();
        assert_eq!(params.to_string(), "http://h:1 as u");
        assert!(!format!("{params:?}").contains("hunter2"));
    }
}
