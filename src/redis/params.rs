//! Where Redis is and how to reach it.
//!
//! The parts come one by one, each from its own variable; there is no URL to parse.

use std::fmt;
use std::net::Ipv6Addr;

use crate::secret::Secret;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    /// A DNS name or an IP address, without brackets.
    pub host: String,
    pub port: u16,
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub tls: bool,
}

/// Why a host is refused. Holds no piece of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisParamsError {
    IsUrl,
    HasPort,
    NotAHost,
}

impl Params {
    pub fn parse_host(text: &str) -> Result<String, RedisParamsError> {
        if text.contains("://") {
            return Err(RedisParamsError::IsUrl);
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        // Only an IPv6 address has colons, and it may name its interface after a `%`.
        let address = bare.split_once('%').map_or(bare, |(address, _)| address);
        if address.parse::<Ipv6Addr>().is_ok() {
            return Ok(bare.to_string());
        }
        let fits = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
        if !text.is_empty() && text.chars().all(fits) {
            return Ok(text.to_string());
        }
        match text.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => Err(RedisParamsError::HasPort),
            Some(_) | None => Err(RedisParamsError::NotAHost),
        }
    }
}

/// `host:port`, for errors and logs.
impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for RedisParamsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RedisParamsError::IsUrl => "port, user and password go into variables of their own",
            RedisParamsError::HasPort => "the port goes into a variable of its own",
            RedisParamsError::NotAHost => "this is not a host",
        })
    }
}

impl std::error::Error for RedisParamsError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_taken_and_what_is_more_is_refused() {
        for (text, expected) in [
            ("redis", Ok("redis")),
            ("my_redis-1.example.com", Ok("my_redis-1.example.com")),
            ("10.0.0.1", Ok("10.0.0.1")),
            ("::1", Ok("::1")),
            ("[fe80::1%eth0]", Ok("fe80::1%eth0")),
            ("redis:6379", Err(RedisParamsError::HasPort)),
            ("[::1]:6379", Err(RedisParamsError::HasPort)),
            ("redis://redis:6379", Err(RedisParamsError::IsUrl)),
            ("a b", Err(RedisParamsError::NotAHost)),
            ("[redis]", Err(RedisParamsError::NotAHost)),
            ("u:pw@redis", Err(RedisParamsError::NotAHost)),
            ("", Err(RedisParamsError::NotAHost)),
        ] {
            assert_eq!(Params::parse_host(text), expected.map(String::from), "{text}");
        }
    }

    #[test]
    fn display_is_the_place_alone() {
        let mut params = Params {
            host: "redis".into(),
            port: 6379,
            username: Some("u".into()),
            password: Some(Secret::new("hunter2")),
            tls: true,
        };
        assert_eq!(params.to_string(), "redis:6379");
        params.host = "::1".into();
        assert_eq!(params.to_string(), "[::1]:6379");
        assert!(!format!("{params:?}").contains("hunter2"));
    }
}
