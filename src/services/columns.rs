//! Any table: each column of the source becomes a column of one target, by its type.
//!
//! The sorting key is the key in Postgres, in the order of its index, so a tombstone needs nothing
//! else, and nothing ever has to be looked up in ClickHouse. Two columns are added, and a third one
//! where NULL and empty would be the same in ClickHouse.

use std::sync::Arc;

use serde_json::Map;

use super::column_set::ColumnSet;
use super::mapping::{Mapping, Stamp, ValueError};
use super::notes::{Kept, Notes};
use super::row::Row;
use super::source::{OwnType, Source, SourceColumn, SourceKind};
use super::types::{ColumnPlan, column_of};
use super::values;
use super::values::how::ServerTypes;
use super::values::unfit::Unfit;
use crate::rows::column::put_nothing;
use crate::rows::{Block, ColumnSpec, ColumnType, Scalar, Target};
use crate::wal::pg_type::PgType;
use crate::wal::{Datum, DecodeError, Lsn};

/// The columns that are added, unless the table has one of that name.
const VERSION: &str = "_version";
const IS_DELETED: &str = "_is_deleted";
/// The names of columns that are NULL in Postgres and whose type in ClickHouse has no NULL.
const NULLS: &str = "_nulls";

/// A table as the catalog of Postgres has it, as far as it is replicated.
#[derive(Debug, Clone)]
pub struct TableDescription {
    pub schema: Arc<str>,
    pub table: Arc<str>,
    pub columns: Vec<ColumnDescription>,
    /// The columns of its key, in the order of the index, as indexes into `columns`.
    pub key: Vec<usize>,
    /// The table in ClickHouse.
    pub target: Arc<str>,
}

#[derive(Debug, Clone)]
pub struct ColumnDescription {
    pub name: Arc<str>,
    pub of: Arc<PgType>,
    pub is_not_null: bool,
    /// As declared.
    pub dimensions: u16,
}

/// The mapping of any table.
#[derive(Debug)]
pub struct Columns {
    source: Source,
    targets: [Target; 1],
    /// By place of the source, which is the column of the target, too.
    plans: Vec<ColumnPlan>,
    /// The place of [`NULLS`] in the target, if a column needs it.
    nulls: Option<usize>,
    all: ColumnSet,
}

impl Columns {
    pub fn new(table: &TableDescription, server: &ServerTypes) -> Columns {
        let plan = |(place, column): (usize, &ColumnDescription)| {
            let is_key = table.key.contains(&place);
            let not_null = column.is_not_null || is_key;
            column_of(&column.of, not_null, column.dimensions, is_key, server)
        };
        let plans: Vec<ColumnPlan> = table.columns.iter().enumerate().map(plan).collect();
        let source_column = |(column, plan): (&ColumnDescription, &ColumnPlan)| {
            let own = OwnType {
                oid: column.of.oid,
                sql: Arc::clone(&column.of.sql),
                how: plan.how.clone(),
            };
            SourceColumn::new(&column.name, SourceKind::Own(Arc::new(own)))
        };
        let source = Source {
            schema: Arc::clone(&table.schema),
            table: Arc::clone(&table.table),
            columns: table.columns.iter().zip(&plans).map(source_column).collect(),
            unread: Vec::new(),
            key: table.key.clone(),
            sorting: Vec::new(),
            created_at: None,
        };
        let target_column = |(column, plan): (&ColumnDescription, &ColumnPlan)| ColumnSpec {
            name: Arc::clone(&column.name),
            kind: plan.kind.clone(),
            ddl: plan.ddl.as_str().into(),
        };
        let mut columns: Vec<ColumnSpec> =
            table.columns.iter().zip(&plans).map(target_column).collect();
        let needs_nulls = plans.iter().any(|plan| plan.needs_null_flag);
        let nulls = needs_nulls.then(|| {
            let of = ColumnType::array(ColumnType::Of(Scalar::String));
            let ddl = "Array(LowCardinality(String))";
            columns.push(ColumnSpec { ddl: ddl.into(), ..own_column(&columns, NULLS, of) });
            columns.len() - 1
        });
        let version = columns.len();
        let of = ColumnType::Of(Scalar::UInt64);
        let ddl = "UInt64 CODEC(Delta(8), ZSTD(1))";
        columns.push(ColumnSpec { ddl: ddl.into(), ..own_column(&columns, VERSION, of) });
        columns.push(own_column(&columns, IS_DELETED, ColumnType::Of(Scalar::UInt8)));
        let target = Target {
            table: Arc::clone(&table.target),
            columns: columns.into(),
            computed: Vec::new(),
            indexes: Vec::new(),
            order_by: table.key.clone(),
            partition_by: Vec::new(),
            ttl: None,
            documents: Vec::new(),
            optional: Vec::new(),
            id: table.key.clone(),
            version,
            is_deleted: version + 1,
        };
        let all = ColumnSet::first(source.columns.len());
        Columns { source, targets: [target], plans, nulls, all }
    }

