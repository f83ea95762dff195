//! `promotion_watch/<service>`: while the stream runs, asks the hosts whether another server was
//! promoted.
//!
//! An old primary that nobody has stopped goes on streaming, and its connection never breaks; the
//! applications' writes meanwhile go to the new one. The session ends, and the next one finds the
//! new primary.

use std::time::{Duration, Instant};

use crate::delivery::alongside::{Alongside, StopLevel};
use crate::delivery::session_state::SessionState;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::PostgresParams;
use crate::postgres::primary::{KnownServer, Primary};

const APPLICATION_NAME: &str = "walhouse-probe";
/// Each check is a short session on every host.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Hosts that hang are given up after this. A session that ends waits for it.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

pub struct PromotionWatch<'a> {
    pub service: &'a str,
    /// As configured: all that may be the primary.
    pub params: &'a PostgresParams,
    pub primary: &'a Primary,
    pub shared: &'a SessionState,
}

/// Runs until the session ends, and ends it when the stream has been left behind.
pub fn run(with: &PromotionWatch<'_>) -> Result<()> {
    if !Primary::may_move(with.params) {
        return Ok(());
    }
    while with.shared.rest(Instant::now() + LOOK_EVERY) == StopLevel::Running {
        let here = with.primary.identity();
        match with.look(here) {
            Ok(primary) if is_ahead(primary.identity(), here) => {
                let (service, there) = (with.service, primary.identity().timeline);
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!("stream from `{}` for service `{service}`", with.primary.name()),
                )
                .because(format!(
                    "`{}` was promoted to timeline {there}, and this server is left behind on {}",
                    primary.name(),
                    here.timeline
                ))
                .hint(
                    "Stop the old primary: the new one lacks what it still accepts, and ClickHouse \
                     may need a repair where it has that.",
                ));
            }
            Ok(_) => {}
            // A stream that runs needs no help of others.
            Err(error) => log::debug!("{}: look for another primary: {error}", with.service),
        }
    }
    Ok(())
}

impl PromotionWatch<'_> {
    fn look(&self, here: KnownServer) -> Result<Primary> {
        let go_on = || self.shared.go_on();
        let deadline = Instant::now() + LOOK_TIMEOUT;
        let found = Primary::find(self.params, APPLICATION_NAME, Some(here), deadline, go_on);
        found.map(|(primary, _)| primary)
    }
}

/// Only of the same cluster: another cluster is not a successor.
fn is_ahead(there: KnownServer, here: KnownServer) -> bool {
    there.system_identifier == here.system_identifier && here.timeline < there.timeline
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_later_timeline_of_the_same_cluster_is_ahead() {
        let known = |system_identifier, timeline| KnownServer { system_identifier, timeline };
        assert!(is_ahead(known(1, 3), known(1, 2)));
        assert!(!is_ahead(known(1, 2), known(1, 2)));
        assert!(!is_ahead(known(1, 1), known(1, 2)));
        assert!(!is_ahead(known(2, 3), known(1, 2)));
    }
}
