//! The rows of the load: what a run and a session may look like, and how they change.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fastrand::Rng;
use serde_json::{Value, json};

use super::Shared;
use crate::support::sample::with;

pub struct Rows {
    rng: Rng,
    big_every: u64,
    shared: Arc<Shared>,
}

impl Rows {
    pub fn new(seed: u64, big_every: u64, shared: Arc<Shared>) -> Rows {
        Rows { rng: Rng::with_seed(seed), big_every, shared }
    }

    /// Of a row, never used twice.
    pub fn version(&self) -> u64 {
        1 + self.shared.versions.fetch_add(1, Ordering::Relaxed)
    }
    pub fn run(&mut self, id: &str) -> Value {
        let version = self.version();
        let rng = &mut self.rng;
        let owned = rng.u8(..) < 250;
        let (without_type, without_org) = (rng.bool(), rng.bool());
        let row = json!({
            "id": id,
            "friendlyId": format!("run_{id}-{version}"),
            "payload": "",
            "runtimeEnvironmentId": format!("env_{}", rng.u8(..3)),
            "environmentType":
                if owned || !without_type { json!("PRODUCTION") } else { Value::Null },
            "projectId": format!("proj_{}", rng.u8(..3)),
            "organizationId": match (owned, without_type, without_org) {
                (true, ..) | (false, true, false) => json!(format!("org_{}", rng.u8(..3))),
                (false, ..) => Value::Null,
            },
            "taskIdentifier": "task-ü",
            "spanId": format!("{:016x}", rng.u64(..)),
            "traceId": format!("{:032x}", rng.u128(..)),
            "queue": "task/queue",
            "masterQueue": one_of(rng, ["main", "eu-1:a:b", ":x", ""]),
            "engine": one_of(rng, ["V1", "V2"]),
            "isTest": rng.bool(),
            "isWarmStart": one_of(rng, [Value::Null, json!(true), json!(false)]),
            "depth": rng.u8(..),
            "attemptNumber": one_of(rng, [Value::Null, json!(0), json!(255)]),
            "costInCents": one_of(rng, [0.1, 1e-7, 123_456.789, 0.0, 1e300, -2.5]),
            "runTags": one_of(rng, [
                Value::Null, json!([]), json!(["b", "a", ""]), json!(["NULL", "{\"ü\",😀}", "x\\y"]),
            ]),
            "idempotencyKeyOptions": one_of(rng, [Value::Null, json!({"key": "k😀", "scope": "run"})]),
            "annotations": one_of(rng, [
                Value::Null,
                json!({"triggerSource": "api", "triggerAction": "t", "rootTriggerSource": "sdk"}),
                json!({"triggerSource": "api", "triggerAction": "t"}),
                json!({"triggerSource": "api", "triggerAction": "t", "rootTriggerSource": "sdk",
                    "taskKind": "AGENT", "externalDeploymentId": "dep"}),
            ]),
            "statusReason": one_of(rng, [Value::Null, json!("EXTERNAL_DEPLOYMENT_PENDING")]),
            "maxDurationInSeconds": one_of(rng, [Value::Null, json!(0), json!(i32::MAX)]),
            "planType": one_of(rng, [Value::Null, json!("pro")]),
            "region": one_of(rng, [Value::Null, json!("eu-central-1")]),
            "usageDurationMs": version,
        });
        let (payload, payload_type) = self.document();
        with(
            row,
            json!({
                "payload": payload,
                "payloadType": payload_type,
                "createdAt": self.moment(),
                "updatedAt": self.moment(),
                "queueTimestamp": self.maybe_moment(),
                "delayUntil": self.maybe_moment(),
            }),
        )
    }

    /// One of the steps of a run's life; most leave the large columns alone.
    pub fn run_update(&mut self) -> Value {
        let values = json!({"usageDurationMs": self.version(), "updatedAt": self.moment()});
        let more = match self.rng.u8(..8) {
            0 => json!({"status": "EXECUTING", "startedAt": self.moment(), "attemptNumber": 1}),
            1 => {
                let (output, output_type) = self.document();
                json!({
                    "status": "COMPLETED_SUCCESSFULLY",
                    "completedAt": self.moment(),
                    "output": output,
                    "outputType": output_type,
                })
            }
            2 => json!({
                "status": one_of(&mut self.rng, ["COMPLETED_WITH_ERRORS", "CRASHED", "TIMED_OUT"]),
                "error": self.error(),
            }),
            3 => json!({"runTags": ["tag", format!("tag-{}", self.rng.u16(..))]}),
            4 => json!({"bulkActionGroupIds": [format!("bulk_{}", self.rng.u16(..))]}),
            5 => json!({"output": null, "error": null, "status": "RETRYING_AFTER_FAILURE"}),
            6 => json!({"lockedById": "nobody", "number": self.rng.i32(..)}),
            _ => json!({"machinePreset": "small-1x", "costInCents": self.rng.f64() * 1000.0}),
        };
        with(values, more)
    }

