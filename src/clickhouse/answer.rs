//! How to read an answer over HTTP: whether ClickHouse accepted or refused, or something in between
//! answered.
//!
//! Status 200 alone means nothing: a proxy in maintenance mode sends it with its own page. Every
//! server since 20.x puts the query id into the headers of each answer, so an answer without it is
//! not from ClickHouse. Pure, so that tests can try each kind of answer.

use std::fmt;

use bytes::Bytes;

use super::refusal::Refusal;

/// The head of an answer, as far as it matters, and its body.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    /// `X-ClickHouse-Query-Id`
    pub query_id: Option<String>,
    /// `X-ClickHouse-Exception-Code`
    pub exception_code: Option<String>,
    /// `X-ClickHouse-Exception-Tag`: how an exception behind the first rows is marked.
    pub exception_tag: Option<String>,
    /// The head says how long the body is, or that it comes in chunks: that it is whole is known.
    pub has_end: bool,
    /// It came encoded, which was not asked for.
    pub is_encoded: bool,
    pub body: Bytes,
}

/// The kind of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// ClickHouse has done it. An INSERT returns no bytes.
    Done(Bytes),
    Refused(Refusal),
    /// Not ClickHouse, or not for certain: what became of the statement is not known.
    Foreign(Foreign),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign {
    pub status: u16,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Status,
    NoQueryId,
    OtherQuery,
    NoEnd,
    Encoded,
    Page { bytes: usize },
}

/// Ids of other clients may be put there by a proxy; one of ours belongs to one statement.
pub fn read(
    answer: Answer,
    query_id: &str,
    ours_begin_with: &str,
    insert_of: Option<&[&str]>,
) -> Said {
    let columns = insert_of.unwrap_or_default();
    let foreign = |what| Said::Foreign(Foreign { status: answer.status, what });
    if answer.status != 200 || answer.exception_code.is_some() {
        let text = String::from_utf8_lossy(&answer.body);
        // Where the text was lost, the head still has the code.
        let code = answer.exception_code.as_deref().map(|code| format!("Code: {code}"));
        return Refusal::read(&text, columns)
            .or_else(|| Refusal::read(&code?, columns))
            .map_or_else(|| foreign(What::Status), Said::Refused);
    }
    match answer.query_id.as_deref() {
        None | Some("") => return foreign(What::NoQueryId),
        Some(id) if id != query_id && id.starts_with(ours_begin_with) => {
            return foreign(What::OtherQuery);
        }
        Some(_) => {}
    }
    if answer.is_encoded {
        return foreign(What::Encoded);
    }
    if !answer.has_end {
        return foreign(What::NoEnd);
    }
    let refusal = match insert_of {
        Some(_) if answer.body.is_empty() => return Said::Done(answer.body),
        Some(_) => exception_in(&answer.body),
        None => match answer.exception_tag.as_deref().and_then(|tag| tagged(&answer.body, tag)) {
            None => return Said::Done(answer.body),
            Some(text) => Some(text),
        },
    };
    let refusal = refusal.and_then(|text| Refusal::read(&text, columns));
    refusal.map_or_else(|| foreign(What::Page { bytes: answer.body.len() }), Said::Refused)
}

/// An exception that came when the status had been sent.
fn exception_in(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    text.find("Code: ").map(|at| text[at..].to_owned())
}

/// The same behind rows, which may hold any text: only the tag of this answer makes it one.
fn tagged(body: &[u8], tag: &str) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let mark = format!("__exception__\r\n{tag}\r\n");
    if tag.is_empty() || !text.trim_end().ends_with("__exception__") {
        return None;
    }
    text.rfind(&mark).map(|at| text[at + mark.len()..].to_owned())
}

impl Foreign {
    /// Whether less at a time may be taken: too large, or too slow.
    pub fn is_of_size(self) -> bool {
        matches!(self.status, 408 | 413 | 504)
    }

    /// Whether it was too slow for a proxy.
    pub fn is_of_time(self) -> bool {
        matches!(self.status, 408 | 504)
    }

    /// It shows nothing of the text, which may hold rows.
    pub fn cause(self) -> String {
        let status = self.status;
        match self.what {
            What::Status => {
                format!("the answer has status {status} and does not come from ClickHouse")
            }
            What::NoQueryId => {
                format!("the answer has status {status}, but no `X-ClickHouse-Query-Id`")
            }
            What::OtherQuery => "the answer belongs to another query".to_owned(),
            What::NoEnd => "the answer does not say where it ends".to_owned(),
            What::Encoded => {
                "the answer is encoded, although walhouse did not ask for that".to_owned()
            }
            What::Page { bytes } => {
                format!("the answer has status {status}, but {bytes} bytes that are not an answer")
            }
        }
    }

