//! Both wire forms of a value give the same bytes, and no bytes are too strange.

use proptest::collection::vec;
use proptest::prelude::*;

use super::how::{How, Print, ServerTypes, Single, To};
use super::unfit::{Reason, Unfit};
use super::*;
use crate::rows::column::lists_of;

fn server() -> ServerTypes {
    ServerTypes::of_probe("0079-08-24", "0079-08-24 00:00:00.000000", "1")
}

/// What a column has after this value alone, and what did not fit.
fn put_one(how: &How, datum: Datum<'_>) -> Result<(String, Option<(Reason, String)>), DecodeError> {
    let mut lists = lists_of(&kind(&how.to));
    let mut unfit = Unfit::default();
    put(how, datum, &mut lists, &mut unfit)?;
    let original = |original: &[u8]| String::from_utf8_lossy(original).into_owned();
    let taken = unfit.take().map(|(reason, text)| (reason, original(&text)));
    Ok((format!("{lists:?}"), taken))
}

/// Single values, and how their binary forms are made of anything.
fn singles() -> Vec<(Single, Print, BoxedStrategy<Vec<u8>>)> {
    let fixed = |width| vec(any::<u8>(), width).boxed();
    let one_of = |values: Vec<Vec<u8>>| proptest::sample::select(values).boxed();
    let micros = || {
        let usual = (-211_813_488_000_000_000..9_223_371_331_200_000_000_i64).boxed();
        prop_oneof![9 => usual, 1 => Just(i64::MAX), 1 => Just(i64::MIN)]
            .prop_map(|micros| micros.to_be_bytes().to_vec())
            .boxed()
    };
    let days =
        prop_oneof![9 => -2_451_507..2_145_031_949_i32, 1 => Just(i32::MAX), 1 => Just(i32::MIN)];
    let decimal = |precision, scale| Single::Decimal { precision, scale };
    let server = server();
    let range = (*server.micros.start(), *server.micros.end());
    vec![
        (Single::Bool, Print::Bool, one_of(vec![vec![0], vec![1]])),
        (Single::Int2, Print::Int, fixed(2)),
        (Single::Int4, Print::Int, fixed(4)),
        (Single::Int8, Print::Int, fixed(8)),
        (Single::UInt4, Print::UInt, fixed(4)),
        (Single::UInt8, Print::UInt, fixed(8)),
        (Single::Lsn, Print::Lsn, fixed(8)),
        (Single::Float4, Print::Float, floats(4)),
        (Single::Float8, Print::Float, floats(8)),
        (decimal(9, 2), Print::Numeric, numeric()),
        (decimal(18, 18), Print::Numeric, numeric()),
        (decimal(38, 10), Print::Numeric, numeric()),
        (decimal(76, 38), Print::Numeric, numeric()),
        (decimal(50, 0), Print::Numeric, numeric()),
        (Single::Money { scale: 2 }, Print::Money, fixed(8)),
        (
            Single::Date { days: (*server.days.start(), *server.days.end()) },
            Print::Date,
            days.prop_map(|days| days.to_be_bytes().to_vec()).boxed(),
        ),
        (Single::Timestamp { micros: range }, Print::Timestamp { zone: false }, micros()),
        (Single::Timestamp { micros: range }, Print::Timestamp { zone: true }, micros()),
        (
            Single::Time,
            Print::Time,
            (0..=86_400_000_000_i64).prop_map(|time| time.to_be_bytes().to_vec()).boxed(),
        ),
        (Single::Uuid, Print::Uuid, fixed(16)),
        (Single::Bytea, Print::Bytea, vec(any::<u8>(), 0..40).boxed()),
        (Single::Padded, Print::Same, strings()),
        (Single::Text(Print::Same), Print::Same, strings()),
    ]
}

/// NaN has one text and many forms.
fn floats(width: usize) -> BoxedStrategy<Vec<u8>> {
    let is_number = move |bytes: &Vec<u8>| match width {
        4 => !f32::from_be_bytes(bytes[..].try_into().unwrap()).is_nan(),
        _ => !f64::from_be_bytes(bytes[..].try_into().unwrap()).is_nan(),
    };
    vec(any::<u8>(), width).prop_filter("NaN", is_number).boxed()
}

