//! The rows of both tables as SQL, and everything in Postgres that they are made of.
//!
//! Row `g` is the same in every run. Numbers, not a random source, make the ids: a later statement
//! finds the rows that an earlier one wrote. They look like trigger.dev's own, which begin with the
//! time, so that indexes grow at their end.

use crate::documents;
use crate::service::Service;
use crate::support::database::{Database, detail};

const TABLES: &str = include_str!("../../scripts/lib/tables.sql");

/// Row `g` was created `g` milliseconds after this, so that `created_at` tells rows apart.
const CREATED_SINCE: &str = "2026-11-20 00:00:00";
/// The same in UTC, since 1970.
pub const CREATED_SINCE_MS: u64 = 1_795_132_800_000;

const TOOLS: &str = "
CREATE SCHEMA bench;
CREATE TABLE bench.documents (
    n bigint PRIMARY KEY, output text, payload text, error jsonb, metadata jsonb, large text);
CREATE FUNCTION bench.id(prefix text, g bigint) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN prefix || lpad(to_hex(g), 10, '0') || substr(md5(g::text), 1, 13);
-- One of 40, as a table has few environments and many runs.
CREATE FUNCTION bench.of(prefix text, g bigint) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN prefix || substr(md5((g % 40)::text), 1, 23);
CREATE FUNCTION bench.created(g bigint) RETURNS timestamp LANGUAGE sql IMMUTABLE
    RETURN timestamp 'SINCE' + g * interval '1 ms';
";

/// Both tables, their publications, and the pool of documents.
pub fn make(postgres: &Database) -> Result<(), String> {
    let mut client = postgres.try_client().ok_or("connect to Postgres")?;
    let mut all = || -> Result<(), postgres::Error> {
        client.batch_execute(TABLES)?;
        client.batch_execute(&TOOLS.replace("SINCE", CREATED_SINCE))?;
        for service in [Service::Runs, Service::Sessions] {
            client.batch_execute(&format!(
                "CREATE PUBLICATION {} FOR TABLE {}",
                service.publication(),
                service.table()
            ))?;
        }
        for (n, of) in documents::pool().enumerate() {
            client.execute(
                "INSERT INTO bench.documents
                 VALUES ($1, $2, $3, $4::text::jsonb, $5::text::jsonb, $6)",
                &[&(n as i64), &of.output, &of.payload, &of.error, &of.metadata, &of.large],
            )?;
        }
        client.batch_execute("VACUUM ANALYZE bench.documents")
    };
    all().map_err(|error| format!("make the source tables: {}", detail(&error)))
}

/// How a row differs from the ordinary one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    Plain,
    /// With a value that Postgres stores outside of the row.
    Large,
    /// `updatedAt` is the time of now, for whoever measures how long a row takes.
    Stamped,
}

/// Inserts a row for each `g` of `numbers`, which is something to stand in FROM.
pub fn insert(service: Service, numbers: &str, variant: Variant) -> String {
    let columns = match service {
        Service::Runs => runs(variant),
        Service::Sessions => sessions(variant),
    };
    let updated_at = match variant {
        Variant::Stamped => "clock_timestamp() AT TIME ZONE 'UTC'",
        Variant::Plain | Variant::Large => "bench.created(g) + interval '900 ms'",
    };
    let columns = columns.into_iter().chain([
        ("createdAt", "bench.created(g)"),
        ("updatedAt", updated_at),
        ("organizationId", "bench.of('cm', g % 10)"),
        ("projectId", "bench.of('cm', g % 20 + 100)"),
        ("runtimeEnvironmentId", "bench.of('cm', g + 200)"),
        ("environmentType", "'PRODUCTION'"),
    ]);
    let (names, values): (Vec<String>, Vec<&str>) =
        columns.map(|(name, value)| (format!("\"{name}\""), value)).unzip();
    format!(
        "INSERT INTO {} ({}) SELECT {} FROM {numbers} JOIN bench.documents d ON d.n = g % {}",
        service.table(),
        names.join(", "),
        values.join(", "),
        documents::COUNT
    )
}

/// A column, and its value.
type Columns = Vec<(&'static str, &'static str)>;