    /// The original of a row that is not stored.
    fn row_as_texts(&self, row: &Row<'_>) -> Vec<u8> {
        let value = |(column, datum): (&SourceColumn, &Datum<'_>)| {
            let text = match datum {
                Datum::Null | Datum::Unchanged => serde_json::Value::Null,
                datum => String::from_utf8_lossy(&column.text(*datum)).into_owned().into(),
            };
            (column.name.to_string(), text)
        };
        let values = self.source.columns.iter().zip(&row.values).map(value);
        serde_json::Value::Object(values.collect::<Map<_, _>>()).to_string().into_bytes()
    }
}

/// A column of ours; where the table has one of that name, another name.
fn own_column(columns: &[ColumnSpec], name: &str, of: ColumnType) -> ColumnSpec {
    let is_taken = |name: &str| columns.iter().any(|column| *column.name == *name);
    let mut own = name.to_owned();
    while is_taken(&own) {
        own = format!("_walhouse{own}");
    }
    ColumnSpec::new(&own, of)
}

impl Mapping for Columns {
    fn source(&self) -> &Source {
        &self.source
    }

    fn targets(&self) -> &[Target] {
        &self.targets
    }

    fn needs(&self, _first: bool) -> ColumnSet {
        self.all.clone()
    }

    fn owners(&self) -> &'static [usize] {
        &[]
    }

    fn append(
        &self,
        row: &Row<'_>,
        stamp: Stamp,
        blocks: &mut [Block],
        notes: &mut Notes,
    ) -> Result<(), ValueError> {
        if !stamp.row {
            return Ok(());
        }
        let (block, target) = (&mut blocks[0], &self.targets[0]);
        let (mut unfit, mut key_is_unfit) = (Unfit::default(), None);
        let kept_before = notes.kept.len();
        for (place, plan) in self.plans.iter().enumerate() {
            let (kind, lists) = block.next_column();
            let is_key = self.source.key.contains(&place);
            if stamp.deleted && !is_key {
                // The old row that came may be its key alone.
                put_nothing(kind, lists);
                continue;
            }
            let column = &self.source.columns[place];
            let fail = |cause| ValueError { column: Arc::clone(&column.name), cause, lsn: Lsn(0) };
            values::put(&plan.how, row.values[place], lists, &mut unfit).map_err(fail)?;
            if !unfit.is_some() {
                continue;
            }
            if std::mem::take(&mut unfit.null) {
                return Err(fail(NULL_IN_NOT_NULL));
            }
            let Some((reason, document)) = unfit.take() else { continue };
            if is_key {
                key_is_unfit = Some(reason);
            } else {
                notes.kept.push(Kept {
                    table: Arc::clone(&target.table),
                    column: Some(Arc::clone(&column.name)),
                    key: row.key_text(&self.source),
                    version: stamp.version,
                    reason: reason.to_string(),
                    document,
                });
            }
        }
        if let Some(nulls) = self.nulls {
            debug_assert_eq!(nulls, self.plans.len());
            block.put_str_array(|names| {
                for (place, plan) in self.plans.iter().enumerate() {
                    if plan.needs_null_flag && !stamp.deleted && row.values[place] == Datum::Null {
                        names.push(self.source.columns[place].name.as_bytes());
                    }
                }
            });
        }
        block.put_u64(stamp.version);
        block.put_u8(u8::from(stamp.deleted));
        block.end_row();
        // The nearest key would be another row's.
        if let Some(reason) = key_is_unfit {
            block.take_back();
            notes.kept.truncate(kept_before);
            // A row that was never stored needs no tombstone.
            if !stamp.deleted {
                notes.kept.push(Kept {
                    table: Arc::clone(&target.table),
                    column: None,
                    key: row.key_text(&self.source),
                    version: stamp.version,
                    reason: format!("its key does not fit: {reason}"),
                    document: self.row_as_texts(row),
                });
            }
        }
        Ok(())
    }
}

