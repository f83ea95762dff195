//! The columns of a run that are read out of its small jsonb values, and the worker queue.
//!
//! What is missing is the empty string, as the source system writes it. Nothing here can fail: a
//! value of the wrong shape is a missing one.

use std::borrow::Cow;

use crate::documents::{strings, tokens};

/// All empty unless the annotations are valid as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Annotations<'a> {
    pub trigger_source: Cow<'a, str>,
    pub root_trigger_source: Cow<'a, str>,
    pub task_kind: Cow<'a, str>,
}

impl<'a> Annotations<'a> {
    /// From the text of `annotations`. Valid is an object with the strings triggerSource,
    /// triggerAction and rootTriggerSource, and no optional member that is something else than a
    /// string; null is something else.
    pub fn read(text: Option<&'a [u8]>) -> Annotations<'a> {
        text.and_then(Annotations::read_valid).unwrap_or_default()
    }

    fn read_valid(text: &'a [u8]) -> Option<Annotations<'a>> {
        let [source, action, root_source, root_schedule_id, task_kind, deployment] =
            tokens::members(
                text,
                [
                    "triggerSource",
                    "triggerAction",
                    "rootTriggerSource",
                    "rootScheduleId",
                    "taskKind",
                    "externalDeploymentId",
                ],
            )?;
        let optional = |raw: Option<&'a [u8]>| raw.map_or(Some(Cow::default()), strings::decode);
        strings::decode(action?)?;
        optional(root_schedule_id)?;
        optional(deployment)?;
        Some(Annotations {
            trigger_source: strings::decode(source?)?,
            root_trigger_source: strings::decode(root_source?)?,
            task_kind: optional(task_kind)?,
        })
    }
}

/// The deployment that a run waits for: only while it waits, and even if the other annotations are
/// not valid.
pub fn external_deployment_id<'a>(
    annotations: Option<&'a [u8]>,
    status_reason: Option<&[u8]>,
) -> Cow<'a, str> {
    if status_reason != Some(b"EXTERNAL_DEPLOYMENT_PENDING") {
        return Cow::default();
    }
    annotations
        .and_then(|text| tokens::members(text, ["externalDeploymentId"]))
        .and_then(|[id]| strings::decode(id?))
        .unwrap_or_default()
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdempotencyOptions<'a> {
    pub key: Cow<'a, str>,
    pub scope: Cow<'a, str>,
}

impl<'a> IdempotencyOptions<'a> {
    /// From the text of `idempotencyKeyOptions`. The source system does not check the two: a value
    /// that is not a string reaches ClickHouse as JSON, which puts its text into the String column.
    /// This does the same, without the white space that Postgres adds; null is the empty string.
    pub fn read(text: Option<&'a [u8]>) -> IdempotencyOptions<'a> {
        let [key, scope] =
            text.and_then(|text| tokens::members(text, ["key", "scope"])).unwrap_or_default();
        IdempotencyOptions { key: column_text(key), scope: column_text(scope) }
    }
}

fn column_text(raw: Option<&[u8]>) -> Cow<'_, str> {
    match raw {
        None | Some(b"null") => Cow::default(),
        Some(raw) => strings::decode(raw).unwrap_or_else(|| {
            let text = tokens::compact(raw, |_| false).unwrap_or_default();
            Cow::Owned(String::from_utf8(text).unwrap_or_default())
        }),
    }
}

