//! The settings that go with every INSERT in addition to [`settings`](super::settings), and which
//! of all of them a server may not know.

use super::params::{ClickHouseParams, InsertStrategy, Quorum};
use super::refusal::Refusal;
use super::settings::{self, STATEMENT_SETTINGS};

/// What every INSERT relies on, set each time: defaults differ between versions (`async_insert` and
/// `input_format_skip_unknown_fields` were turned on in 2026) and profiles can change them.
const INSERT_SETTINGS: &[(&str, &str)] = &[
    // A column that the table lacks is an error, not a loss.
    ("input_format_skip_unknown_fields", "0"),
    // Without it a document with an array that holds an array and a null is refused. walhouse
    // itself finds a NULL for a column that accepts none before it sends anything.
    ("input_format_null_as_default", "1"),
    // String to LowCardinality, DateTime64(6) to DateTime64(3), and so on.
    ("input_format_native_allow_types_conversion", "1"),
    // A batch may touch many months, and the default refuses more than 100 partitions.
    ("max_partitions_per_insert_block", "0"),
    // A block that is sent again is dropped by tables that keep such a log, so that materialized
    // views do not count it twice. Not with a quorum: see there.
    ("insert_deduplicate", "1"),
    // Each block has its own: with one of the profile's, all but the first would be dropped.
    ("insert_deduplication_token", ""),
    // A view's refusal must be an error; an INSERT that ignores it says so.
    ("materialized_views_ignore_errors", "0"),
    // A block hardly ever has two rows of one key, so that merging it before it is written finds
    // nothing to leave out: a tenth of ClickHouse's CPU on small rows.
    ("optimize_on_insert", "0"),
    // Into a Distributed table: answer when the shards have the rows, not when they are queued.
    ("insert_distributed_sync", "1"),
    // The status line of the answer speaks for the whole INSERT.
    ("wait_end_of_query", "1"),
];

/// Settings that a server may not know, and without which the INSERT is still right.
const OPTIONAL_SETTINGS: &[(&str, &str)] = &[
    (JSON_TYPE, "1"),
    ("type_json_skip_duplicated_paths", "1"),
    // Strings in documents stay strings: "2024-01-01T10:00:00Z" would come back as another text.
    ("input_format_try_infer_dates", "0"),
    ("input_format_try_infer_datetimes", "0"),
    // `[1, "a"]` keeps its number.
    ("input_format_json_infer_array_of_dynamic_from_array_of_different_types", "1"),
    // Booleans and numbers in documents stay what they are.
    ("input_format_json_read_bools_as_numbers", "0"),
    ("input_format_json_read_bools_as_strings", "0"),
    ("input_format_json_read_numbers_as_strings", "0"),
];

pub const JSON_TYPE: &str = "enable_json_type";
/// Its name in 24.8, where the type was new.
pub const JSON_TYPE_OLD: &str = "allow_experimental_json_type";

/// Since 2026 it wins over `insert_deduplicate`; where it is not known, that one holds.
const DEDUPLICATE: &str = "deduplicate_insert";

/// A block that a view refused after the table accepted it is sent again, and is a duplicate for
/// the table: with this setting it is pushed to the views anyway, whose own tables drop what they
/// have. So each view has each row, as since 2026 by default. A server that does not know
/// `DEDUPLICATE` refuses it together with `async_insert`, whose blocks are not dropped as known
/// there.
const DEDUPLICATE_IN_VIEWS: &str = "deduplicate_blocks_in_dependent_materialized_views";

/// Optional settings that a server has refused as unknown, so that they are not sent again.
#[derive(Debug, Default)]
pub struct Unknown(Vec<&'static str>);

impl Unknown {
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(&name)
    }

    /// True if the server refused an optional setting of ours: it is not sent again, and the
    /// request may be. Ends, as each pass takes one of a few settings away.
    pub fn note(&mut self, refusal: &Refusal, caller: &[(&str, &str)]) -> bool {
        let Some(refused) = refusal.unknown_setting.as_deref() else {
            return false;
        };
        let names = OPTIONAL_SETTINGS.iter().map(|(name, _)| *name);
        let names = names.chain([JSON_TYPE_OLD, DEDUPLICATE]);
        let names = names.chain(settings::names());
        let Some(name) = names.into_iter().find(|name| *name == refused) else {
            return false;
        };
        if self.contains(name) || caller.iter().any(|(sent, _)| *sent == name) {
            return false;
        }
        match name == DEDUPLICATE || settings::names().any(|of_all| of_all == name) {
            // Nothing can have changed it there.
            true => {
                log::debug!("clickhouse does not know the setting `{name}`; walhouse leaves it out")
            }
            false => {
                log::warn!(
                    "clickhouse does not know the setting `{name}`; walhouse leaves it out from \
                     now on"
                );
            }
        }
        self.0.push(name);
        true
    }

    /// For every statement, as far as the server knows them.
    pub fn of_statement(&self) -> impl Iterator<Item = (&'static str, &'static str)> + '_ {
        STATEMENT_SETTINGS.iter().copied().filter(|(name, _)| !self.contains(name))
    }
}