const NULL_IN_NOT_NULL: DecodeError =
    DecodeError::BadValue { context: "NULL for a column that was NOT NULL" };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{Shape, stored};
    use crate::services::fold::{EntryKind, FoldedChange, fold};
    use crate::services::plan::{RelationPlan, Types};
    use crate::wal::testing::{self, V};
    use crate::wal::{Oid, PgTime};

    const INT4: Oid = Oid(23);
    const TEXT: Oid = Oid(25);
    const NUMERIC: Oid = Oid(1700);
    const TIMESTAMP: Oid = Oid(1114);
    const TEXTS: Oid = Oid(1009);

    fn column(name: &str, oid: Oid, typmod: i32, is_not_null: bool) -> ColumnDescription {
        let mut of = PgType::built_in(oid, "x", typmod);
        if oid == TEXTS {
            let element = Arc::new(PgType::built_in(TEXT, "text", -1));
            of.form = crate::wal::pg_type::PgForm::Array { element, delimiter: b',' };
        }
        ColumnDescription { name: name.into(), of: Arc::new(of), is_not_null, dimensions: 1 }
    }

    /// numeric(9, 2)
    const OF_CENTS: i32 = (9 << 16) + 2 + 4;

    fn columns(all: Vec<ColumnDescription>, key: &[usize]) -> Columns {
        let table = TableDescription {
            schema: "shop".into(),
            table: "or\"ders".into(),
            columns: all,
            key: key.to_vec(),
            target: "orders".into(),
        };
        Columns::new(&table, &ServerTypes::of_probe("0079-08-24", "0079-08-24 00:00:00", "1"))
    }

    /// Its key is `(at, id)`, in another order than its columns.
    fn orders() -> Columns {
        columns(
            vec![
                column("id", INT4, -1, true),
                column("note", TEXT, -1, false),
                column("at", TIMESTAMP, -1, true),
                column("tags", TEXTS, -1, false),
                column("_version", NUMERIC, OF_CENTS, false),
            ],
            &[2, 0],
        )
    }

    fn append(mapping: &Columns, values: &[Datum<'_>], deleted: bool) -> (Block, Notes) {
        let mut row = Row::of(&mapping.source);
        row.values.copy_from_slice(values);
        let target = &mapping.targets[0];
        let shape = Shape::of(vec![true; target.columns.len()]);
        let mut blocks = [Block::new(&target.columns, &shape)];
        let mut notes = Notes::default();
        let stamp = Stamp { version: 7, deleted, row: true, first: true };
        mapping.append(&row, stamp, &mut blocks, &mut notes).unwrap();
        let [block] = blocks;
        (block, notes)
    }

    fn texts(block: &Block, row: usize) -> Vec<Option<String>> {
        let text = |column| stored::text(block, column, row);
        let columns = (0..block.columns()).map(text);
        columns.map(|text| text.map(|text| String::from_utf8(text).unwrap())).collect()
    }

    const T: fn(&str) -> Datum<'_> = |text| Datum::Text(text.as_bytes());

    #[test]
    fn a_table_is_made_as_the_catalog_has_it() {
        let mapping = orders();
        let target = &mapping.targets[0];
        let ddl: Vec<String> =
            target.columns.iter().map(|spec| format!("{} {}", spec.name, spec.ddl)).collect();
        assert_eq!(
            ddl,
            [
                "id Int32",
                "note Nullable(String)",
                "at DateTime64(6, 'UTC')",
                "tags Array(Nullable(String))",
                "_version Nullable(Decimal(9, 2))",
                "_nulls Array(LowCardinality(String))",
                "_walhouse_version UInt64 CODEC(Delta(8), ZSTD(1))",
                "_is_deleted UInt8",
            ]
        );
        assert_eq!(target.names(&target.order_by), ["at", "id"]);
        assert_eq!(
            target.names(&[target.version, target.is_deleted]),
            ["_walhouse_version", "_is_deleted"]
        );
    }

    #[test]
    fn both_wire_forms_of_a_row_are_the_same_row() {
        let mapping = orders();
        let at = PgTime(1_000_001).0.to_be_bytes();
        let id = 5_i32.to_be_bytes();
        let in_text =
            [T("5"), Datum::Null, T("2000-01-01 00:00:01.000001"), Datum::Null, T("1.50")];
        let cents = [0, 2, 0, 0, 0, 0, 0, 2, 0, 1, 0x13, 0x88];
        let in_binary = [
            Datum::Binary(&id),
            Datum::Null,
            Datum::Binary(&at),
            Datum::Null,
            Datum::Binary(&cents),
        ];
        let (block, notes) = append(&mapping, &in_text, false);
        let text = |text: &str| Some(text.to_owned());
        let expected = vec![
            text("5"),
            None,
            text("946684801000001"),
            text(""),
            text("150"),
            text("4:tags"),
            text("7"),
            text("0"),
        ];
        assert_eq!(texts(&block, 0), expected);
        assert_eq!(texts(&append(&mapping, &in_binary, false).0, 0), expected);
        assert!(notes.kept.is_empty());
    }

    #[test]
    fn a_tombstone_has_the_key_alone() {
        let mapping = orders();
        let key = [T("5"), Datum::Null, T("1970-01-01 00:00:00"), Datum::Null, Datum::Null];
        let (block, _) = append(&mapping, &key, true);
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            texts(&block, 0),
            [text("5"), None, text("0"), text(""), None, text(""), text("7"), text("1")]
        );
    }

    #[test]
    fn a_value_that_does_not_fit_is_kept_and_a_row_whose_key_does_not_as_a_whole() {
        let mapping = columns(
            vec![
                column("at", TIMESTAMP, -1, true),
                column("price", NUMERIC, OF_CENTS, false),
                column("tags", TEXTS, -1, true),
            ],
            &[0],
        );
        let (block, notes) =
            append(&mapping, &[T("2000-01-01 00:00:00"), T("NaN"), T("{}")], false);
        assert_eq!(block.rows(), 1);
        let [kept] = notes.kept.as_slice() else { panic!("{notes:?}") };
        assert_eq!(
            (kept.column.as_deref(), kept.document.as_slice()),
            (Some("price"), &b"NaN"[..])
        );
        for deleted in [false, true] {
            let (block, notes) = append(&mapping, &[T("infinity"), T("NaN"), T("{a}")], deleted);
            assert_eq!(block.rows(), 0, "it would be another row's");
            assert!((0..block.columns()).all(|at| block.lists(at)[0].is_empty()));
            let kept: Vec<_> = notes.kept.iter().map(|kept| (&kept.column, &kept.key)).collect();
            match deleted {
                true => assert!(kept.is_empty()),
                false => assert_eq!(kept, [(&None, &b"infinity".to_vec())]),
            }
        }
    }

    /// Goal: a row is never hidden by the tombstone of its own key.
    #[test]
    fn a_key_that_changes_in_postgres_and_not_in_clickhouse_is_the_same() {
        let mapping = columns(
            vec![column("id", NUMERIC, OF_CENTS, true), column("note", TEXT, -1, false)],
            &[0],
        );
        let of = [("id", NUMERIC), ("note", TEXT)];
        let relation = testing::relation_of(7, "or\"ders", &of);
        let plan = RelationPlan::new(mapping.source(), &relation, &Types::default()).unwrap();
        let row = |id: &'static str| [V::Text(id), V::Text("x")];
        let messages = [
            testing::insert(Oid(7), &row("1.0")),
            testing::update(Oid(7), Some((b'K', &[V::Text("1.0"), V::Null])), &row("1.00")),
            testing::update(Oid(7), Some((b'K', &[V::Text("1.00"), V::Null])), &row("2")),
        ];
        let changes = messages.iter().enumerate().map(|(at, message)| FoldedChange {
            message,
            lsn: Lsn(at as u64),
            xid: 1,
            plan: &plan,
            ask_below: None,
        });
        let folded = fold(mapping.source(), changes).unwrap();
        let kinds: Vec<EntryKind> = folded.entries.iter().map(|entry| entry.kind).collect();
        use EntryKind::{Insert, Tombstone, Update};
        assert_eq!(kinds, [Insert, Update, Tombstone, Insert]);
    }
}
