//! The leader lock in Redis: whether it could be written, and who holds it.

use std::time::Duration;

use super::step;
use crate::config::ServiceConfig;
use crate::finding::Finding;
use crate::redis::{Holder, Params};
use crate::threads::lock_keeper::redis_lock;

const ABOUT: &str = "leader lock";
const AWAY: &str = "Set RUN_REPLICATION_REDIS_HOST and RUN_REPLICATION_REDIS_PORT (or REDIS_HOST \
                    and REDIS_PORT) to where Redis is, or start it; for a lock without Redis set \
                    REPLICATION_LEADER_LOCK=postgres.";

pub(super) fn look(service: &ServiceConfig, params: &Params) -> Vec<Finding> {
    let mut lock = redis_lock(service, params);
    if let Err(error) = lock.probe(step()) {
        return vec![Finding::of_error(ABOUT, &error, AWAY)];
    }
    let tls = if params.tls { ", over TLS" } else { "" };
    let mut found = vec![Finding::ok(ABOUT, format!("redis at {params} can hold it{tls}"))];
    found.push(match lock.holder(step()) {
        Err(error) => Finding::of_error(ABOUT, &error, AWAY),
        Ok(Holder::Nobody) => Finding::ok(ABOUT, "free"),
        Ok(Holder::Us { left } | Holder::Another { left }) if left == Duration::MAX => {
            Finding::warning(
                ABOUT,
                "somebody set it without a TTL: no instance will ever lead",
                format!("Run: redis-cli DEL {}", lock.key()),
            )
        }
        Ok(Holder::Us { left } | Holder::Another { left }) => Finding::ok(
            ABOUT,
            format!(
                "another instance holds it, for {:.1} s more unless it extends it: this one would \
                 stand by",
                left.as_secs_f64()
            ),
        ),
    });
    found
}