fn runs(variant: Variant) -> Columns {
    let output = if variant == Variant::Large { "d.large" } else { "d.output" };
    vec![
        ("id", "bench.id('cm', g)"),
        ("friendlyId", "'run_' || bench.id('cm', g)"),
        ("taskIdentifier", "'generate-report'"),
        ("queue", "'task/generate-report'"),
        ("masterQueue", "'eu-central-1'"),
        ("region", "'eu-central-1'"),
        ("engine", "'V2'"),
        ("planType", "'pro'"),
        ("number", "g % 1000000"),
        (
            "status",
            "(CASE WHEN g % 20 = 0 THEN 'COMPLETED_WITH_ERRORS' ELSE 'COMPLETED_SUCCESSFULLY' END)
                 ::\"TaskRunStatus\"",
        ),
        ("error", "CASE WHEN g % 20 = 0 THEN d.error END"),
        ("traceId", "md5(g::text)"),
        ("spanId", "substr(md5(g::text), 1, 16)"),
        (
            "traceContext",
            "jsonb_build_object('traceparent', '00-' || md5(g::text) || '-' ||
                 substr(md5(g::text), 1, 16) || '-01')",
        ),
        ("payload", "d.payload"),
        ("output", output),
        ("runTags", "ARRAY['customer_' || g % 1000, 'nightly']"),
        ("queuedAt", "bench.created(g) + interval '20 ms'"),
        ("startedAt", "bench.created(g) + interval '150 ms'"),
        ("executedAt", "bench.created(g) + interval '160 ms'"),
        ("completedAt", "bench.created(g) + interval '890 ms'"),
        ("attemptNumber", "1"),
        ("usageDurationMs", "(g % 9000)::int"),
        ("costInCents", "(g % 9000) * 0.0000169"),
        ("baseCostInCents", "0.0025"),
        ("machinePreset", "'small-1x'"),
        ("taskVersion", "'20261119.3'"),
        ("sdkVersion", "'4.5.0'"),
        ("cliVersion", "'4.5.0'"),
        ("ttl", "'10m'"),
        ("maxDurationInSeconds", "3600"),
        ("isWarmStart", "g % 3 <> 0"),
        (
            "annotations",
            "'{\"taskKind\": \"STANDARD\", \"triggerSource\": \"api\", \"triggerAction\": \"trigger\",
               \"rootTriggerSource\": \"api\"}'",
        ),
    ]
}

fn sessions(variant: Variant) -> Columns {
    let metadata = if variant == Variant::Large { "d.large::jsonb" } else { "d.metadata" };
    vec![
        ("id", "bench.id('session_', g)"),
        ("friendlyId", "bench.id('session_cm', g)"),
        ("externalId", "bench.id('chat-', g)"),
        ("type", "'chat.agent'"),
        ("taskIdentifier", "'support-agent'"),
        ("tags", "ARRAY['customer_' || g % 1000, 'web']"),
        ("metadata", metadata),
        ("expiresAt", "bench.created(g) + interval '30 days'"),
        ("currentRunId", "bench.id('cm', g)"),
        (
            "triggerConfig",
            "'{\"machine\": \"small-1x\", \"basePayload\": {\"locale\": \"en-GB\"}}'",
        ),
    ]
}

/// Changes the row of each `g` of `numbers`, and nothing that Postgres stores outside of it.
pub fn update(service: Service, numbers: &str) -> String {
    let (prefix, set) = match service {
        Service::Runs => ("cm", "\"status\" = 'CANCELED', \"statusReason\" = 'by hand'"),
        Service::Sessions => ("session_", "\"closedReason\" = 'user'"),
    };
    format!(
        "UPDATE {} t SET {set}, \"updatedAt\" = bench.created(g) + interval '5 s' FROM {numbers} \
         WHERE t.id = bench.id('{prefix}', g)",
        service.table()
    )
}

pub fn delete(service: Service, numbers: &str) -> String {
    let prefix = match service {
        Service::Runs => "cm",
        Service::Sessions => "session_",
    };
    format!(
        "DELETE FROM {} t USING {numbers} WHERE t.id = bench.id('{prefix}', g)",
        service.table()
    )
}
