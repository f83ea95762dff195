//! What walhouse says to ClickHouse means the same whatever the user's settings profile holds.
//!
//! Every setting of the engine is given a value that is not its default, for every statement that
//! the ClickHouse port has; the answers, and what is in the tables afterwards, must be those of a
//! profile without anything. Only limits and prohibitions of an administrator may end in an error,
//! never in another answer.

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use support::clickhouse::Clickhouse;

use walhouse::clickhouse::document_types::document_types;
use walhouse::clickhouse::hosts::Hosts;
use walhouse::clickhouse::lookup::{find_live, find_sort_keys};
use walhouse::clickhouse::own::backfills::{self, BackfillRow};
use walhouse::clickhouse::own::refused::{RefusedPart, RefusedRow};
use walhouse::clickhouse::own::repairs::{self, RepairRow};
use walhouse::clickhouse::own::state::StateRow;
use walhouse::clickhouse::own::{self, adoptions, refused, state};
use walhouse::clickhouse::params::{ClickHouseParams, InsertStrategy};
use walhouse::clickhouse::partitions::partitions;
use walhouse::clickhouse::slices::Slicer;
use walhouse::clickhouse::tables;
use walhouse::clickhouse::{Client, InsertError, cluster, running, stored, survey};
use walhouse::halt::Halt;
use walhouse::machines::recovery::Adopted;
use walhouse::rows::key::Key;
use walhouse::rows::target::Target;
use walhouse::rows::{Block, ColumnType, Scalar, Shape, native};
use walhouse::secret::Secret;
use walhouse::services::mapping::Mapping;
use walhouse::services::runs::Runs;
use walhouse::services::sessions::Sessions;
use walhouse::wal::Lsn;

const RUNS: Runs = Runs { payloads: true, fingerprints: true };

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// A profile: settings and their values.
type Profile = [(String, String)];

struct Walk {
    clickhouse: Clickhouse,
    databases: u64,
}

/// What was asked, and what the answer was. The same of two profiles, or one of them matters.
#[derive(Default)]
struct Answers {
    given: Vec<(String, String)>,
    database: String,
}

impl Answers {
    fn note<T: Debug, E: Debug>(&mut self, what: &str, answer: Result<T, E>) -> Option<T> {
        // The name of the database is of this run alone, and so are query ids and times.
        let text = format!("{answer:?}").replace(&self.database, "DB");
        self.given.push((what.to_owned(), text));
        answer.ok()
    }
}

impl Walk {
    fn start() -> Walk {
        Walk { clickhouse: Clickhouse::start_front(), databases: 0 }
    }

    fn set_profile(&self, profile: &Profile, more: &str) -> bool {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(profile);
        self.clickhouse.try_profile(&format!("{}{more}", query.finish()))
    }

    /// All that walhouse says, under the profile; and what is there then, seen without it.
    fn answers(&mut self, profile: &Profile) -> Option<Answers> {
        self.databases += 1;
        let database = format!("profile_{}", self.databases);
        let mut answers = Answers { given: Vec::new(), database: database.clone() };
        let params = self.params(&database);
        if !self.set_profile(profile, "") {
            return None;
        }
        say_everything(&params, &mut answers);
        assert!(self.set_profile(&[], ""), "an empty profile is taken");
        let sql = format!(
            "SELECT name, create_table_query FROM system.tables \
             WHERE database = '{database}' ORDER BY name"
        );
        for row in self.clickhouse.rows(&sql) {
            let name = row[0].as_str().unwrap().to_owned();
            answers.note::<_, ()>(&format!("the table {name}"), Ok(&row));
            let sql = match name.as_str() {
                "walhouse_refused_rows" => {
                    format!("SELECT * EXCEPT time FROM {database}.{name} ORDER BY ALL")
                }
                "walhouse_adoptions" => {
                    format!("SELECT * EXCEPT adopted_at FROM {database}.{name} ORDER BY ALL")
                }
                name if name.starts_with("walhouse") => {
                    format!("SELECT * EXCEPT written_at FROM {database}.{name} ORDER BY ALL")
                }
                "task_runs_v2" => format!(
                    "SELECT * EXCEPT (output, error), toJSONString(output), toJSONString(error), \
                     JSONAllPathsWithTypes(output) FROM {database}.{name} ORDER BY ALL"
                ),
                _ => format!("SELECT * FROM {database}.{name} ORDER BY ALL"),
            };
            answers.note::<_, ()>(&format!("the rows of {name}"), Ok(self.clickhouse.rows(&sql)));
        }
        self.clickhouse.execute(&format!("DROP DATABASE IF EXISTS {database} SYNC"));
        Some(answers)
    }