const ODD: [&str; 12] = ["\"", "\\", "{", "}", ",", " ", "(", "]", "NULL", "'", "é", "\n"];

fn strings() -> BoxedStrategy<Vec<u8>> {
    let odd = prop_oneof![
        4 => any::<char>().prop_map(String::from),
        4 => proptest::sample::select(ODD.to_vec()).prop_map(str::to_owned),
        1 => Just("x".repeat(300)),
    ];
    vec(odd, 0..6).prop_map(|parts| parts.concat().replace('\0', "").into_bytes()).boxed()
}

/// As Postgres sends it: no zeros at either end, and a scale that shows all digits.
fn numeric() -> BoxedStrategy<Vec<u8>> {
    let special = proptest::sample::select(vec![0xC000_u16, 0xD000, 0xF000]);
    let number = (vec(0..10_000_u16, 0..25), -22..22_i16, any::<bool>(), 0..4_u16, 0..3_usize);
    let number = number.prop_map(|(mut groups, weight, negative, more, zeros)| {
        groups.resize(groups.len() + zeros, 0);
        let first = groups.iter().position(|group| *group != 0).unwrap_or(groups.len());
        groups.drain(..first);
        groups.truncate(groups.iter().rposition(|group| *group != 0).map_or(0, |at| at + 1));
        let is_zero = groups.is_empty();
        let weight = if is_zero { 0 } else { weight };
        let sign = if negative && !is_zero { 0x4000 } else { 0 };
        let below = (groups.len() as i32 - 1 - i32::from(weight)).max(0) as u16 * 4;
        let last = groups.last().copied().unwrap_or_default();
        let unused = (0..4).find(|at| last / 10_u16.pow(*at) % 10 != 0).unwrap_or(0) as u16;
        let scale = if below == 0 { more } else { below - unused + more };
        let head = [groups.len() as u16, weight as u16, sign, scale];
        head.iter().chain(&groups).flat_map(|part| part.to_be_bytes()).collect::<Vec<u8>>()
    });
    let special = special.prop_map(|sign| {
        [0_u16, 0, sign, 0x20].iter().flat_map(|part| part.to_be_bytes()).collect::<Vec<u8>>()
    });
    prop_oneof![12 => number, 1 => special].boxed()
}

fn sized(value: Option<&[u8]>) -> Vec<u8> {
    match value {
        None => (-1_i32).to_be_bytes().to_vec(),
        Some(value) => [&(value.len() as i32).to_be_bytes(), value].concat(),
    }
}

/// Whatever its elements are.
fn array(of: BoxedStrategy<Vec<u8>>) -> BoxedStrategy<Vec<u8>> {
    let sizes = prop_oneof![3 => vec(1..4_usize, 1), 2 => vec(1..4_usize, 0..4)];
    let bound = prop_oneof![9 => Just(1_i32), 1 => -3..5_i32];
    let elements = vec(proptest::option::weighted(0.8, of), 27);
    (sizes, bound, elements)
        .prop_map(|(sizes, bound, elements)| {
            let mut bytes = Vec::new();
            for part in [sizes.len() as i32, 1, 23] {
                bytes.extend(part.to_be_bytes());
            }
            for size in &sizes {
                bytes.extend((*size as i32).to_be_bytes());
                bytes.extend(bound.to_be_bytes());
            }
            let count = if sizes.is_empty() { 0 } else { sizes.iter().product() };
            for element in &elements[..count] {
                bytes.extend(sized(element.as_deref()));
            }
            bytes
        })
        .boxed()
}

fn range(of: BoxedStrategy<Vec<u8>>) -> BoxedStrategy<Vec<u8>> {
    (0..32_u8, of.clone(), of)
        .prop_map(|(flags, lower, upper)| {
            // No bound is inclusive that is none.
            let flags = flags & !(flags >> 2 & 2) & !(flags >> 2 & 4);
            let mut bytes = vec![flags];
            if flags & 1 != 0 {
                return vec![1];
            }
            for (infinite, bound) in [(8, lower), (16, upper)] {
                if flags & infinite == 0 {
                    bytes.extend(sized(Some(&bound)));
                }
            }
            bytes
        })
        .boxed()
}

