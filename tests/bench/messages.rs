//! Messages of pgoutput as Postgres sends them for the rows of the benchmarks, without a Postgres.

use walhouse::postgres::Frames;
use walhouse::wal::relation::{RelationColumn, ReplicaIdentity};
use walhouse::wal::value::oid;
use walhouse::wal::{Lsn, Oid, Relation};

use crate::documents::Documents;
use crate::service::Service;

const TABLES: &str = include_str!("../../scripts/lib/tables.sql");
pub const ENUM: Oid = Oid(16_500);
/// Microseconds from 2000 to the day of the rows.
const CREATED_SINCE_US: i64 = 848_448_000_000_000;

enum V {
    Null,
    Text(String),
    Json(String),
    Texts(Vec<String>),
    Int(i32),
    Float(f64),
    Bool(bool),
    /// So many milliseconds after the row before the first.
    At(i64),
}

/// The table with all its columns, also those that nobody reads.
pub fn relation(service: Service) -> Relation {
    let (_, rest) = TABLES.split_once(service.table()).expect("the table is created");
    let (body, _) = rest.split_once("\n);").expect("its statement ends");
    let column = |line: &str| {
        let (name, rest) = line.trim().strip_prefix('"')?.split_once('"')?;
        let type_oid = match rest.trim_start().split([' ', ',', '(']).next()? {
            "text" => oid::TEXT,
            "text[]" => oid::TEXT_ARRAY,
            "jsonb" => oid::JSONB,
            "timestamp" => oid::TIMESTAMP,
            "integer" => oid::INT4,
            "boolean" => oid::BOOL,
            "double" => oid::FLOAT8,
            _ => ENUM,
        };
        Some(RelationColumn {
            key: name == "id",
            name: name.to_owned(),
            type_oid,
            type_modifier: -1,
        })
    };
    Relation {
        oid: Oid(16_400),
        namespace: "public".to_owned(),
        name: service.table().trim_start_matches("public.").trim_matches('"').to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: body.lines().filter_map(column).collect(),
    }
}

/// An INSERT of row `g`.
pub fn insert(service: Service, relation: &Relation, g: usize, of: &Documents) -> Vec<u8> {
    let values = match service {
        Service::Runs => run(g, of),
        Service::Sessions => session(g, of),
    };
    let mut message = [&b"I"[..], &relation.oid.0.to_be_bytes(), b"N"].concat();
    message.extend((relation.columns.len() as u16).to_be_bytes());
    for column in &relation.columns {
        let value = values.iter().find(|(name, _)| *name == column.name);
        match value.and_then(|(_, value)| binary(value)) {
            None => message.push(b'n'),
            Some(bytes) => {
                message.push(b'b');
                message.extend((bytes.len() as u32).to_be_bytes());
                message.extend(bytes);
            }
        }
    }
    message
}

/// As they come from the socket.
pub fn frames<'a>(messages: impl IntoIterator<Item = (Lsn, &'a [u8])>) -> Frames {
    let mut bytes = Vec::new();
    for (lsn, message) in messages {
        bytes.push(b'd');
        bytes.extend((4 + 25 + message.len() as u32).to_be_bytes());
        bytes.push(b'w');
        bytes.extend(lsn.0.to_be_bytes());
        bytes.extend(lsn.0.to_be_bytes());
        bytes.extend([0; 8]);
        bytes.extend(message);
    }
    Frames::from_bytes(bytes)
}

fn binary(value: &V) -> Option<Vec<u8>> {
    Some(match value {
        V::Null => return None,
        V::Text(text) => text.clone().into_bytes(),
        V::Json(text) => [b"\x01", text.as_bytes()].concat(),
        V::Int(n) => n.to_be_bytes().to_vec(),
        V::Float(n) => n.to_be_bytes().to_vec(),
        V::Bool(is) => vec![u8::from(*is)],
        V::At(ms) => (CREATED_SINCE_US + ms * 1000).to_be_bytes().to_vec(),
        V::Texts(texts) => {
            let head = [1, 0, oid::TEXT.0 as i32, texts.len() as i32, 1];
            let mut bytes: Vec<u8> = head.iter().flat_map(|n: &i32| n.to_be_bytes()).collect();
            for text in texts {
                bytes.extend((text.len() as u32).to_be_bytes());
                bytes.extend(text.as_bytes());
            }
            bytes
        }
    })
}

