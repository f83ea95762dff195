//! Random text and values, for the readers behind the stream and beside it.

use std::collections::BTreeMap;

use fastrand::Rng;
use serde_json::value::RawValue;

use super::damage::walk_value;
use super::fuzz::{fuzz, pick};
use super::mutate;

// ---- values ----

use walhouse::clickhouse::params::ClickHouseParams as ClickhouseParams;
use walhouse::clickhouse::refusal::{Refusal, RefusalVerdict};
use walhouse::config::Config;
use walhouse::config::variables::{self, VariableKind};
use walhouse::documents::convert::{DocumentOutcome, append_document, append_jsonb};
use walhouse::postgres::PostgresParams;
use walhouse::redis::params::Params as RedisParams;
use walhouse::services::annotations::{
    Annotations, IdempotencyOptions, external_deployment_id, worker_queue,
};
use walhouse::services::fingerprint::error_fingerprint;
use walhouse::wal::time::Timestamp;
use walhouse::wal::{Datum, Lsn, PgTime, value};

const VALUES: &[&[u8]] = &[
    b"{a,\"b c\",NULL}",
    b"[0:1]={a,b}",
    b"{{\"a\\\"b\",\"c\\\\d\"},{\"\",NULL}}",
    b"\0\0\0\x01\0\0\0\x01\0\0\0\x19\0\0\0\x02\0\0\0\x01\0\0\0\x01a\xff\xff\xff\xff",
    b"2024-02-29 12:34:56.789012+00",
    b"0044-03-15 12:00:00 BC",
    b"294276-12-31 23:59:59.999999",
    b"infinity",
    b"-123456789012345678",
    b"1.7976931348623157e+308",
    b"16/B374D848",
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\x01{\"a\": [1, null]}",
    b"t",
];

#[test]
fn fuzz_values_for_a_bounded_time() {
    let words: Vec<&[u8]> = [VALUES, &[b"{", b"}", b",", b"\"", b"\\", b" ", b"-", b":"]].concat();
    let generate = |rng: &mut Rng| {
        let value = pick(rng, VALUES).to_vec();
        mutate::bytes(rng, value, &words)
    };
    fuzz("values", generate, |input| {
        walk_value(Datum::Text(input));
        walk_value(Datum::Binary(input));
        check_both_formats(input);
        if let Ok(text) = std::str::from_utf8(input)
            && let Ok(lsn) = text.parse::<Lsn>()
        {
            assert_eq!(lsn.to_string().parse(), Ok(lsn));
        }
    });
}

/// What the bytes stand for as an array, an integer, a float and a time, written in both formats,
/// is read the same from both.
fn check_both_formats(input: &[u8]) {
    let elements: Vec<Option<&[u8]>> =
        input.split(|&b| b == b' ').map(|part| (part != b"-").then_some(part)).collect();
    let read = |datum| {
        let mut read = Vec::new();
        let result = value::text_array(datum, |element| read.push(element.map(<[u8]>::to_vec)));
        assert_eq!(result, Ok(true));
        read
    };
    let (text, binary) = (array_as_text(&elements), array_as_binary(&elements));
    let text = read(Datum::Text(&text));
    assert_eq!(text, read(Datum::Binary(&binary)));
    assert!(text.iter().map(Option::as_deref).eq(elements.iter().copied()));

    let Some(bits) = input.first_chunk::<8>() else { return };
    let number = i64::from_be_bytes(*bits);
    assert_eq!(value::int(Datum::Text(number.to_string().as_bytes())), Ok(Some(number)));
    assert_eq!(value::int(Datum::Binary(bits)), Ok(Some(number)));
    let float = f64::from_be_bytes(*bits);
    let as_text = if float.is_infinite() {
        if float < 0.0 { "-Infinity".to_owned() } else { "Infinity".to_owned() }
    } else {
        format!("{float:e}")
    };
    for datum in [Datum::Text(as_text.as_bytes()), Datum::Binary(bits)] {
        let read = value::float(datum).unwrap().unwrap();
        assert!(read == float || (read.is_nan() && float.is_nan()), "{float} became {read}");
    }
    let Ok(Some(Timestamp::At(at))) = value::timestamp(Datum::Binary(bits)) else { return };
    let millis = at.unix_millis();
    assert!(PgTime::from_unix_millis(millis) <= at, "rounded down");
}

fn array_as_text(elements: &[Option<&[u8]>]) -> Vec<u8> {
    let mut text = b"{".to_vec();
    for (at, element) in elements.iter().enumerate() {
        if 0 < at {
            text.push(b',');
        }
        let Some(element) = element else {
            text.extend(b"NULL");
            continue;
        };
        let special = |b: &u8| b"\"\\{},".contains(b) || b.is_ascii_whitespace() || *b == 0x0b;
        let quoted = element.is_empty()
            || element.eq_ignore_ascii_case(b"NULL")
            || element.iter().any(special);
        text.extend(quoted.then_some(b'"'));
        for byte in *element {
            text.extend(b"\"\\".contains(byte).then_some(b'\\'));
            text.push(*byte);
        }
        text.extend(quoted.then_some(b'"'));
    }
    text.push(b'}');
    text
}

fn array_as_binary(elements: &[Option<&[u8]>]) -> Vec<u8> {
    let mut binary = Vec::new();
    for number in [1, 1, 25, elements.len() as u32, 1] {
        binary.extend(number.to_be_bytes());
    }
    for element in elements {
        match element {
            Some(element) => {
                binary.extend((element.len() as u32).to_be_bytes());
                binary.extend(*element);
            }
            None => binary.extend(u32::MAX.to_be_bytes()),
        }
    }
    binary
}

// ---- documents ----

const DOCUMENTS: &[&[u8]] = &[
    br#"{"a": [1, 2.50, -0, 1e400, 18446744073709551616], "b": {"c": null, "d": true}}"#,
    br#"{"a.b": 1, "a": {"b": 2, "b": 3}, "": {"": "x"}}"#,
    br#"["\ud83d\ude00", "\ud800", "\udc00\ud83d", "\u0000", "\\u12"]"#,
    br#"{"json": {"x": 1}, "meta": {"values": {"x": ["Date"]}}}"#,
    br#"{"type": "BUILT_IN_ERROR", "name": "TypeError", "message": "at 12:34 /tmp/x 10.0.0.1",
        "stack": "Error: x\n  at f (/app/x.js:1:2)\n  at g", "stacktrace": 7}"#,
    br#"{"triggerSource": "a", "triggerAction": "b", "rootTriggerSource": "c", "taskKind": "d",
        "externalDeploymentId": "e", "rootScheduleId": "f", "key": ["k"], "scope": "run"}"#,
    b" [[[[[[]]]]], {\"a\":{\"a\":{\"a\":{}}}}] ",
    "{\"\u{e9}\": \"\u{1f600}\u{2028}\"}".as_bytes(),
];