fn counted(parts: Vec<Vec<u8>>) -> Vec<u8> {
    [(parts.len() as i32).to_be_bytes().to_vec(), parts.concat()].concat()
}

/// Every way, with binary forms to go it.
fn ways() -> Vec<(How, BoxedStrategy<Vec<u8>>)> {
    let mut ways = Vec::new();
    let mut add = |to, print: &Print, bytes: &BoxedStrategy<Vec<u8>>| {
        ways.push((How { to, print: print.clone() }, bytes.clone()));
    };
    for (single, print, bytes) in singles() {
        add(To::Nullable(single.clone()), &print, &bytes);
        add(To::Of(single.clone()), &print, &bytes);
        let of = Box::new(print.clone());
        let of_range = Print::Range(of.clone());
        add(To::Range(single.clone()), &of_range, &range(bytes.clone()));
        let several = vec(range(bytes.clone()), 0..4)
            .prop_map(|ranges| counted(ranges.iter().map(|range| sized(Some(range))).collect()));
        add(To::Multirange(single.clone()), &Print::Multirange(of.clone()), &several.boxed());
        for (dimensions, delimiter) in [(1, b','), (2, b';'), (3, b',')] {
            let element = Box::new(To::Nullable(single.clone()));
            let to = To::Array { dimensions, delimiter, of: element };
            add(to, &Print::Array { delimiter, of: of.clone() }, &array(bytes.clone()));
        }
        let ranges =
            To::Array { dimensions: 1, delimiter: b',', of: Box::new(To::Range(single.clone())) };
        let print = Print::Array { delimiter: b',', of: Box::new(of_range.clone()) };
        add(ranges, &print, &array(range(bytes.clone())));
    }
    let interval = vec(any::<u8>(), 16).boxed();
    add(To::Interval { nullable: true }, &Print::Interval, &interval);
    add(To::Interval { nullable: false }, &Print::Interval, &interval);
    let point = (floats(8), floats(8)).prop_map(|(x, y)| [x, y].concat()).boxed();
    add(To::Point { nullable: true }, &Print::Point, &point);
    add(To::Point { nullable: false }, &Print::Point, &point);
    let pair = (strings(), proptest::option::of(strings()));
    let pairs = vec(
        pair.prop_map(|(key, value)| [sized(Some(&key)), sized(value.as_deref())].concat()),
        0..4,
    );
    add(To::Map, &Print::Hstore, &pairs.prop_map(counted).boxed());
    let floats = vec(floats(4), 1..5).prop_map(|floats| {
        [&(floats.len() as u16).to_be_bytes()[..], &[0, 0], &floats.concat()].concat()
    });
    add(To::Embedding { half: false }, &Print::Embedding { half: false }, &floats.boxed());
    ways
}

