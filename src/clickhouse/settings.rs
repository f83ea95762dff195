//! The settings that go with every statement, so that its answer is the same whatever the user's
//! profile holds. `tests/clickhouse_profile.rs` walks all settings of the engine to hold this list
//! complete; what an INSERT needs in addition is in [`insert_settings`](super::insert_settings).
//!
//! Limits of an administrator (memory, rows, time) are not here: they end in an error and not in
//! another answer, since each `..._overflow_mode` is `throw`. A server that does not know one of
//! these settings answers as if it had the value that we would have sent: so the setting is left
//! out.

/// Name and value, which is the default of new servers unless a comment says otherwise.
pub const STATEMENT_SETTINGS: &[(&str, &str)] = &[
    // All rows that were asked for, once, and nothing else.
    ("limit", "0"),
    ("offset", "0"),
    ("page", "0"),
    ("final", "0"),
    ("extremes", "0"),
    ("additional_table_filters", "{}"),
    ("additional_result_filter", ""),
    ("filter", ""),
    ("use_query_cache", "0"),
    // What was deleted or changed by a lightweight statement is.
    ("apply_deleted_mask", "1"),
    ("apply_patch_parts", "1"),
    // Only this host counts: the client waits until it has the rows.
    ("allow_experimental_parallel_reading_from_replicas", "0"),
    ("skip_unavailable_shards", "0"),
    ("result_overflow_mode", "throw"),
    ("read_overflow_mode", "throw"),
    ("read_overflow_mode_leaf", "throw"),
    ("group_by_overflow_mode", "throw"),
    ("sort_overflow_mode", "throw"),
    ("set_overflow_mode", "throw"),
    ("distinct_overflow_mode", "throw"),
    ("transfer_overflow_mode", "throw"),
    ("timeout_overflow_mode", "throw"),
    ("timeout_overflow_mode_leaf", "throw"),
    // What our SQL means.
    ("dialect", "clickhouse"),
    ("aggregate_functions_null_for_empty", "0"),
    ("empty_result_for_aggregation_by_empty_set", "0"),
    ("implicit_table_at_top_level", ""),
    ("transform_null_in", "0"),
    ("join_use_nulls", "0"),
    ("cast_keep_nullable", "0"),
    ("prefer_column_name_to_alias", "0"),
    ("force_primary_key", "0"),
    ("force_index_by_date", "0"),
    ("force_optimize_projection", "0"),
    ("force_optimize_projection_name", ""),
    ("make_distributed_plan", "0"),
    ("session_timezone", ""),
    // The sizes that statements are cut to.
    ("max_query_size", "262144"),
    ("max_ast_elements", "50000"),
    ("max_expanded_ast_elements", "500000"),
    ("max_ast_depth", "1000"),
    ("max_parser_depth", "1000"),
    // Tables as they are written in our DDL.
    ("data_type_default_nullable", "0"),
    // The texts that we read. Before 25.8 integers in documents were quoted.
    ("output_format_json_quote_64bit_integers", "0"),
    ("output_format_json_quote_64bit_floats", "0"),
    ("output_format_json_quote_denormals", "0"),
    ("output_format_json_quote_decimals", "0"),
    ("output_format_json_named_tuples_as_objects", "1"),
    ("output_format_json_skip_null_value_in_named_tuples", "0"),
    ("output_format_json_escape_forward_slashes", "1"),
    ("output_format_tsv_crlf_end_of_line", "0"),
    ("format_tsv_null_representation", "\\N"),
    ("date_time_output_format", "simple"),
    // Documents stay what they are, whichever parser reads them.
    ("json_type_escape_dots_in_keys", "0"),
    ("allow_simdjson", "1"),
    ("input_format_json_infer_incomplete_types_as_strings", "1"),
    ("input_format_json_try_infer_numbers_from_strings", "0"),
    ("input_format_try_infer_integers", "1"),
    ("input_format_try_infer_variants", "0"),
    ("schema_inference_make_json_columns_nullable", "0"),
    ("input_format_try_infer_exponent_floats", "0"),
    // Blocks are taken whole, and as they are laid out.
    ("input_format_native_decode_types_in_binary_format", "0"),
    ("input_format_max_block_wait_ms", "0"),
    ("input_format_defaults_for_omitted_fields", "1"),
    ("insert_shard_id", "0"),
];

pub fn names() -> impl Iterator<Item = &'static str> {
    STATEMENT_SETTINGS.iter().map(|(name, _)| *name)
}