const JSON_WORDS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\"",
    b"\\",
    b"\\u",
    b"\\ud800",
    b"\\udc00",
    b"\"a\":",
    b"\"a.b\":1,",
    b"null",
    b"true",
    b"-",
    b"0",
    b"1e9",
    b".5",
    b"9999999999999999999999",
    b" ",
    b"\n",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\0",
    b"\"json\":",
    b"\"message\":",
    b"{\"data\":",
];

fn is_json(text: &[u8]) -> bool {
    // It skips the value, so that no depth is too much for it.
    std::str::from_utf8(text).is_ok_and(|text| serde_json::from_str::<&RawValue>(text).is_ok())
}

#[test]
fn fuzz_documents_for_a_bounded_time() {
    let generate = |rng: &mut Rng| {
        let mut document = pick(rng, DOCUMENTS).to_vec();
        if rng.u8(..16) == 0 {
            // Around the depth that ClickHouse holds.
            let depth = rng.usize(990..1010);
            let (open, close) = if rng.bool() { ("[", "]") } else { ("{\"a\":", "}") };
            document =
                [open.repeat(depth).as_bytes(), &document, close.repeat(depth).as_bytes()].concat();
        }
        if rng.u8(..8) == 0 { document } else { mutate::bytes(rng, document, JSON_WORDS) }
    };
    fuzz("documents", generate, |input| {
        let is_json = is_json(input);
        let outcome = appended(|out| append_jsonb(Some(input), out));
        check_outcome(outcome, is_json);
        let outcome = appended(|out| append_document(Some(input), b"application/json", out));
        assert!(
            input.is_empty() || matches!(outcome, DocumentOutcome::Empty(_)) || {
                check_outcome(outcome, is_json);
                true
            }
        );
        let outcome = appended(|out| append_document(Some(input), b"application/super+json", out));
        assert!(
            is_json || !matches!(outcome, DocumentOutcome::Written | DocumentOutcome::Repaired(_))
        );

        // Postgres sends nothing but UTF-8, so that these do not look at it.
        let is_json = is_json || std::str::from_utf8(input).is_err();
        let read = Annotations::read(Some(input));
        assert!(is_json || read == Annotations::default());
        let read = IdempotencyOptions::read(Some(input));
        assert!(is_json || read == IdempotencyOptions::default());
        let id = external_deployment_id(Some(input), Some(b"EXTERNAL_DEPLOYMENT_PENDING"));
        assert!(is_json || id.is_empty());
        let fingerprint = error_fingerprint(Some(input), b"CRASHED");
        assert!(fingerprint.is_empty() || (is_json && fingerprint.len() == 16));
        assert!(worker_queue(input).len() <= input.len());
    });
}

