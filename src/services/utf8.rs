//! Values that are not UTF-8, as a database in SQL_ASCII may hold: there a text is whatever bytes a
//! client has sent.
//!
//! Bytes that are not UTF-8 become U+FFFD, and the original is kept, as for every adjusted value.
//! Except in the columns of the sorting key: two keys must not become one, and a String of
//! ClickHouse accepts any bytes.

use super::mapping::{Mapping, Stamp, ValueError, is_owned};
use super::notes::{Kept, Notes};
use super::row::Row;
use super::source::{Source, SourceKind};
use crate::rows::Block;
use crate::wal::{Datum, value};
use std::sync::Arc;

const REASON: &str = "not valid UTF-8, replaced by U+FFFD";

/// [`Mapping::append`], for a row as it came from Postgres.
pub fn append(
    mapping: &dyn Mapping,
    row: &Row<'_>,
    stamp: Stamp,
    blocks: &mut [Block],
    notes: &mut Notes,
) -> Result<(), ValueError> {
    let mended = mended(mapping.source(), row);
    if mended.is_empty() {
        return mapping.append(row, stamp, blocks, notes);
    }
    let mut sound = Row { values: row.values.clone(), types: row.types.clone() };
    for Mended { place, bytes, .. } in &mended {
        sound.values[*place] = match (row.values[*place], &mapping.source().columns[*place].kind) {
            (Datum::Binary(_), SourceKind::Text | SourceKind::Json) => Datum::Binary(bytes),
            _ => Datum::Text(bytes),
        };
    }
    // A tombstone has values that were kept when its row was written.
    if !stamp.deleted && is_owned(mapping, row) {
        let source = mapping.source();
        let key = row.key_text(source);
        notes.kept.extend(mended.iter().map(|mended| Kept {
            table: Arc::clone(&mapping.targets()[0].table),
            column: Some(Arc::clone(&source.columns[mended.place].name)),
            key: key.clone(),
            version: stamp.version,
            reason: REASON.to_owned(),
            document: mended.original.clone(),
        }));
    }
    mapping.append(&sound, stamp, blocks, notes)
}

struct Mended {
    place: usize,
    bytes: Vec<u8>,
    original: Vec<u8>,
}

fn mended(source: &Source, row: &Row<'_>) -> Vec<Mended> {
    let mut all = Vec::new();
    for (place, column) in source.columns.iter().enumerate() {
        let datum = row.values[place];
        let Some(bytes) = value::text(datum) else { continue };
        if bytes.is_ascii() || source.placed().any(|of_key| of_key == place) {
            continue;
        }
        match &column.kind {
            SourceKind::Text | SourceKind::Json if std::str::from_utf8(bytes).is_err() => {
                let type_oid = row.types[place].unwrap_or(value::oid::TEXT);
                let original = value::json(datum, type_oid).ok().flatten().unwrap_or(bytes);
                let bytes = String::from_utf8_lossy(bytes).into_owned().into_bytes();
                all.push(Mended { place, bytes, original: original.to_vec() });
            }
            SourceKind::TextArray => {
                let (mut sound, mut is_sound) = (Vec::new(), true);
                let mut original = Vec::new();
                let read = value::text_array(datum, |element| {
                    is_sound &= element.is_none_or(|element| std::str::from_utf8(element).is_ok());
                    push_element(&mut original, element);
                    let lossy = element.map(String::from_utf8_lossy);
                    push_element(&mut sound, lossy.as_ref().map(|element| element.as_bytes()));
                });
                // The mapping refuses what cannot be read at all.
                if read.is_ok() && !is_sound {
                    sound.push(b'}');
                    original.push(b'}');
                    all.push(Mended { place, bytes: sound, original });
                }
            }
            _ => {}
        }
    }
    all
}

/// As Postgres writes an array: `{"a","b \" c",NULL}`.
fn push_element(array: &mut Vec<u8>, element: Option<&[u8]>) {
    array.push(if array.is_empty() { b'{' } else { b',' });
    let Some(element) = element else { return array.extend_from_slice(b"NULL") };
    array.push(b'"');
    for &byte in element {
        if matches!(byte, b'"' | b'\\') {
            array.push(b'\\');
        }
        array.push(byte);
    }
    array.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::sessions::Sessions;

    /// Of a session with these values, in the order of the source's columns.
    fn mended_of(values: &[(&str, Datum<'_>)]) -> Vec<(String, Vec<u8>, Vec<u8>)> {
        let source = Sessions.source();
        let mut row = Row::of(source);
        for (name, datum) in values {
            let place = source.columns.iter().position(|column| *column.name == **name).unwrap();
            row.values[place] = *datum;
            row.types[place] =
                (source.columns[place].kind == SourceKind::Json).then_some(value::oid::JSONB);
        }
        let name = |place: usize| source.columns[place].name.to_string();
        let all = mended(source, &row).into_iter();
        all.map(|mended| (name(mended.place), mended.bytes, mended.original)).collect()
    }

    #[test]
    fn what_is_no_utf8_is_replaced_in_texts_documents_and_arrays() {
        let array: Vec<u8> = {
            let mut bytes: Vec<u8> =
                [1_i32, 0, 25, 2, 1, 3].iter().flat_map(|n| n.to_be_bytes()).collect();
            bytes.extend(b"a\"\xe9");
            bytes.extend(200_i32.to_be_bytes());
            bytes.extend([b'x'; 200]);
            bytes
        };
        let mended = mended_of(&[
            ("closedReason", Datum::Text(b"caf\xe9")),
            ("type", Datum::Binary("caf\u{e9}".as_bytes())),
            ("metadata", Datum::Binary(b"\x01{\"a\": \"\xe9\"}")),
            ("tags", Datum::Binary(&array)),
        ]);
        let x = "x".repeat(200);
        let texts: Vec<_> = mended
            .iter()
            .map(|(name, bytes, _)| (&**name, String::from_utf8(bytes.clone()).unwrap()))
            .collect();
        assert_eq!(
            texts,
            [
                ("tags", format!("{{\"a\\\"\u{fffd}\",\"{x}\"}}")),
                ("metadata", "\u{1}{\"a\": \"\u{fffd}\"}".to_owned()),
                ("closedReason", "caf\u{fffd}".to_owned()),
            ]
        );
        assert_eq!(mended[1].2, b"{\"a\": \"\xe9\"}");
        assert_eq!(mended[2].2, b"caf\xe9");
    }

    #[test]
    fn keys_stay_the_bytes_that_they_are() {
        let key = [("id", Datum::Text(b"\xe9")), ("organizationId", Datum::Text(b"\xe8"))];
        assert_eq!(mended_of(&key), []);
    }

    #[test]
    fn an_array_of_long_elements_is_sound() {
        let mut bytes: Vec<u8> =
            [1_i32, 0, 25, 1, 1, 200].iter().flat_map(|n| n.to_be_bytes()).collect();
        bytes.extend([b'x'; 200]);
        assert_eq!(mended_of(&[("tags", Datum::Binary(&bytes))]), []);
        assert_eq!(mended_of(&[("tags", Datum::Binary(b"\xff"))]), [], "the mapping refuses it");
    }
}
