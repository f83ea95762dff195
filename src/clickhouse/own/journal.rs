//! One of walhouse's own tables, declared once: its columns define the CREATE statement, the
//! inserts and the reads.
//!
//! Each is a ReplacingMergeTree, so the row of the highest version of a key counts.

use std::time::Instant;

use crate::clickhouse::InsertError;
use crate::clickhouse::client::{Client, quote_bytes};
use crate::clickhouse::cluster::{create_table, pairs, replacing};
use crate::clickhouse::refusal::{Refusal, RefusalVerdict};
use crate::error::{Error, ErrorKind, Result};

pub struct Table<R: 'static> {
    pub name: &'static str,
    /// The name of a row in an error that begins with "read".
    pub(super) what: &'static str,
    pub(super) columns: &'static [Column<R>],
    pub(super) key: &'static [&'static str],
    pub(super) version: &'static str,
}

/// In the order of the table.
pub(super) enum Column<R> {
    /// Name, type, and the place in the row.
    Of(&'static str, &'static str, fn(&mut R) -> &mut dyn Field),
    /// When the row was written, which ClickHouse fills.
    Time(&'static str),
}

/// A value on its way to a String column or from it; ClickHouse converts to the column's type.
pub(super) trait Field {
    /// Leaves nothing in its place.
    fn take(&mut self) -> Vec<u8>;
    /// `None`: it is nothing that walhouse writes, or of a table that it does not read back.
    fn set(&mut self, _text: String) -> Option<()> {
        None
    }
}

impl<R> Table<R> {
    pub(super) fn ddl(&self, client: &Client) -> String {
        let columns = self.columns.iter().map(|column| match column {
            Column::Of(name, type_text, _) => format!("    {name} {type_text}"),
            Column::Time(name) => format!("    {name} DateTime64(3) DEFAULT now64(3)"),
        });
        format!(
            "{} (\n{}\n) ENGINE = {}\nORDER BY ({})",
            create_table(client, self.name),
            columns.collect::<Vec<_>>().join(",\n"),
            replacing(client, self.version),
            self.key.join(", ")
        )
    }

    /// Writes the rows and waits until ClickHouse has them.
    pub(super) fn insert(
        &self,
        client: &mut Client,
        mut rows: Vec<R>,
        deadline: Instant,
    ) -> Result<()> {
        let (columns, block) = (self.written(), self.block(&mut rows));
        let settings = [("async_insert", "0")];
        // No row can be at fault here.
        client.insert(self.name, &columns, &settings, &block, deadline).map_err(|e| match e {
            InsertError::Data(refusal) if refusal.verdict() == RefusalVerdict::Data => {
                refused_own(*refusal)
            }
            other => other.into_error(self.name),
        })
    }

    /// The last row written for this key; `None` if there is none.
    pub(super) fn latest(
        &self,
        client: &mut Client,
        key: &[&str],
        deadline: Instant,
    ) -> Result<Option<R>>
    where
        R: Default,
    {
        client.expect_others(self.name);
        assert!(key.len() == self.key.len());
        let is = |(column, value): (&&str, &&str)| {
            format!("{column} = {}", quote_bytes(value.as_bytes()))
        };
        let sql = format!(
            "SELECT {} FROM {} WHERE {} ORDER BY {} DESC LIMIT 1",
            self.written().join(", "),
            client.qualified(self.name),
            self.key.iter().zip(key).map(is).collect::<Vec<_>>().join(" AND "),
            self.version
        );
        let rows = client.query(&sql, &[self.name], deadline)?;
        let Some(row) = rows.into_iter().next() else { return Ok(None) };
        self.parse(row)
            .map(Some)
            .ok_or_else(|| self.malformed(client, &format!("{} of slot `{}`", self.what, key[1])))
    }

    /// The row that was written last for this service and slot; `None` if there is none.
    pub fn read(
        &self,
        client: &mut Client,
        service: &str,
        slot: &str,
        deadline: Instant,
    ) -> Result<Option<R>>
    where
        R: Default,
    {
        self.latest(client, &[service, slot], deadline)
    }

    /// The value in the column for each other slot of the service.
    pub(super) fn of_other_slots(
        &self,
        client: &mut Client,
        column: &str,
        (service, slot): (&str, &str),
        deadline: Instant,
    ) -> Result<Vec<(String, String)>> {
        client.expect_others(self.name);
        let sql = format!(
            "SELECT slot, toString(argMax({column}, {})) FROM {} \
             WHERE service = {} AND slot != {} GROUP BY slot",
            self.version,
            client.qualified(self.name),
            quote_bytes(service.as_bytes()),
            quote_bytes(slot.as_bytes())
        );
        Ok(pairs(client.query(&sql, &[self.name], deadline)?))
    }

    /// A row that was read does not hold what walhouse writes; `what` it was.
    pub(super) fn malformed(&self, client: &Client, what: &str) -> Error {
        let table = client.qualified(self.name);
        Error::new(ErrorKind::Protocol, format!("read {what} from {table}"))
            .because("its columns do not hold what walhouse writes")
    }

