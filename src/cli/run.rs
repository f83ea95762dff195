//! `walhouse run`: replicates until a signal stops it.

use std::process::ExitCode;
use std::sync::Arc;

use super::logging;
use crate::config::Config;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::secret::Mask;
use crate::threads::board::Board;
use crate::threads::http::HttpServer;
use crate::threads::supervisor;

/// Runs the enabled services. Returns when all have ended, with the code the process exits with.
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
    let (signal, signals) = supervisor::signals();
    let handler = move || {
        // Full: earlier signals are not even processed yet.
        let _ = signal.try_send(());
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        log::error!("listen for signals: {error}");
        return ExitCode::FAILURE;
    }
    let names: Vec<&str> = config.services.iter().map(|service| service.name.as_str()).collect();
    let metrics = Arc::new(Metrics::new(&names));
    let mask = Mask::new(config.secrets());
    let health = Arc::new(Health::with_mask(Arc::clone(&metrics), mask));
    let slots = config.services.iter().map(|service| service.slot.clone()).collect();
    let board = Arc::new(Board::new(Arc::clone(&metrics), Arc::clone(&health), slots));
    let http = match config.http_listen {
        None => None,
        Some(at) => match HttpServer::start(at, board) {
            Ok(server) => {
                log::info!("metrics and health on http://{}", server.local_addr());
                Some(server)
            }
            Err(error) => {
                log::error!("{error}");
                if let Some(hint) = error.hint_text() {
                    log::error!("  hint: {hint}");
                }
                return ExitCode::FAILURE;
            }
        },
    };
    let code = supervisor::run(config, &metrics, &health, &signals);
    drop(http);
    ExitCode::from(code)
}
