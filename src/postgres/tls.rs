//! TLS for Postgres: what `sslmode` and its certificates ask for.

use std::sync::Arc;

use super::Params;
use crate::error::{Error, ErrorKind, Result};

pub fn client_config(_params: &Params) -> Result<Arc<rustls::ClientConfig>> {
    Err(Error::new(ErrorKind::Setup, "set up TLS for Postgres").hint("Set `sslmode=disable`."))
}