fn texts() -> Vec<Print> {
    vec![
        Print::Unknown,
        Print::Versioned,
        Print::Char,
        Print::TimeTz,
        Print::Inet,
        Print::Macaddr,
        Print::Bits,
        Print::Tid,
        Print::Snapshot,
        Print::Line,
        Print::Lseg,
        Print::Box,
        Print::Path,
        Print::Polygon,
        Print::Circle,
        Print::TsVector,
        Print::TsQuery,
        Print::Hex,
        Print::SparseEmbedding,
        Print::Embedding { half: true },
        Print::Vector(Box::new(Print::Int)),
        Print::Composite([(crate::wal::Oid(0), Print::Int)].into()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn both_forms_of_a_value_are_the_same_bytes(
        (how, bytes) in proptest::sample::select(ways())
            .prop_flat_map(|(how, bytes)| (Just(how), bytes)),
    ) {
        let mut text = Vec::new();
        print::print(&how.print, &bytes, &mut text).unwrap();
        let binary = put_one(&how, Datum::Binary(&bytes));
        let shown = String::from_utf8_lossy(&text).into_owned();
        prop_assert!(binary.is_ok(), "{how:?} {shown} {binary:?}");
        prop_assert_eq!(binary, put_one(&how, Datum::Text(&text)), "{:?} {}", how, shown);
    }

    #[test]
    fn no_bytes_panic(
        bytes in vec(prop_oneof![any::<u8>(), Just(0), Just(b'{'), Just(b'"'), Just(b'\\')], 0..40),
    ) {
        let texts = texts().into_iter().map(|print| {
            How { to: To::Nullable(Single::Text(print.clone())), print }
        });
        for how in ways().into_iter().map(|(how, _)| how).chain(texts) {
            for datum in [Datum::Binary(&bytes[..]), Datum::Text(&bytes)] {
                // Either is fine.
                let _ = put_one(&how, datum);
            }
            put_one(&how, Datum::Null).unwrap();
        }
    }

    #[test]
    fn a_key_is_written_as_postgres_reads_it(
        (single, print, bytes) in proptest::sample::select(singles())
            .prop_flat_map(|(single, print, bytes)| (Just(single), Just(print), bytes)),
    ) {
        let how = How { to: To::Of(single.clone()), print };
        let mut lists = lists_of(&kind(&how.to));
        let mut unfit = Unfit::default();
        put(&how, Datum::Binary(&bytes), &mut lists, &mut unfit).unwrap();
        prop_assume!(!unfit.is_some());
        let text = postgres_literal(&how, lists[0].at(0));
        let text_shown = String::from_utf8_lossy(&text).into_owned();
        let again = put_one(&how, Datum::Text(&text)).unwrap();
        prop_assert_eq!(again, (format!("{lists:?}"), None), "{:?} {}", how, text_shown);
    }

    #[test]
    fn keys_are_one_if_clickhouse_has_one(
        groups in vec(0..10_000_u16, 0..3),
        scales in (0..4_u16, 0..4_u16),
    ) {
        let how = How {
            to: To::Of(Single::Decimal { precision: 76, scale: 38 }),
            print: Print::Numeric,
        };
        let of = |scale: u16| -> Vec<u8> {
            let head = [groups.len() as u16, groups.len() as u16, 0, scale];
            head.iter().chain(&groups).flat_map(|part| part.to_be_bytes()).collect()
        };
        let (one, other) = (of(scales.0), of(scales.1));
        prop_assert_eq!(
            canonical_key(&how, Datum::Binary(&one)),
            canonical_key(&how, Datum::Binary(&other))
        );
        let print = |bytes: &[u8]| {
            let mut text = Vec::new();
            print::print(&how.print, bytes, &mut text).unwrap();
            text
        };
        let (one, other) = (print(&one), print(&other));
        prop_assert_eq!(
            canonical_key(&how, Datum::Text(&one)),
            canonical_key(&how, Datum::Text(&other))
        );
    }
}

fn text_of(how: &How, text: &str) -> (String, Option<Reason>) {
    let mut lists = lists_of(&kind(&how.to));
    let mut unfit = Unfit::default();
    put(how, Datum::Text(text.as_bytes()), &mut lists, &mut unfit).unwrap();
    let value = String::from_utf8(postgres_literal(how, lists.last().unwrap().at(0))).unwrap();
    (value, unfit.take().map(|(reason, _)| reason))
}

#[test]
fn what_does_not_fit_is_the_nearest_that_does() {
    let decimal = |precision, scale| How {
        to: To::Nullable(Single::Decimal { precision, scale }),
        print: Print::Numeric,
    };
    let nines = "9".repeat(38);
    for (how, text, stored, reason) in [
        (decimal(4, 2), "99.994", "99.99", Some(Reason::Rounded)),
        (decimal(4, 2), "99.995", "99.99", Some(Reason::OutOfRange)),
        (decimal(4, 2), "-99.996", "-99.99", Some(Reason::OutOfRange)),
        (decimal(4, 2), "0.005", "0.01", Some(Reason::Rounded)),
        (decimal(4, 2), "-0.0049", "0.00", Some(Reason::Rounded)),
        (decimal(4, 2), "12.5000", "12.50", None),
        (decimal(4, 2), "Infinity", "99.99", Some(Reason::OutOfRange)),
        (decimal(4, 0), "NaN", "0", Some(Reason::NotANumber)),
        (decimal(76, 38), "-Infinity", &format!("-{nines}.{nines}"), Some(Reason::OutOfRange)),
        (decimal(76, 38), "1e", "", None),
    ] {
        if text == "1e" {
            assert!(put_one(&how, Datum::Text(text.as_bytes())).is_err());
            continue;
        }
        assert_eq!(text_of(&how, text), (stored.to_owned(), reason), "{text}");
    }
    let narrow = ServerTypes::of_probe("2299-12-31", "1900-08-24 00:00:00.000000", "0");
    let days = (*narrow.days.start(), *narrow.days.end());
    let date = How { to: To::Of(Single::Date { days }), print: Print::Date };
    let micros = (*narrow.micros.start(), *narrow.micros.end());
    let stamp =
        How { to: To::Of(Single::Timestamp { micros }), print: Print::Timestamp { zone: true } };
    for (how, text, stored, fits) in [
        (&date, "1900-01-01", "1900-01-01", true),
        (&date, "1899-12-31", "1900-01-01", false),
        (&date, "2300-01-01", "2299-12-31", false),
        (&date, "0044-03-15 BC", "1900-01-01", false),
        (&date, "infinity", "2299-12-31", false),
        (&stamp, "2299-12-31 23:59:59.999999+00", "2299-12-31 23:59:59.999999+00", true),
        (&stamp, "2300-01-01 00:00:00+00", "2299-12-31 23:59:59.999999+00", false),
        (&stamp, "294276-12-31 23:59:59.999999+00", "2299-12-31 23:59:59.999999+00", false),
        (&stamp, "-infinity", "1900-01-01 00:00:00+00", false),
    ] {
        let reason = (!fits).then_some(Reason::OutOfRange);
        assert_eq!(text_of(how, text), (stored.to_owned(), reason), "{text}");
    }
}

#[test]
fn the_original_is_the_whole_value() {
    let decimal = Single::Decimal { precision: 4, scale: 2 };
    let of = Box::new(To::Nullable(decimal));
    let print = Print::Array { delimiter: b',', of: Box::new(Print::Numeric) };
    let how = How { to: To::Array { dimensions: 1, delimiter: b',', of }, print };
    for text in ["{1.5,1000,NULL}", "[0:1]={1,2}", "{{1},{2}}"] {
        let (_, unfit) = put_one(&how, Datum::Text(text.as_bytes())).unwrap();
        assert_eq!(unfit.unwrap().1, text);
    }
}

#[test]
fn floats_print_as_postgres_prints_them() {
    let print = |value: f64| {
        let mut text = Vec::new();
        floats::put_f64(value, &mut text);
        String::from_utf8(text).unwrap()
    };
    for (value, expected) in [
        (1e14, "100000000000000"),
        (1e15, "1e+15"),
        (123456789012345.6, "123456789012345.6"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (-1.5e300, "-1.5e+300"),
        (5e-324, "5e-324"),
        (1e23, "9.999999999999999e+22"),
        (2_f64.powi(-25), "2.9802322387695312e-08"),
        (-0.0, "-0"),
        (f64::NAN, "NaN"),
        (f64::NEG_INFINITY, "-Infinity"),
    ] {
        assert_eq!(print(value), expected);
    }
    let print = |value: f32| {
        let mut text = Vec::new();
        floats::put_f32(value, &mut text);
        String::from_utf8(text).unwrap()
    };
    for (value, expected) in
        [(1e5, "100000"), (1e6, "1e+06"), (0.1, "0.1"), (16777216.0, "1.6777216e+07")]
    {
        assert_eq!(print(value), expected);
    }
}

#[test]
fn halves_are_exact() {
    for (half, expected) in [
        (0x0000, 0.0_f32),
        (0x0001, 5.960_464_5e-8),
        (0x03FF, 6.097_555e-5),
        (0x3C00, 1.0),
        (0xC000, -2.0),
        (0x7BFF, 65_504.0),
        (0xFC00, f32::NEG_INFINITY),
    ] {
        assert_eq!(floats::of_half(half), expected, "{half:04x}");
    }
}
