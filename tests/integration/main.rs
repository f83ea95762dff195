//! The program as a whole, against real servers: `cargo test --test integration`.
//!
//! The system that walhouse takes over from has tests of its own. Each has its counterpart here:
//!
//! | their suite and case | ours |
//! |---|---|
//! | client: subscribe to changes on a table | `handover::a_first_start_makes_publication_and_slot` |
//! | client: teardown drops the slot | no such command; `repairs::a_slot_that_is_gone_is_made_anew_and_the_gap_mended` |
//! | client: two clients on one slot must not both lead | `handover::a_second_program_stands_by_and_takes_over` |
//! | client: self-heals once the leader releases the slot | the same |
//! | client: a failing start must not leak connections or locks | `handover::a_busy_slot_leaks_nothing_and_is_taken_when_it_is_free` |
//! | client: shutdown during a start leaves no zombie leader | `handover::a_stop_while_starting_leaves_nothing_behind` |
//! | client: subscribe after shutdown | `handover::a_program_that_was_stopped_goes_on_where_it_was` |
//! | runs 1: replicate runs | `replicates::a_run_arrives_with_all_it_has` |
//! | runs 2: super json payloads | `documents::superjson_is_its_json_member` |
//! | runs 3: no flush without changes | `replicates::writes_to_other_tables_flush_nothing_and_are_confirmed` |
//! | runs 4: batching insert strategy | `replicates::every_insert_strategy_and_batch_size_delivers` |
//! | runs 5, 6: payload, also a large one | `documents::payloads_arrive_at_every_size` |
//! | runs 7, 8: updates, deletions | `replicates::updates_and_deletes_arrive` |
//! | runs 9: gracefully shutdown and handover | `handover::a_stop_in_the_middle_hands_over_without_loss` |
//! | runs 10: do not re-process handled data | `handover::a_program_that_was_stopped_goes_on_where_it_was` |
//! | runs 11: metrics | `replicates::everything_is_counted` |
//! | runs 12: handover while the other waits | `handover::a_second_program_stands_by_and_takes_over` |
//! | runs 13, 14: 1000 runs at once, updated at once | `replicates::a_thousand_runs_in_one_statement` |
//! | runs 15: all in a single transaction | `replicates::a_transaction_of_its_own_inserts_and_updates` |
//! | runs 16: transactions for a long time | `replicates::a_trickle_of_transactions_arrives` |
//! | runs 17: incomplete Unicode escapes | `documents::a_lone_surrogate_costs_its_character_only` |
//! | runs 18: merge of duplicate keys | `replicates::a_batch_writes_one_row_for_each_key` |
//! | runs 19: sorted batches | `rows::block` sorts, by its unit tests; a MergeTree shows no order of arrival |
//! | runs 20: exhaustively all columns | `values::every_mapped_column_is_exact` |
//! | error recovery: reconnect, exit, log | `recovery` |
//! | sessions: insert, update and close | `replicates::sessions_are_opened_closed_and_deleted` |
//! | flush scheduler | `services::fold`, `machines::batches` by unit tests; `replicates::a_batch_writes_one_row_for_each_key` |
//! | bad JSON strings | `services::document` by unit tests; `documents` |
//! | error fingerprints | `services::fingerprint` by unit tests; `values` |
//! | poison rows | `machines::salvage` by unit tests; `documents::poison_rows_cost_only_themselves`, `refused` |
//! | clickhouse: dedupe on version | `handover::redelivered_rows_change_nothing` |
//! | clickhouse: duplicate paths, arrays of mixed types | `documents::repeated_paths_and_mixed_arrays_are_taken` |
//!
//! Left out are their admin routes, which walhouse does not have, and replication from two sources.

#[path = "../support/mod.rs"]
mod support;

/// Rows copied on demand.
mod backfill;
/// JSON documents that are large, strange, or poison.
mod copies;
mod documents;
/// Databases that are not in UTF-8.
mod encodings;
/// Promotions: who is followed, and what is taken along.
mod failover;
/// Another database, another source: rows of theirs are not marked as deleted.
mod foreign;
/// Links and walsenders that fall silent, and servers that stop in order.
mod half_dead;
/// Who streams when, and what a program leaves to the next.
mod handover;
/// What the source no longer sends, noticed by what it looks like.
mod hidden;
/// Several hosts of ClickHouse, and a quorum that nothing keeps.
mod hosts;
/// Every replica identity and format, under load, compared in full.
mod identity;
/// Rows that were there before tables were created.
mod initial_backfill;
/// What an INSERT comes to when its answer, its size or a view is at fault.
mod landing;
/// Deletes by the hundred thousand, of rows whose keys have to be looked up.
mod mass_delete;
/// The comparison of both sides finds what is planted: without this, no other test says much.
mod oracle_finds;
/// Payloads of runs that are not there.
mod orphans;
/// A service with nothing to do.
mod quiet;
/// The three error strategies, when Postgres ends the stream.
mod recovery;
/// Rows and values that ClickHouse refuses.
mod refused;
/// Changes that were missed and rows that Postgres lost: compared and mended.
mod repairs;
/// What a working day brings: inserts, updates, deletes, batches, metrics.
mod replicates;
/// Keys that are used again while somebody waits for them.
mod reused_keys;
/// The source table changes under the stream.
mod schema_changes;
/// What the watch beside the stream refuses, and what it says when it cannot look.
mod source_looks;
/// What is stored is told apart from what would be written.
mod stored;
/// Each party killed, stopped, slow or cut off under load, alone and at random.
mod survives;
/// Target tables made by somebody else.
mod tables;
/// The leader lock in Redis, of a process that is gone.
mod takeover;
mod target_tables;
/// A service taken out of Postgres.
mod teardown;
/// Values of every type.
mod types;
/// WAL that no attempt can decode, and states of the source in which none could.
mod undecodable;
/// What systemd hears of it.
mod under_systemd;
/// Single values at and beyond the edges of what a column holds.
mod values;
/// Both sides compared by the program itself.
mod verify;
/// What an operator sees: `/status`, the page, and the command that asks for it.
mod watched;
mod way_out;
mod webhooks;