/// The queue without what follows its first colon.
pub fn worker_queue(master_queue: &[u8]) -> &[u8] {
    master_queue.split(|&b| b == b':').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> [String; 3] {
        let read = Annotations::read(Some(text.as_bytes()));
        [read.trigger_source, read.root_trigger_source, read.task_kind].map(Cow::into_owned)
    }

    #[test]
    fn valid_annotations_are_read_with_their_escapes() {
        let text = r#"{"taskKind": "AGENT", "triggerAction": "trigger", "triggerSource": "s\u00e9\n",
            "rootTriggerSource": "\ud83d\ude00\ud800", "other": [1]}"#;
        assert_eq!(read(text), ["s\u{e9}\n", "\u{1f600}\u{fffd}", "AGENT"]);
        let least = r#"{"triggerAction":"","triggerSource":"api","rootTriggerSource":"sdk"}"#;
        assert_eq!(read(least), ["api", "sdk", ""]);
    }

    #[test]
    fn annotations_that_are_not_valid_as_a_whole_are_empty() {
        let valid = r#"{"triggerAction":"a","triggerSource":"b","rootTriggerSource":"c"}"#;
        assert_eq!(read(valid), ["b", "c", ""]);
        for broken in [
            valid.replace("triggerAction", "x"),
            valid.replace("\"a\"", "null"),
            valid.replace("\"b\"", "1"),
            valid.replace("\"c\"", "[\"c\"]"),
            valid.replace('}', ",\"taskKind\":null}"),
            valid.replace('}', ",\"rootScheduleId\":{}}"),
            valid.replace('}', ",\"externalDeploymentId\":1}"),
            format!("[{valid}]"),
            format!("\"{}\"", valid.replace('"', "\\\"")),
            valid.replace('}', ""),
            "null".into(),
            String::new(),
        ] {
            assert_eq!(read(&broken), ["", "", ""], "{broken}");
        }
        assert_eq!(Annotations::read(None), Annotations::default());
    }

    #[test]
    fn deployment_is_read_only_while_the_run_waits_for_it() {
        let id = |text: &'static str, reason: Option<&str>| {
            external_deployment_id(Some(text.as_bytes()), reason.map(str::as_bytes))
        };
        let pending = Some("EXTERNAL_DEPLOYMENT_PENDING");
        assert_eq!(id(r#"{"externalDeploymentId":"dep\t1","triggerSource":5}"#, pending), "dep\t1");
        assert_eq!(id(r#"{"externalDeploymentId":"dep"}"#, Some("OTHER")), "");
        assert_eq!(id(r#"{"externalDeploymentId":"dep"}"#, None), "");
        assert_eq!(id(r#"{"externalDeploymentId":7}"#, pending), "");
        assert_eq!(id("[]", pending), "");
        assert_eq!(external_deployment_id(None, Some(b"EXTERNAL_DEPLOYMENT_PENDING")), "");
    }

    #[test]
    fn idempotency_values_that_are_no_strings_keep_their_json_text() {
        let read = |text: &'static str| {
            let read = IdempotencyOptions::read(Some(text.as_bytes()));
            [read.key, read.scope].map(Cow::into_owned)
        };
        assert_eq!(read(r#"{"key": "a\"b", "scope": "run"}"#), ["a\"b", "run"]);
        assert_eq!(read(r#"{"key": ["a", 1], "scope": null}"#), [r#"["a",1]"#, ""]);
        assert_eq!(read(r#"{"key": 1.50, "scope": true}"#), ["1.50", "true"]);
        assert_eq!(read(r#"{"key": {"a": {}}}"#), [r#"{"a":{}}"#, ""]);
        assert_eq!(read(r#""key""#), ["", ""]);
        assert_eq!(IdempotencyOptions::read(None), IdempotencyOptions::default());
    }

    #[test]
    fn worker_queue_ends_before_the_first_colon() {
        for (master_queue, expected) in
            [("eu-1:prod:x", "eu-1"), ("eu-1", "eu-1"), (":x", ""), ("", "")]
        {
            assert_eq!(worker_queue(master_queue.as_bytes()), expected.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Annotations::read(Some(&bytes));
            let _ = IdempotencyOptions::read(Some(&bytes));
            let _ = external_deployment_id(Some(&bytes), Some(b"EXTERNAL_DEPLOYMENT_PENDING"));
            let _ = worker_queue(&bytes);
        }
    }
}