    fn params(&self, database: &str) -> ClickHouseParams {
        ClickHouseParams {
            hosts: Hosts::one(self.clickhouse.url()),
            cluster: None,
            quorum: None,
            user: String::new(),
            password: Secret::new(""),
            database: database.to_owned(),
            request_timeout: Duration::from_secs(60),
            compress: true,
            keep_alive: true,
            keep_alive_idle: None,
            connections_max: 2,
            insert_strategy: InsertStrategy::Insert,
            halt: Halt::default(),
        }
    }
}

/// Every kind of statement, in the order in which a start, a stream and a repair say them.
fn say_everything(params: &ClickHouseParams, answers: &mut Answers) {
    let mut client = Client::connect(params).unwrap();
    let client = &mut client;
    answers.note("ping", client.ping(soon()));
    answers.note("own tables are missing", tables::missing(client, &own::tables::names(), soon()));
    answers.note("own tables", own::tables::ensure(client, true, soon()));
    answers.note("own tables again", own::tables::ensure(client, false, soon()));
    for target in RUNS.targets().iter().chain(Sessions.targets()) {
        target_table(client, target, answers);
    }
    state_of(client, answers);
    let look = survey::look(client, soon())
        .map(|facts| (facts.version, facts.has_database, facts.leftovers));
    answers.note("survey", look);
    answers.note("grant", survey::grant(client, "INSERT", Some("task_runs_v2"), soon()));
    let names = ["task_runs_v2", "walhouse_state", "nothing"];
    answers.note("missing", tables::missing(client, &names, soon()));
    answers.note("kinds", survey::cluster::kinds(client, &names, soon()));
    answers.note("replicas", survey::cluster::replicas(client, &names, soon()));
    answers.note("quorum", cluster::check_quorum(client, &names, soon()));
    let running = running::inserts_older_than(client, &names, Duration::from_secs(9), soon());
    answers.note("running", running);
}