    pub fn hint(self) -> &'static str {
        match self.status {
            413 => {
                "A proxy in front of ClickHouse rejects requests of that size: raise its limit \
                 (`client_max_body_size` of nginx). Meanwhile walhouse sends less at a time."
            }
            408 | 504 => {
                "A proxy in front of ClickHouse timed out: raise its timeout (`proxy_read_timeout` \
                 of nginx). Meanwhile walhouse sends less at a time."
            }
            300..=399 => {
                "Set *_REPLICATION_CLICKHOUSE_URL to the address that it redirects to: walhouse \
                 does not follow redirects."
            }
            401 | 403 | 407 => {
                "A proxy in front of ClickHouse refuses the request: see its rules, or name \
                 ClickHouse itself."
            }
            _ => {
                "Find out what answers at *_REPLICATION_CLICKHOUSE_URL: a proxy in maintenance, or \
                 one that strips ClickHouse's headers."
            }
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause())
    }
}

impl std::error::Error for Foreign {}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "walhouse-1";

    fn yes() -> Answer {
        Answer { status: 200, query_id: Some(ID.to_owned()), has_end: true, ..Answer::default() }
    }

    fn with_body(body: &str) -> Answer {
        Answer { body: Bytes::copy_from_slice(body.as_bytes()), ..yes() }
    }

    fn insert(answer: Answer) -> Said {
        read(answer, ID, "walhouse-", Some(&["k"]))
    }

    fn query(answer: Answer) -> Said {
        read(answer, ID, "walhouse-", None)
    }

    const REFUSED: &str = "Code: 241. DB::Exception: too much. (MEMORY_LIMIT_EXCEEDED)";

    #[test]
    fn an_empty_answer_under_the_id_of_the_query_is_a_yes() {
        assert_eq!(insert(yes()), Said::Done(Bytes::new()));
        assert_eq!(query(with_body("1\n")), Said::Done(Bytes::from("1\n")));
        // Some proxies number queries themselves.
        let renamed = Answer { query_id: Some("17A2".to_owned()), ..yes() };
        assert_eq!(insert(renamed), Said::Done(Bytes::new()));
    }

    #[test]
    fn what_clickhouse_did_not_say_for_certain_is_no_yes() {
        let page = "<html>hunter2: back soon</html>";
        for (kind, answer) in [
            ("a page", Answer { query_id: None, ..with_body(page) }),
            ("an empty page", Answer { query_id: None, ..yes() }),
            ("an empty id", Answer { query_id: Some(String::new()), ..yes() }),
            ("the answer to another one", Answer { query_id: Some("walhouse-2".into()), ..yes() }),
            ("no content", Answer { status: 204, ..yes() }),
            ("created", Answer { status: 201, ..yes() }),
            ("partial content", Answer { status: 206, ..yes() }),
            ("a redirect", Answer { status: 302, ..yes() }),
            ("cut short unseen", Answer { has_end: false, ..yes() }),
            ("encoded", Answer { is_encoded: true, ..yes() }),
        ] {
            for said in [insert(answer.clone()), query(answer.clone())] {
                let Said::Foreign(foreign) = said else { panic!("{kind}: {said:?}") };
                assert!(!foreign.cause().contains("hunter2"), "{kind}");
                assert!(!foreign.hint().is_empty(), "{kind}");
            }
        }
        // Rows are what a query answers; an INSERT answers nothing.
        let said = insert(with_body(page));
        assert!(matches!(said, Said::Foreign(_)), "{said:?}");
    }

    #[test]
    fn an_exception_is_one_whatever_the_status_is() {
        let code = |said| match said {
            Said::Refused(refusal) => refusal.code,
            other => panic!("{other:?}"),
        };
        let header = Answer { exception_code: Some("241".to_owned()), ..yes() };
        assert_eq!(code(insert(header.clone())), 241);
        assert_eq!(code(query(header)), 241);
        for status in [200, 500, 502] {
            assert_eq!(code(insert(Answer { status, ..with_body(REFUSED) })), 241);
        }
        let late = format!("__exception__\r\nabcd\r\n{REFUSED}\n59 abcd\r\n__exception__\r\n");
        assert_eq!(code(insert(with_body(&late))), 241);
        let tagged = |tag: &str| Answer {
            exception_tag: Some(tag.to_owned()),
            ..with_body(&format!("a row\n\r\n{late}"))
        };
        assert_eq!(code(query(tagged("abcd"))), 241);
        // A row may hold any text.
        assert!(matches!(query(tagged("efgh")), Said::Done(_)));
        assert!(matches!(query(with_body(&late)), Said::Done(_)));
    }

    #[test]
    fn the_status_is_told_and_says_whether_size_is_the_fault() {
        for (status, of_size) in [(413, true), (504, true), (502, false), (403, false)] {
            let Said::Foreign(foreign) = insert(Answer { status, ..Answer::default() }) else {
                panic!("{status}")
            };
            assert!(foreign.cause().contains(&status.to_string()), "{}", foreign.cause());
            assert_eq!(foreign.is_of_size(), of_size, "{status}");
        }
    }
}
