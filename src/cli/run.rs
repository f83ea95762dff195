//! `walhouse run`: says what is configured.

use std::process::ExitCode;

use super::logging;
use crate::config::Config;

/// Logs warnings and the services as they are configured, those that are off with the reason.
pub fn run(config: Config) -> ExitCode {
    logging::init(&config);
    for warning in &config.warnings {
        log::warn!("config: {warning}");
    }
    for service in &config.services {
        log::info!("service {service}");
    }
    for (name, reason) in &config.off {
        log::info!("service `{}` is off: {reason}", name.as_str());
    }
    ExitCode::SUCCESS
}