/// Whatever the outcome, one JSON object was appended to what was there.
fn appended(append: impl FnOnce(&mut Vec<u8>) -> DocumentOutcome) -> DocumentOutcome {
    let mut out = b"before".to_vec();
    let outcome = append(&mut out);
    let document = out.strip_prefix(b"before").expect("it only appends");
    assert!(is_json(document) && document.starts_with(b"{"), "{outcome:?}");
    let is_nothing = document == b"{}";
    let is_written = matches!(outcome, DocumentOutcome::Written | DocumentOutcome::Repaired(_));
    assert_eq!(is_nothing, !is_written, "{outcome:?}");
    outcome
}

/// Another reader agrees on what is JSON.
fn check_outcome(outcome: DocumentOutcome, is_json: bool) {
    match outcome {
        DocumentOutcome::Written | DocumentOutcome::Repaired(_) => assert!(is_json, "{outcome:?}"),
        DocumentOutcome::Invalid(_) => assert!(!is_json, "{outcome}"),
        // What comes after the depth is not looked at.
        DocumentOutcome::TooDeep => {}
        DocumentOutcome::Empty(_) => panic!("{outcome:?}"),
    }
}

// ---- what ClickHouse answers ----

const ANSWERS: &[&[u8]] = &[
    b"Code: 117. DB::Exception: Cannot parse JSON object here: {\"data\":\"hunter2\": While executing \
        BinaryRowInputFormat: while converting column `output`: (at row 3)\n: \
        (INCORRECT_DATA) (version 26.9.2.1 (official build))",
    b"Code: 60, e.displayText() = DB::Exception: Table d.x doesn't exist., e.what() = \
        DB::Exception (version 20.3)",
    b"Code: 115. DB::Exception: Unknown setting 'enable_json_type': Maybe you meant \
        ['x']. (UNKNOWN_SETTING)",
    b"Code: 6. DB::Exception: Code: 6. DB::Exception: Cannot parse string 'hunter2' as UInt8: while \
        converting source column status to destination column `status`. (CANNOT_PARSE_TEXT)",
    b"Code: 241. DB::Exception: Memory limit (total) exceeded. (MEMORY_LIMIT_EXCEEDED)",
    b"<html>502 Bad Gateway</html>",
];

const ANSWER_WORDS: &[&[u8]] = &[
    b"Code: ",
    b"DB::Exception: ",
    b"99999999999",
    b"`",
    b"'",
    b"(",
    b")",
    b"\n",
    b"\r\x1b[2J",
    b"while converting column",
    b"output",
    b"error",
    b"(version ",
    b"\xf0\x9f\x98\x80",
    b". ",
];

#[test]
fn fuzz_answers_for_a_bounded_time() {
    let generate = |rng: &mut Rng| {
        let answer = pick(rng, ANSWERS).to_vec();
        mutate::bytes(rng, answer, ANSWER_WORDS)
    };
    let columns = ["output", "error", "status"];
    fuzz("answers", generate, |input| {
        let answer = String::from_utf8_lossy(input);
        let Some(refusal) = Refusal::read(&answer, &columns) else { return };
        assert!(refusal.text.chars().all(|c| !c.is_control()), "one line: {:?}", refusal.text);
        assert!(refusal.text.chars().count() <= 500, "{}", refusal.text);
        assert!(refusal.column.iter().all(|column| columns.contains(&column.as_str())));
        if refusal.verdict() == RefusalVerdict::Data {
            assert!(!refusal.text.contains("hunter2"), "no values of rows: {}", refusal.text);
        }
        let _ = refusal.hint();
    });
}

// ---- settings ----

