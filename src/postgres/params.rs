//! Where Postgres is and how to reach it: what a `DATABASE_URL` says.

use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Secret;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    /// Tried in order; each attempt tries them all within the attempt's time.
    pub hosts: Vec<Host>,
    pub user: String,
    pub password: Option<Secret>,
    pub database: String,
    pub ssl_mode: SslMode,
    pub ssl_root_cert: Option<PathBuf>,
    pub ssl_cert: Option<PathBuf>,
    pub ssl_key: Option<PathBuf>,
    pub connect_timeout: Duration,
    pub target: TargetSession,
    /// Extra `options` start-up parameter, as libpq takes it.
    pub options: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// A DNS name, an IP address, or an absolute path of a Unix socket directory.
    pub name: String,
    pub port: u16,
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