fn id(prefix: &str, g: usize) -> V {
    let digest = (g as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    V::Text(format!("{prefix}{g:010x}{digest:016x}")[..prefix.len() + 23].to_owned())
}

fn text(text: &str) -> V {
    V::Text(text.to_owned())
}

fn owners(g: usize) -> [(&'static str, V); 6] {
    let created = g as i64;
    [
        ("createdAt", V::At(created)),
        ("updatedAt", V::At(created + 900)),
        ("organizationId", id("cm", g % 10)),
        ("projectId", id("cm", g % 20)),
        ("runtimeEnvironmentId", id("cm", g % 40)),
        ("environmentType", text("PRODUCTION")),
    ]
}

fn session(g: usize, of: &Documents) -> Vec<(&'static str, V)> {
    let own = [
        ("id", id("session_", g)),
        ("friendlyId", id("session_cm", g)),
        ("externalId", id("chat-", g)),
        ("type", text("chat.agent")),
        ("taskIdentifier", text("support-agent")),
        ("tags", V::Texts(vec![format!("customer_{}", g % 1000), "web".to_owned()])),
        ("metadata", V::Json(of.metadata.clone())),
        ("expiresAt", V::At(g as i64 + 30 * 86_400_000)),
        ("currentRunId", id("cm", g)),
        ("currentRunVersion", V::Int(0)),
        (
            "triggerConfig",
            V::Json(r#"{"machine":"small-1x","basePayload":{"locale":"en-GB"}}"#.to_owned()),
        ),
        ("isTest", V::Bool(false)),
    ];
    own.into_iter().chain(owners(g)).collect()
}

fn run(g: usize, of: &Documents) -> Vec<(&'static str, V)> {
    let failed = g.is_multiple_of(20);
    let created = g as i64;
    let own = [
        ("id", id("cm", g)),
        ("friendlyId", id("run_cm", g)),
        ("taskIdentifier", text("generate-report")),
        ("queue", text("task/generate-report")),
        ("masterQueue", text("eu-central-1")),
        ("region", text("eu-central-1")),
        ("engine", text("V2")),
        ("planType", text("pro")),
        ("status", text(if failed { "COMPLETED_WITH_ERRORS" } else { "COMPLETED_SUCCESSFULLY" })),
        ("error", if failed { V::Json(of.error.clone()) } else { V::Null }),
        ("traceId", id("trace_", g)),
        ("spanId", id("", g)),
        ("payload", text(&of.payload)),
        ("payloadType", text("application/json")),
        ("output", text(&of.output)),
        ("outputType", text("application/json")),
        ("runTags", V::Texts(vec![format!("customer_{}", g % 1000), "nightly".to_owned()])),
        ("queuedAt", V::At(created + 20)),
        ("startedAt", V::At(created + 150)),
        ("executedAt", V::At(created + 160)),
        ("completedAt", V::At(created + 890)),
        ("number", V::Int(g as i32)),
        ("attemptNumber", V::Int(1)),
        ("usageDurationMs", V::Int(g as i32 % 9000)),
        ("costInCents", V::Float(g as f64 * 0.000_016_9)),
        ("baseCostInCents", V::Float(0.0025)),
        ("depth", V::Int(0)),
        ("machinePreset", text("small-1x")),
        ("taskVersion", text("20261119.3")),
        ("sdkVersion", text("4.5.0")),
        ("cliVersion", text("4.5.0")),
        ("ttl", text("10m")),
        ("isTest", V::Bool(false)),
        ("maxDurationInSeconds", V::Int(3600)),
        ("isWarmStart", V::Bool(!g.is_multiple_of(3))),
        (
            "annotations",
            V::Json(
                r#"{"taskKind": "STANDARD", "triggerSource": "api", "triggerAction": "trigger",
                    "rootTriggerSource": "api"}"#
                    .to_owned(),
            ),
        ),
        ("bulkActionGroupIds", V::Texts(vec![])),
    ];
    own.into_iter().chain(owners(g)).collect()
}