const SETTINGS: &[&[u8]] = &[
    b"postgresql://user:p%40ss@host-1:5432,[::1]:6000,%2Frun%2Fpg/db?sslmode=verify-full\
        &connect_timeout=10&options=-c%20a%3Db&target_session_attrs=primary&application_name=x",
    b"postgres://u@/db?host=/run/pg&port=5433",
    b"https://user:pass@[fe80::1%25eth0]:8443/db?secure=true&request_timeout=1500&compression=1",
    b"http://ch:8123?user=u&password=p%2Bw&database=d",
    b"[::1]",
    b"redis.example.org",
    b"rediss://x:y@z",
    b"127.0.0.1:9090",
    b"trigger_slot_1",
    b"1000",
    b"true",
    b"",
];

const SETTING_WORDS: &[&[u8]] = &[
    b"postgres://",
    b"http://",
    b"https://",
    b"@",
    b":",
    b"/",
    b"//",
    b"?",
    b"&",
    b"=",
    b"#",
    b"%",
    b"%00",
    b"%ff",
    b"%2",
    b"[",
    b"]",
    b"[::1]",
    b",",
    b"..",
    b" ",
    b"\0",
    b"\xc3\xa9",
    b"65536",
    b"99999999999999999999",
    b"-1",
    b"sslmode=",
    b"host=",
    b"password=",
    b"localhost",
    b"true",
];

/// Lines of `NAME=value`.
fn generate_settings(rng: &mut Rng) -> Vec<u8> {
    let mut lines = Vec::new();
    let mut left = rng.u8(..4);
    for variable in variables::all() {
        for name in variable.names() {
            let is_switch = name.ends_with("REPLICATION_ENABLED");
            let is_needed = name.ends_with("_URL") || name.ends_with("REDIS_HOST");
            if !is_switch && !is_needed && rng.u8(..4) != 0 {
                continue;
            }
            let value = match variable.kind {
                _ if is_switch => b"1".to_vec(),
                VariableKind::Secret => b"hunter2".to_vec(),
                VariableKind::PostgresUrl => pick(rng, &SETTINGS[..2]).to_vec(),
                VariableKind::ClickhouseUrl => pick(rng, &SETTINGS[2..4]).to_vec(),
                VariableKind::Host => pick(rng, &SETTINGS[4..6]).to_vec(),
                VariableKind::Integer { min, max } => rng.u64(min..=max).to_string().into_bytes(),
                VariableKind::Choice(choices) => choices[rng.usize(..choices.len())].into(),
                VariableKind::Flag => b"true".to_vec(),
                VariableKind::Address => b"127.0.0.1:9090".to_vec(),
                _ => name.to_lowercase().into_bytes(),
            };
            let is_marked = matches!(variable.kind, VariableKind::Secret);
            let value = if 0 < left && !is_switch && !is_marked && rng.u8(..16) == 0 {
                left -= 1;
                mutate::bytes(rng, value, SETTING_WORDS)
            } else {
                value
            };
            lines.extend([name.as_bytes(), b"=", &value, b"\n"].concat());
        }
    }
    lines
}

#[test]
fn fuzz_settings_for_a_bounded_time() {
    let generate = |rng: &mut Rng| {
        if rng.bool() {
            return generate_settings(rng);
        }
        let url = pick(rng, SETTINGS).to_vec();
        mutate::bytes(rng, url, SETTING_WORDS)
    };
    let loaded = std::cell::Cell::new(0_u64);
    fuzz("settings", generate, |input| {
        let text = String::from_utf8_lossy(input);
        if let Err(error) = PostgresParams::parse(&text) {
            assert!(!error.to_string().is_empty());
        }
        if let Err(error) = ClickhouseParams::parse(&text, "d") {
            assert!(!error.to_string().is_empty());
        }
        if let Ok(host) = RedisParams::parse_host(&text) {
            assert!(!host.is_empty() && text.contains(&host));
        }
        let lines: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.split_once('=')).collect();
        let config = Config::from_lookup(|name| lines.get(name).map(|value| (*value).to_owned()));
        let said = match &config {
            Ok(config) => {
                loaded.set(loaded.get() + config.services.len() as u64);
                let services = config.services.iter().map(|service| service.to_string());
                format!("{config:?} {}", services.collect::<Vec<_>>().join(" "))
            }
            Err(problems) => format!("{problems} {problems:?}"),
        };
        assert!(!said.contains("hunter2"), "a secret is not told: {said}");
    });
    assert!(0 < loaded.get(), "some settings are good");
    println!("settings: {} good services", loaded.get());
}