    fn error(&mut self) -> Value {
        match self.rng.u8(..4) {
            0 => json!({"type": "STRING_ERROR", "raw": "ü"}),
            1 => json!({"type": "BUILT_IN_ERROR", "name": "Error", "message": "out of tea"}),
            2 => json!({
                "type": "INTERNAL_ERROR",
                "code": "X",
                "message": format!("run_{} timed out after 12345 ms", self.rng.u32(..)),
                "stackTrace": self.noise(200),
            }),
            _ => Value::Null,
        }
    }

    pub fn session(&mut self, id: &str) -> Value {
        let metadata = self.metadata();
        json!({
            "id": id,
            "friendlyId": format!("session_{id}"),
            "externalId": one_of(&mut self.rng, [Value::Null, json!(format!("external-{id}"))]),
            "type": "chat.agent",
            "projectId": format!("proj_{}", self.rng.u8(..3)),
            "runtimeEnvironmentId": "env_1",
            "environmentType": "STAGING",
            "organizationId": "org_1",
            "taskIdentifier": "agent",
            "tags": one_of(&mut self.rng, [json!([]), json!(["a", "ü,\""])]),
            "metadata": metadata,
            "createdAt": self.moment(),
            "updatedAt": self.moment(),
            "expiresAt": self.maybe_moment(),
            "triggerConfig": {},
            "isTest": self.rng.bool(),
        })
    }

    pub fn metadata(&mut self) -> Value {
        let version = self.version();
        match self.is_big() {
            true => json!({"version": version, "noise": self.noise(9000)}),
            false => json!({"version": version, "a.b": [1, 2.5, "x", {"y": null}], "ü": {}}),
        }
    }

    /// A document and its content type.
    fn document(&mut self) -> (String, &'static str) {
        const JSON: &str = "application/json";
        if self.is_big() {
            let length = self.rng.usize(9_000..40_000);
            return (format!(r#"{{"noise":"{}"}}"#, self.noise(length)), JSON);
        }
        match self.rng.u8(..10) {
            0 => (String::new(), JSON),
            1 => ("plain text".to_owned(), "text/plain"),
            2 => (
                r#"{"json":{"big":"123456789012345678901234567890","at":"2026-05-20T10:11:12.000Z"},
                    "meta":{"values":{"big":["bigint"],"at":["Date"]}}}"#
                    .to_owned(),
                "application/super+json",
            ),
            3 => (r#"{"n":18446744073709551615,"m":-9223372036854775808,"f":1.5e-9}"#.into(), JSON),
            4 => (r#"{"n":117039831458782870000,"text":"\ud83d\ude00 \u0000 ü"}"#.into(), JSON),
            5 => (r#"{"bad":"\ud83d","good":1}"#.into(), JSON),
            6 => ("{not json".to_owned(), JSON),
            7 => (r#"[{"a":1,"b":null},{"a":{"c":[]}},"x",null]"#.to_owned(), JSON),
            _ => (
                format!(r#"{{"id":{},"list":[1,2,3],"e":{{}},"n":null,"a.b":"x"}}"#, self.rng.u32(..)),
                JSON,
            ),
        }
    }

    fn is_big(&mut self) -> bool {
        0 < self.big_every && self.rng.u64(..self.big_every) == 0
    }

    /// Text that does not compress to what fits in a row.
    fn noise(&mut self, length: usize) -> String {
        (0..length).map(|_| self.rng.alphanumeric()).collect()
    }

    pub fn moment(&mut self) -> String {
        let days = self.rng.u32(1..=28);
        let (hours, minutes) = (self.rng.u32(..24), self.rng.u32(..60));
        let (seconds, millis) = (self.rng.u32(..60), self.rng.u32(..1000));
        let year = one_of(&mut self.rng, [2024, 2025, 2026, 1969, 2262]);
        format!("{year}-05-{days:02} {hours:02}:{minutes:02}:{seconds:02}.{millis:03}")
    }

    fn maybe_moment(&mut self) -> Value {
        if self.rng.bool() { json!(self.moment()) } else { Value::Null }
    }
}

pub fn one_of<T, const N: usize>(rng: &mut Rng, values: [T; N]) -> T {
    let at = rng.usize(..N);
    values.into_iter().nth(at).expect("it is below the length")
}