/// Ours first, then the caller's, so that the caller's win.
pub fn of_insert(
    params: &ClickHouseParams,
    unknown: &Unknown,
    caller: &[(&str, &str)],
) -> Vec<(String, String)> {
    let strategy: &[(&str, &str)] = match params.insert_strategy {
        InsertStrategy::Insert => &[("async_insert", "0")],
        InsertStrategy::InsertAsync => &[
            ("async_insert", "1"),
            // The answer comes after the flush, so it says what became of the rows.
            ("wait_for_async_insert", "1"),
            ("async_insert_max_data_size", "1000000"),
            ("async_insert_busy_timeout_ms", "1000"),
        ],
    };
    let optional = OPTIONAL_SETTINGS.iter().filter(|(name, _)| !unknown.contains(name));
    let mut settings: Vec<(&str, &str)> = unknown.of_statement().collect();
    settings.extend_from_slice(INSERT_SETTINGS);
    settings.extend_from_slice(strategy);
    settings.extend(optional);
    if unknown.contains(JSON_TYPE) && !unknown.contains(JSON_TYPE_OLD) {
        settings.push((JSON_TYPE_OLD, "1"));
    }
    let is_async = params.insert_strategy == InsertStrategy::InsertAsync;
    let in_views = if is_async && unknown.contains(DEDUPLICATE) { "0" } else { "1" };
    settings.push((DEDUPLICATE_IN_VIEWS, in_views));
    settings.extend_from_slice(caller);
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let mut settings: Vec<(String, String)> = settings.iter().map(owned).collect();
    settings.extend(of_quorum(params));
    if !unknown.contains(DEDUPLICATE) {
        let asks_for_others = params.quorum.is_some_and(Quorum::asks_for_others);
        let deduplicate = if asks_for_others { "disable" } else { "enable" };
        settings.push((DEDUPLICATE.to_owned(), deduplicate.to_owned()));
    }
    settings
}

/// For every INSERT, into our own tables as well: a state that says "confirmed" must be as durable
/// as the rows that it covers.
///
/// A block that is sent again must not be answered as a duplicate. ClickHouse then waits until the
/// quorum of the part that it has is no longer pending, and treats its end as success; but if the
/// replica that wrote the part is gone meanwhile, the quorum is marked as failed, which ends it as
/// well, and the part is thrown away. Without deduplication each attempt has its own quorum, and
/// rows that are there twice are one by their version. So we cannot use a quorum of the profile,
/// which would come with deduplication.
fn of_quorum(params: &ClickHouseParams) -> Vec<(String, String)> {
    let Some(quorum) = params.quorum else {
        let none = [("insert_quorum", "0"), ("async_insert_deduplicate", "0")];
        return none.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    };
    // So that the server reports the outcome while we still listen; writing itself takes time.
    let timeout = params.request_timeout / 2;
    let deduplicate = if quorum.asks_for_others() { "0" } else { "1" };
    vec![
        ("insert_deduplicate".to_owned(), deduplicate.to_owned()),
        ("async_insert_deduplicate".to_owned(), "0".to_owned()),
        ("insert_quorum".to_owned(), quorum.to_string()),
        ("insert_quorum_timeout".to_owned(), timeout.as_millis().max(1).to_string()),
        // Several flushers write into one table, and without it each would be refused while another
        // waits for its quorum. Reads do not rely on the order that it gives up: see `fresh`.
        ("insert_quorum_parallel".to_owned(), "1".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(params: &ClickHouseParams, name: &str) -> Option<String> {
        let settings = of_insert(params, &Unknown::default(), &[("async_insert", "0")]);
        // The last one wins.
        settings.into_iter().rev().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    #[test]
    fn a_quorum_is_answered_before_the_request_is_given_up() {
        let (params, _) = ClickHouseParams::parse("http://h:1?request_timeout=5000", "trigger_dev")
            .expect("it is a URL");
        // One of the profile's would come with deduplication.
        assert_eq!(value(&params, "insert_quorum").as_deref(), Some("0"));
        assert_eq!(value(&params, "insert_deduplicate").as_deref(), Some("1"));
        let params = ClickHouseParams { quorum: Some(Quorum::Replicas(3)), ..params };
        assert_eq!(value(&params, "insert_quorum").as_deref(), Some("3"));
        assert_eq!(value(&params, "insert_quorum_timeout").as_deref(), Some("2500"));
        assert_eq!(value(&params, "insert_quorum_parallel").as_deref(), Some("1"));
        assert_eq!(value(&params, "insert_deduplicate").as_deref(), Some("0"));
        assert_eq!(value(&params, "deduplicate_insert").as_deref(), Some("disable"));
        assert_eq!(value(&params, "async_insert").as_deref(), Some("0"));
        let params = ClickHouseParams { quorum: Some(Quorum::Auto), ..params };
        assert_eq!(value(&params, "insert_quorum").as_deref(), Some("auto"));
        let params = ClickHouseParams { quorum: Some(Quorum::Replicas(1)), ..params };
        assert_eq!(value(&params, "insert_deduplicate").as_deref(), Some("1"));
        assert_eq!(value(&params, "deduplicate_insert").as_deref(), Some("enable"));
    }

    /// Goal: an old server, which refuses both together, takes inserts that are asynchronous.
    #[test]
    fn views_are_pushed_to_again_where_blocks_may_be_dropped_as_known() {
        let (params, _) =
            ClickHouseParams::parse("http://h:1", "trigger_dev").expect("it is a URL");
        let insert_strategy = InsertStrategy::InsertAsync;
        let of_async = ClickHouseParams { insert_strategy, ..params.clone() };
        for (params, unknown, expected) in [
            (&params, Unknown::default(), "1"),
            (&params, Unknown(vec![DEDUPLICATE]), "1"),
            (&of_async, Unknown::default(), "1"),
            (&of_async, Unknown(vec![DEDUPLICATE]), "0"),
        ] {
            let settings = of_insert(params, &unknown, &[]);
            let said = settings.iter().rev().find(|(name, _)| name == DEDUPLICATE_IN_VIEWS);
            assert_eq!(said.map(|(_, value)| value.as_str()), Some(expected));
        }
    }
}