fn target_table(client: &mut Client, target: &Target, answers: &mut Answers) {
    let table = &target.table;
    let as_made = tables::ensure(client, target, true, soon());
    let as_made = answers.note(&format!("make {table}"), as_made);
    let version = answers.note("version", client.ping(soon())).unwrap_or_default();
    // A limit that came later has been no matter to the start.
    let of_definition = |&at: &usize| (at, target.columns[at].ddl.to_string());
    let documents = match &as_made {
        Some(made) => document_types(made, &target.columns, &version),
        None => target.documents.iter().map(of_definition).collect(),
    };
    let shape = Shape { documents, ..Shape::of(vec![true; target.columns.len()]) };
    let mut block = Block::new(&target.columns, &shape);
    for (n, document) in DOCUMENTS.iter().enumerate() {
        append(&mut block, target, n, document, 5, false);
    }
    append(&mut block, target, 0, "{}", 6, true);
    append(&mut block, target, 1, r#"{"data":"later"}"#, 6, false);
    let names = native::column_names(&block);
    let name = survey::trial_name();
    let mut bytes = Vec::new();
    let order: Vec<usize> = (0..block.rows()).collect();
    native::encode(&block, &order, &[], &mut bytes);
    let trial = survey::try_block(client, &name, (target, true), &names, &bytes, soon());
    answers.note::<_, ()>("try rows", Ok(trial));
    answers.note("try none", survey::try_insert(client, table, &names, soon()));
    let inserted = client.insert(table, &names, &[], &bytes, soon());
    answers.note(&format!("insert into {table}"), inserted);
    let found = stored::rows_of(client, target, &block, soon);
    let in_order = found.as_ref().map_err(|error| error.to_string()).map(|found| {
        let rows = found.iter().map(|(key, row)| (format!("{key:?}"), row.clone()));
        rows.collect::<BTreeMap<_, _>>()
    });
    answers.note(&format!("rows of {table}"), in_order);
    // Under any profile: what was written is what would be written again.
    let key = |row: usize| stored::key_of(target, &block, row);
    for row in 2..DOCUMENTS.len() {
        let Some(stored) = found.as_ref().ok().and_then(|found| found.get(&key(row))) else {
            continue;
        };
        let other: Vec<usize> = stored::differing_columns(target, &block, row, stored).collect();
        assert_eq!(other, [] as [usize; 0], "{table}, row {row}: {:?}", answers.given.last());
    }
    let highest =
        stored::highest_version(client, target, &shape, Duration::from_secs(60), || Ok(()));
    answers.note("highest", highest);
    let sorted = |live: Vec<_>| -> Vec<String> {
        let mut live: Vec<String> = live.iter().map(|key| format!("{key:?}")).collect();
        live.sort();
        live
    };
    for partition in
        answers.note("partitions", partitions(client, table, soon())).unwrap_or_default()
    {
        let sample = stored::sample_of_live_keys(client, target, &partition.id, 1, 0, soon());
        answers.note("sample", sample.map(sorted));
    }
    let ids = (0..DOCUMENTS.len()).map(|n| format!("id_{n}")).chain(["nothing".to_owned()]);
    let ids: Vec<Key> = ids.map(|id| Key::from_iter([id])).collect();
    if 1 < target.order_by.len() {
        let mut keys = Vec::new();
        let asked = find_sort_keys(client, target, &ids, &[], soon, &mut keys);
        let mut keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
        keys.sort();
        answers.note("sort keys", asked.map(|()| keys));
    }
    let mut live = Vec::new();
    let asked = find_live(client, target, &ids, soon, &mut live);
    answers.note("live", asked.map(|()| sorted(live)));
    let Some(slicer) = answers.note("slicer", Slicer::new(client, target, soon())) else { return };
    for partition in slicer.partitions(client, soon()).unwrap_or_default() {
        let slices = slicer.slices(client, &partition, None, (2, 3), soon);
        for slice in answers.note("slices", slices).unwrap_or_default() {
            let live = slicer.live_keys(client, &slice, soon()).map(sorted);
            answers.note("keys of a slice", live);
            let written = slicer.keys_written_between(client, &slice, 1, 5, soon()).map(sorted);
            answers.note("keys written", written);
        }
    }
}

fn state_of(client: &mut Client, answers: &mut Answers) {
    let mut row = StateRow {
        service: "runs".to_owned(),
        slot: "it's \\ a `slot`".to_owned(),
        system_identifier: "7312345678901234567".to_owned(),
        timeline: u32::MAX,
        began: Lsn(7),
        confirmed: Lsn(9),
        upper_lsn: Lsn(u64::MAX),
        version_shift: u64::MAX,
        instance: "host\t1\n".to_owned(),
        revision: 0,
    };
    let slot = row.slot.clone();
    answers.note("no state", state::TABLE.read(client, "runs", &slot, soon()));
    answers.note("state", state::write(client, &mut row, soon()));
    answers.note("state again", state::write_unless_overtaken(client, &mut row, soon()));
    answers.note("read state", state::TABLE.read(client, "runs", &slot, soon()));
    let adopted = Adopted { system_identifier: 7, timeline: 2, database: Some(5) };
    answers.note("nothing adopted", adoptions::read(client, &row, soon()));
    answers.note("adopt", adoptions::write(client, &row, &adopted, soon()));
    answers.note("adopted", adoptions::read(client, &row, soon()));
    let mut repair = RepairRow {
        service: "runs".to_owned(),
        slot: slot.clone(),
        status: repairs::RepairStatus::Running,
        system_identifier: "7".to_owned(),
        timeline: 2,
        version_shift: 3,
        base_version: u64::MAX,
        reason: "gap".to_owned(),
        position: "{\"at\":1}".to_owned(),
        rows_read: 1,
        rows_written: 2,
        tombstones_written: 3,
        revision: 0,
    };
    answers.note("no repair", repairs::TABLE.read(client, "runs", &slot, soon()));
    answers.note("repair", repairs::write(client, &mut repair, soon()));
    answers.note("read repair", repairs::TABLE.read(client, "runs", &slot, soon()));
    let mut backfill = BackfillRow {
        service: "runs".to_owned(),
        slot: slot.clone(),
        command: "backfill".to_owned(),
        is_done: false,
        system_identifier: row.system_identifier.clone(),
        timeline: row.timeline,
        version_shift: row.version_shift,
        upper: Lsn(u64::MAX),
        version_min: 1,
        version_max: u64::MAX,
        request: "all".to_owned(),
        position: String::new(),
        rows_read: 4,
        rows_written: 5,
        revision: 0,
    };
    answers.note("nothing beside", backfills::upper(client, &row, soon()));
    answers.note("backfill", backfills::write(client, &mut backfill, soon()));
    let of = ("runs", slot.as_str());
    answers.note("read backfill", backfills::read(client, of, "backfill", soon()));
    answers.note("beside", backfills::upper(client, &row, soon()));
    let refused_row = RefusedRow {
        service: "runs".to_owned(),
        table: "task_runs_v2".to_owned(),
        key: b"run_1".to_vec(),
        version: u64::MAX,
        what: RefusedPart::Column("output".to_owned()),
        error: "code 117 (INCORRECT_DATA)".to_owned(),
        document: b"it's \\ odd\n\t".to_vec(),
    };
    answers.note("no refused rows", refused::counts(client, "runs", soon()));
    answers.note("refused", refused::write(client, &[refused_row], soon()));
    answers.note("refused rows", refused::counts(client, "runs", soon()));
}

/// What the settings of documents could change.
const DOCUMENTS: &[&str] = &[
    "{}",
    r#"{"data":1}"#,
    r#"{"data":{"int":-5,"big":9223372036854775807,"float":1.5,"bool":true,"none":null,"s":"x"}}"#,
    r#"{"data":{"at":"2024-01-01T10:00:00Z","day":"2024-01-01","number":"12","yes":"true"}}"#,
    r#"{"data":{"mixed":[1,"a",true],"objects":[{"a":1},{"b":[2,"x"]}],"empty":[],"deep":[[1],[2]]}}"#,
    r#"{"data":{"a.b":1,"path/s":"http://x/y","text":"é \" \\ \n","exponent":1e3}}"#,
    r#"{"data":"false"}"#,
];

fn append(block: &mut Block, target: &Target, n: usize, document: &str, version: u64, dead: bool) {
    for (at, spec) in target.columns.iter().enumerate() {
        match spec.kind {
            ColumnType::Of(Scalar::String) if target.id.contains(&at) => {
                block.put_str(format!("id_{n}").as_bytes())
            }
            ColumnType::Of(Scalar::String) if target.order_by.contains(&at) => {
                block.put_str(b"o'1 \\ x")
            }
            ColumnType::Of(Scalar::String) => {
                block.put_str(["", "12", "true", "2024-01-01"][n % 4].as_bytes())
            }
            ColumnType::Of(Scalar::Json) => {
                block.put_json(|text| text.extend_from_slice(document.as_bytes()))
            }
            ColumnType::Array(_) => block.put_str_array(|items| {
                items.push(b"1");
                items.push(b"a, 'b'");
            }),
            ColumnType::Of(Scalar::UInt8) => {
                block.put_u8(u8::from(at == target.is_deleted && dead))
            }
            ColumnType::Of(Scalar::UInt32) => block.put_u32(0),
            ColumnType::Of(Scalar::UInt64) => block.put_u64(version),
            ColumnType::Of(Scalar::Float64) => block.put_f64(if n == 0 { 0.1 } else { -0.0 }),
            ColumnType::Of(Scalar::MILLIS) => block.put_millis(n as i64 * 5 * 86_400_000 + 7),
            ColumnType::Nullable(Scalar::UInt8) => {
                block.put_nullable_u8(n.is_multiple_of(2).then_some(1))
            }
            ColumnType::Nullable(Scalar::UInt32) => {
                block.put_nullable_u32(n.is_multiple_of(2).then_some(7))
            }
            ColumnType::Nullable(Scalar::MILLIS) => {
                block.put_nullable_millis(n.is_multiple_of(2).then_some(-1))
            }
            ref other => panic!("no table has {other}"),
        }
    }
    block.end_row();
}

/// Names that begin like this are not walked: nothing that walhouse says meets them.
const OF_OTHERS: &[&str] = &[
    // Storages, caches and engines that our tables are not of.
    "azure_",
    "s3_",
    "s3queue",
    "hdfs_",
    "iceberg_",
    "delta_lake",
    "filesystem_",
    "distributed_cache",
    "remote_filesystem",
    "kafka",
    "rabbit",
    "mysql",
    "postgresql",
    "mongodb",
    "odbc",
    "keeper_",
    "insert_keeper",
    "backup_",
    "restore_",
    "merge_tree_",
    "distributed_plan",
    "ai_",
    "webassembly",
    "local_filesystem",
    "storage_file",
    "page_cache",
    "unique_key",
    // Formats that are not asked for.
    "output_format_parquet",
    "output_format_orc",
    "output_format_arrow",
    "output_format_avro",
    "output_format_msgpack",
    "output_format_pretty",
    "output_format_markdown",
    "output_format_bson",
    "output_format_csv",
    "output_format_image",
    "output_format_protobuf",
    "output_format_sql_insert",
    "output_format_xml",
    "input_format_parquet",
    "input_format_orc",
    "input_format_arrow",
    "input_format_msgpack",
    "input_format_csv",
    "input_format_tsv",
    "input_format_bson",
    "input_format_protobuf",
    "input_format_mysql",
    "input_format_hive",
    "input_format_avro",
    "format_avro",
    "format_capn",
    "format_csv",
    "format_custom",
    "format_regexp",
    "format_protobuf",
    "format_template",
    "format_geojson",
    "format_hive",
    // Limits of an administrator, which end in an error.
    "max_",
    "min_execution_speed",
    "timeout_before_checking",
    "memory_",
    "http_",
    "receive_",
    "send_",
    "connect_",
    "handshake_",
    "tcp_",
    "sleep_",
    "throw_on_",
    "lock_acquire",
    "database_",
    "distributed_ddl",
    "replication_",
    "queue_",
    "idle_",
    "poll_",
    "wait_",
    "low_priority",
    "interactive_",
    "table_engine_read",
    "stop_refreshable",
    "min_free_disk",
    "parts_to_",
    "opentelemetry",
];

/// What an administrator forbids, or what stops every statement: an error.
const PROHIBITIONS: &[&str] = &[
    "allow_ddl",
    "readonly",
    "database",
    "format",
    "input_format",
    "output_format",
    "default_format",
    "implicit_transaction",
    "ignore_drop_queries_probability",
    "compatibility",
    "workload",
    "priority",
    "enable_zstd_qat_codec",
    "use_page_cache_for_disks_without_file_cache",
];

/// A value that is not the default, for settings that have one which means something.
fn hostile(kind: &str, default: &str) -> Option<String> {
    let value = match (kind, default) {
        ("Bool" | "BoolAuto", "1" | "true") => "0",
        ("Bool" | "BoolAuto", _) => "1",
        ("OverflowMode" | "OverflowModeGroupBy", "throw") => "break",
        ("UInt64" | "Int64" | "Int32" | "Float" | "Double" | "NonZeroUInt64", "0" | "0.0") => "1",
        _ => return None,
    };
    Some(value.to_owned())
}

/// Those that need a value of their own to do harm.
const CHOSEN: &[(&str, &str)] = &[
    ("format_tsv_null_representation", "NULL"),
    ("additional_result_filter", "0"),
    ("filter", "0"),
    ("date_time_output_format", "unix_timestamp"),
    ("date_time_input_format", "basic"),
    ("session_timezone", "America/New_York"),
    ("force_optimize_projection_name", "x"),
    ("union_default_mode", "DISTINCT"),
    ("distributed_product_mode", "allow"),
    ("default_table_engine", "Memory"),
    ("max_query_size", "100000"),
    ("max_ast_elements", "2000"),
];

/// Small limits that would cut an answer, if what follows from them were not said to be an error.
const CUTS: &[[(&str, &str); 2]] = &[
    [("max_result_rows", "1"), ("result_overflow_mode", "break")],
    [("max_rows_to_read", "1"), ("read_overflow_mode", "break")],
    [("max_rows_to_group_by", "1"), ("group_by_overflow_mode", "any")],
    [("max_rows_to_sort", "1"), ("sort_overflow_mode", "break")],
    [("max_rows_in_set", "1"), ("set_overflow_mode", "break")],
];

fn owned(profile: &[(&str, &str)]) -> Vec<(String, String)> {
    profile.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The first answer that is another one.
fn difference(usual: &Answers, answers: &Answers) -> Option<String> {
    let mut both = usual.given.iter().zip(&answers.given);
    let short = |text: &str| text.chars().take(300).collect::<String>();
    match both.find(|(a, b)| a != b) {
        Some((a, b)) => Some(format!("{}: {}, and not {}", b.0, short(&b.1), short(&a.1))),
        None => (usual.given.len() != answers.given.len()).then(|| "fewer answers".to_owned()),
    }
}

/// Finds the settings of a group that change an answer.
fn search(walk: &mut Walk, usual: &Answers, group: &[(String, String)], found: &mut Vec<String>) {
    let difference = match walk.answers(group) {
        Some(answers) => match difference(usual, &answers) {
            Some(difference) => difference,
            None => return,
        },
        // One that the engine itself refuses is in no profile.
        None if group.len() == 1 => return,
        None => String::new(),
    };
    match group {
        [(name, value)] => found.push(format!("{name} = {value}: {difference}")),
        _ => {
            let (one, other) = group.split_at(group.len() / 2);
            search(walk, usual, one, found);
            search(walk, usual, other, found);
        }
    }
}

/// Goal: no setting of the engine changes what a statement of ours means.
#[test]
fn no_setting_of_a_profile_changes_an_answer() {
    let mut walk = Walk::start();
    let usual = walk.answers(&[]).unwrap();
    let refused: Vec<&(String, String)> =
        usual.given.iter().filter(|(_, answer)| answer.starts_with("Err")).collect();
    assert_eq!(refused, [] as [&(String, String); 0]);
    let again = walk.answers(&[]).unwrap();
    assert_eq!(difference(&usual, &again), None, "answers do not vary by themselves");
    let rows = walk.clickhouse.rows(
        "SELECT name, type, default FROM system.settings WHERE NOT is_obsolete AND alias_for = '' \
         ORDER BY name",
    );
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let is_walked = |name: &str| {
        !OF_OTHERS.iter().any(|prefix| name.starts_with(prefix)) && !PROHIBITIONS.contains(&name)
    };
    let mut all: Vec<(String, String)> = owned(CHOSEN);
    for row in &rows {
        let (name, kind, default) = (text(&row[0]), text(&row[1]), text(&row[2]));
        let is_chosen = CHOSEN.iter().any(|(chosen, _)| *chosen == name);
        if let Some(value) = hostile(&kind, &default)
            && is_walked(&name)
            && !is_chosen
        {
            all.push((name, value));
        }
    }
    assert!(400 < all.len(), "{} settings", all.len());
    let mut found = Vec::new();
    for group in all.chunks(40) {
        search(&mut walk, &usual, group, &mut found);
    }
    assert!(found.is_empty(), "{} settings change answers:\n{}", found.len(), found.join("\n"));
}

/// Goal: a limit ends in an error that names it, never in a part of the answer.
#[test]
fn a_limit_cuts_no_answer() {
    let mut walk = Walk::start();
    let usual = walk.answers(&[]).unwrap();
    for cut in CUTS {
        let answers = walk.answers(&owned(cut)).unwrap();
        for (what, answer) in &answers.given {
            let is_usual = usual.given.iter().any(|(other, text)| other == what && text == answer);
            // What was not written for a limit is not there.
            let is_told = answer.starts_with("Err") || answer.contains("Refused(");
            let is_after = what.starts_with("the rows") || what.starts_with("the table");
            assert!(is_usual || is_told || is_after, "{cut:?}: {what}: {answer:.300}");
        }
    }
}

/// Goal: no profile has a block dropped as a known one that is none, has one that is sent again
/// taken for another, keeps it from the views that lack it, or passes over what they refuse; and
/// none shows what was deleted.
#[test]
fn no_profile_loses_or_doubles_a_block_or_hides_what_a_view_refuses() {
    let walk = Walk::start();
    let params = walk.params("blocks");
    let mut client = Client::connect(&params).unwrap();
    walk.clickhouse.execute("CREATE DATABASE blocks");
    walk.clickhouse.execute(
        "CREATE TABLE blocks.t (k String) ENGINE = MergeTree ORDER BY k \
         SETTINGS non_replicated_deduplication_window = 100",
    );
    walk.clickhouse.execute("CREATE TABLE blocks.v_of AS blocks.t");
    walk.clickhouse.execute("ALTER TABLE blocks.v_of ADD CONSTRAINT few CHECK k != 'late'");
    walk.clickhouse
        .execute("CREATE MATERIALIZED VIEW blocks.v TO blocks.v_of AS SELECT k FROM blocks.t");
    let known = [
        ("insert_deduplication_token", "x"),
        ("deduplicate_insert", "disable"),
        ("deduplicate_blocks_in_dependent_materialized_views", "0"),
        ("materialized_views_ignore_errors", "1"),
        ("apply_deleted_mask", "0"),
    ]
    .into_iter()
    .filter(|(name, _)| {
        let sql = format!("SELECT count() FROM system.settings WHERE name = '{name}'");
        walk.clickhouse.value(&sql) == "1"
    });
    assert!(walk.set_profile(&owned(&known.collect::<Vec<_>>()), ""));
    let block = |key: &str| {
        let length = u8::try_from(key.len()).unwrap();
        [b"\x01\x01\x01k\x06String".as_slice(), &[length], key.as_bytes()].concat()
    };
    for key in ["a", "b", "b"] {
        client.insert("t", &["k"], &[], &block(key), soon()).unwrap();
    }
    let refused = client.insert("t", &["k"], &[], &block("late"), soon());
    assert!(matches!(refused, Err(InsertError::View(_))), "{refused:?}");
    walk.clickhouse.execute("ALTER TABLE blocks.v_of DROP CONSTRAINT few");
    client.insert("t", &["k"], &[], &block("late"), soon()).unwrap();
    let rows = |client: &mut Client, table: &str| {
        let sql = format!("SELECT arrayStringConcat(arraySort(groupArray(k)), ' ') FROM {table}");
        client.query(&sql, &[], soon()).unwrap()[0][0].clone().unwrap()
    };
    assert_eq!(rows(&mut client, "blocks.t"), "a b late");
    assert_eq!(rows(&mut client, "blocks.v_of"), "a b late");
    walk.clickhouse.execute("DELETE FROM blocks.t WHERE k = 'a'");
    assert_eq!(rows(&mut client, "blocks.t"), "b late");
}

/// Goal: a profile that lets no setting be changed is told with what mends it.
#[test]
fn a_readonly_profile_and_a_fixed_setting_are_named() {
    let walk = Walk::start();
    let params = walk.params("nothing");
    let mut client = Client::connect(&params).unwrap();
    let error_of = |client: &mut Client| {
        let error = client.ping(soon()).unwrap_err();
        (error.to_string(), error.hint_text().unwrap_or_default().to_owned())
    };
    assert!(walk.set_profile(&owned(&[("readonly", "1"), ("extremes", "1")]), ""));
    let (error, hint) = error_of(&mut client);
    assert!(error.contains("READONLY") && hint.contains("readonly"), "{error} {hint}");
    assert!(walk.set_profile(&owned(&[("extremes", "1")]), "&_constants=extremes"));
    let (error, hint) = error_of(&mut client);
    assert!(error.contains("extremes") && hint.contains("constraint"), "{error} {hint}");
    // Fixed to what we say ourselves, or changeable all the same: it works.
    assert!(walk.set_profile(&owned(&[("readonly", "2"), ("extremes", "1")]), ""));
    client.ping(soon()).unwrap();
    assert!(walk.set_profile(&owned(&[("extremes", "0")]), "&_constants=extremes"));
    client.ping(soon()).unwrap();
}