    pub(super) fn parse(&self, row: Vec<Option<String>>) -> Option<R>
    where
        R: Default,
    {
        let (mut parsed, mut texts) = (R::default(), row.into_iter());
        for (_, field) in self.fields() {
            field(&mut parsed).set(texts.next()??)?;
        }
        texts.next().is_none().then_some(parsed)
    }

    /// All columns but those that ClickHouse fills.
    fn fields(&self) -> impl Iterator<Item = (&'static str, fn(&mut R) -> &mut dyn Field)> {
        self.columns.iter().filter_map(|column| match column {
            Column::Of(name, _, field) => Some((*name, *field)),
            Column::Time(_) => None,
        })
    }

    fn written(&self) -> Vec<&'static str> {
        self.fields().map(|(name, _)| name).collect()
    }

    /// A Native block in which every column is a String.
    ///
    /// These small tables need no more, and so this room needs no encoder.
    fn block(&self, rows: &mut [R]) -> Vec<u8> {
        let mut block = Vec::new();
        if rows.is_empty() {
            return block;
        }
        put_varuint(&mut block, self.fields().count());
        put_varuint(&mut block, rows.len());
        for (name, field) in self.fields() {
            put_string(&mut block, name.as_bytes());
            put_string(&mut block, b"String");
            for row in rows.iter_mut() {
                put_string(&mut block, &field(row).take());
            }
        }
        block
    }
}

impl Field for Vec<u8> {
    fn take(&mut self) -> Vec<u8> {
        std::mem::take(self)
    }
}

impl Field for bool {
    fn take(&mut self) -> Vec<u8> {
        u8::from(*self).to_string().into_bytes()
    }

    fn set(&mut self, text: String) -> Option<()> {
        *self = text == "1";
        Some(())
    }
}

macro_rules! texts {
    ($($type:ty)*) => {$(
        impl Field for $type {
            fn take(&mut self) -> Vec<u8> {
                std::mem::take(self).to_string().into_bytes()
            }

            fn set(&mut self, text: String) -> Option<()> {
                *self = text.parse().ok()?;
                Some(())
            }
        }
    )*};
}

texts!(String u32 u64);

fn refused_own(refusal: Refusal) -> Error {
    Error::new(ErrorKind::DataRefused, "insert into a table of walhouse's own")
        .because(refusal)
        .hint("Undo the changes to this table; walhouse needs it as it was created.")
}

fn put_string(block: &mut Vec<u8>, bytes: &[u8]) {
    put_varuint(block, bytes.len());
    block.extend_from_slice(bytes);
}

fn put_varuint(block: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        block.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    block.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::Column::{Of, Time};
    use super::*;

    #[derive(Debug, Default, PartialEq)]
    struct Row {
        key: String,
        document: String,
        number: u32,
        is_done: bool,
    }

    const TABLE: Table<Row> = Table {
        name: "t",
        what: "a row",
        columns: &[
            Of("k", "String", |row| &mut row.key),
            Time("written_at"),
            Of("doc", "String CODEC(ZSTD(1))", |row| &mut row.document),
            Of("n", "UInt32", |row| &mut row.number),
            Of("is_done", "UInt8", |row| &mut row.is_done),
        ],
        key: &["k", "n"],
        version: "n",
    };

    #[test]
    fn a_block_is_laid_out_by_column() {
        let row = |key: &str, document: &str, number, is_done| Row {
            key: key.to_owned(),
            document: document.to_owned(),
            number,
            is_done,
        };
        let mut rows = [row("a", &"x".repeat(200), 7, true), row("", "\u{e9}", 10, false)];
        let mut expected = b"\x04\x02\x01k\x06String\x01a\x00\x03doc\x06String\xc8\x01".to_vec();
        expected.extend([b'x'; 200]);
        expected.extend(b"\x02\xc3\xa9\x01n\x06String\x017\x0210\x07is_done\x06String\x011\x010");
        assert_eq!(TABLE.block(&mut rows), expected);
        assert_eq!(TABLE.block(&mut []), b"");
    }

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let texts = |texts: &[&str]| texts.iter().map(|text| Some((*text).to_owned())).collect();
        let max = u32::MAX.to_string();
        let row = TABLE.parse(texts(&["a", "x", &max, "1"])).expect("each column fits");
        let expected =
            Row { key: "a".to_owned(), document: "x".to_owned(), number: u32::MAX, is_done: true };
        assert_eq!(row, expected);
        for other in [&["a", "x", "-1", "1"][..], &["a", "x", "1"], &["a", "x", "1", "1", ""], &[]]
        {
            assert_eq!(TABLE.parse(texts(other)), None, "{other:?}");
        }
        assert_eq!(TABLE.parse(vec![None, None, None, None]), None);
    }
}
