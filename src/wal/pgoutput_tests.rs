//! Every message as the manual lays it out, every prefix of it, and any bytes at all.

use std::borrow::Cow;

use proptest::prelude::*;

use super::pgoutput::{Keys, Message, Old, keys};
use super::testing::{self, V};
use super::wire::Wire;
use super::{Datum, DecodeError, Lsn, Oid, PgTime, Tuple};

fn second_column<'a>(
    tuple: &Wire<'a>,
    _: Option<&Wire<'a>>,
) -> Result<Option<Cow<'a, [u8]>>, DecodeError> {
    match Tuple::parse_one(tuple, 1)? {
        Datum::Text(key) | Datum::Binary(key) => Ok(Some(Cow::Borrowed(key))),
        Datum::Null | Datum::Unchanged => Ok(None),
    }
}

#[test]
fn the_keys_that_a_change_takes_away_and_brings() {
    let (a, b) = ([V::Null, V::Text("a")], [V::Unchanged, V::Binary(b"b")]);
    let none = Keys::default();
    let [gone, come] = [b"a", b"b"].map(|key| Some(Cow::Borrowed(&key[..])));
    for (message, expected) in [
        (testing::insert(Oid(7), &b), Keys { come: come.clone(), ..none.clone() }),
        (testing::delete(Oid(7), b'K', &a), Keys { gone: gone.clone(), ..none.clone() }),
        (testing::delete(Oid(7), b'O', &a), Keys { gone: gone.clone(), ..none.clone() }),
        (testing::update(Oid(7), None, &a), none.clone()),
        (testing::update(Oid(7), Some((b'O', &a)), &a), none.clone()),
        (
            testing::update(Oid(7), Some((b'O', &a)), &b),
            Keys { gone: gone.clone(), come: come.clone() },
        ),
        (testing::update(Oid(7), Some((b'K', &a)), &b), Keys { gone, come }),
        (testing::update(Oid(7), Some((b'K', &a)), &[V::Null, V::Unchanged]), none),
    ] {
        assert_eq!(keys(&message, second_column), Ok(expected), "{message:?}");
    }
}

fn samples() -> Vec<Vec<u8>> {
    let values = [V::Text("a"), V::Null, V::Unchanged, V::Binary(&[1, 2])];
    let relation = testing::relation_of(7, "TaskRun", &[("id", testing::TEXT), ("x", Oid(23))]);
    let mut truncate = b"T".to_vec();
    truncate.extend(2_u32.to_be_bytes());
    truncate.push(3);
    truncate.extend(7_u32.to_be_bytes());
    truncate.extend(8_u32.to_be_bytes());
    vec![
        testing::begin(5, 6, 7),
        testing::commit(5, 6, 7),
        testing::relation(&relation),
        testing::insert(Oid(7), &values),
        testing::update(Oid(7), None, &values),
        testing::update(Oid(7), Some((b'K', &values)), &values),
        testing::update(Oid(7), Some((b'O', &values)), &values),
        testing::delete(Oid(7), b'K', &values),
        testing::delete(Oid(7), b'O', &values),
        truncate,
    ]
}

#[test]
fn messages_are_read_as_the_manual_lays_them_out() {
    let begin = testing::begin(5, 6, 7);
    assert_eq!(
        Message::parse(&begin),
        Ok(Message::Begin { commit_lsn: Lsn(5), commit_time: PgTime(6), xid: 7 })
    );
    let commit = testing::commit(5, 6, 7);
    assert_eq!(
        Message::parse(&commit),
        Ok(Message::Commit { commit_lsn: Lsn(5), end_lsn: Lsn(6), commit_time: PgTime(7) })
    );
    let relation = testing::relation_of(7, "TaskRun", &[("id", testing::TEXT)]);
    let bytes = testing::relation(&relation);
    assert_eq!(Message::parse(&bytes), Ok(Message::Relation(relation)));
    let bytes = testing::update(
        Oid(7),
        Some((b'K', &[V::Text("k"), V::Null])),
        &[V::Text("n"), V::Unchanged],
    );
    let Ok(Message::Update { relation: Oid(7), old: Old::Key(key), new }) = Message::parse(&bytes)
    else {
        panic!("expected an update with a key");
    };
    assert_eq!(key.datums().collect::<Vec<_>>(), [Datum::Text(b"k"), Datum::Null]);
    assert_eq!(new.datums().collect::<Vec<_>>(), [Datum::Text(b"n"), Datum::Unchanged]);
    assert!(new.has_unchanged() && !key.has_unchanged());
    for ignored in [&b"Y\0\0\0\0"[..], b"O", b"M\0"] {
        assert_eq!(Message::parse(ignored), Ok(Message::Ignored));
    }
}

#[test]
fn no_prefix_of_a_message_passes_for_a_message() {
    for sample in samples() {
        assert!(Message::parse(&sample).is_ok(), "{sample:?}");
        for cut in 0..sample.len() {
            assert!(Message::parse(&sample[..cut]).is_err(), "{sample:?} cut at {cut}");
        }
        let longer = [&sample[..], &[0]].concat();
        assert!(Message::parse(&longer).is_err(), "{sample:?} and a byte");
    }
}

#[test]
fn messages_of_other_protocol_versions_are_unknown() {
    for tag in [b'S', b'E', b'c', b'A', b'b', b'P', b'K', b'r', b'p', 0, 255] {
        let expected = DecodeError::UnknownTag { context: "message tag", tag };
        assert_eq!(Message::parse(&[tag, 0, 0, 0, 0]), Err(expected));
    }
}

proptest! {
    #[test]
    fn any_bytes_give_a_message_or_an_error(
        tag in prop::sample::select(b"BCRIUDTYOMX".to_vec()),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let bytes = [&[tag][..], &rest].concat();
        if let Ok(Message::Insert { new, .. }) = Message::parse(&bytes) {
            prop_assert_eq!(new.datums().count(), new.columns());
        }
    }

    #[test]
    fn a_damaged_message_never_panics(at in 0..10_usize, place: usize, byte: u8) {
        let mut sample = samples().swap_remove(at);
        let place = place % sample.len();
        sample[place] = byte;
        let _ = Message::parse(&sample);
        let _ = keys(&sample, second_column);
    }

    #[test]
    fn tuples_come_back_as_they_were(
        values in prop::collection::vec(
            prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
            0..30,
        ),
    ) {
        let built: Vec<V<'_>> =
            values.iter().map(|v| v.as_deref().map_or(V::Null, V::Binary)).collect();
        let bytes = testing::tuple(&built);
        let tuple = Tuple::parse(&mut super::wire::Wire::new(&bytes)).unwrap();
        let back: Vec<_> = tuple.datums().collect();
        let expected: Vec<_> =
            values.iter().map(|v| v.as_deref().map_or(Datum::Null, Datum::Binary)).collect();
        prop_assert_eq!(back, expected);
    }
}
