//! How far a repair has come, as it is recorded: in words that an operator can read.

use std::fmt;
use std::str::FromStr;

use crate::clickhouse::client::quote_bytes;
use crate::clickhouse::slices::BoundValue;
use crate::machines::repair::Count;

/// The finished work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepairCursor {
    /// Into tables that were empty; `None` before the first row.
    Copy(Option<Vec<PartDone>>),
    Read(Vec<PartDone>),
    /// All up to this place was counted, for each target table.
    Count {
        counts: Vec<Count>,
        done: Option<Pruned>,
    },
    /// All up to this place.
    Delete(Option<Pruned>),
}

/// So many blocks of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartDone {
    pub oid: u32,
    pub filenode: u32,
    pub blocks: u32,
}

/// The last partition that something is done of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// Index of the target table.
    pub target: usize,
    pub partition_id: String,
    /// The last key that is done, with the names of its columns; `None`: all of the partition is.
    pub up_to: Option<Vec<(String, BoundValue)>>,
}

impl RepairCursor {
    pub fn start() -> RepairCursor {
        RepairCursor::Read(Vec::new())
    }

    /// Nothing is counted.
    pub fn start_of_count() -> RepairCursor {
        RepairCursor::Count { counts: Vec::new(), done: None }
    }

    /// The pass's name.
    pub fn pass(&self) -> &'static str {
        match self {
            RepairCursor::Copy(_) => "copy",
            RepairCursor::Read(_) => "read",
            RepairCursor::Count { .. } => "count",
            RepairCursor::Delete(_) => "delete",
        }
    }
}

/// `copy`, `copy begun oid:filenode:blocks ...`, `read oid:filenode:blocks ...`,
/// `count gone/alive,... target:partition column=value ...`, or
/// `delete target:partition column=value ...`.
impl fmt::Display for RepairCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.pass())?;
        match self {
            RepairCursor::Copy(None) => Ok(()),
            RepairCursor::Copy(Some(parts)) => {
                f.write_str(" begun")?;
                write_parts(f, parts)
            }
            RepairCursor::Read(parts) => write_parts(f, parts),
            RepairCursor::Count { counts, done } => {
                for (at, Count { alive, gone }) in counts.iter().enumerate() {
                    write!(f, "{}{gone}/{alive}", if at == 0 { ' ' } else { ',' })?;
                }
                write_place(f, done.as_ref())
            }
            RepairCursor::Delete(done) => write_place(f, done.as_ref()),
        }
    }
}

fn write_parts(f: &mut fmt::Formatter<'_>, parts: &[PartDone]) -> fmt::Result {
    parts
        .iter()
        .try_for_each(|PartDone { oid, filenode, blocks }| write!(f, " {oid}:{filenode}:{blocks}"))
}

fn write_place(f: &mut fmt::Formatter<'_>, done: Option<&Pruned>) -> fmt::Result {
    let Some(Pruned { target, partition_id, up_to }) = done else { return Ok(()) };
    write!(f, " {target}:{partition_id}")?;
    up_to.iter().flatten().try_for_each(|(name, value)| match value {
        BoundValue::Text(text) => write!(f, " {name}={}", quote_bytes(text)),
        BoundValue::Digits(digits) => write!(f, " {name}={digits}"),
    })
}

/// The text is not one of ours.
#[derive(Debug, PartialEq, Eq)]
pub struct PositionError;

impl FromStr for RepairCursor {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<RepairCursor, PositionError> {
        // Versions before 0.2 called that pass so.
        let renamed = text.strip_prefix("bury").map(|rest| format!("delete{rest}"));
        let text = renamed.as_deref().unwrap_or(text);
        let position = parse(text).ok_or(PositionError)?;
        // Each cursor has exactly one text form, so one that does not print the same was damaged.
        (position.to_string() == text).then_some(position).ok_or(PositionError)
    }
}

fn parse(text: &str) -> Option<RepairCursor> {
    let (pass, rest) = text.split_once(' ').unwrap_or((text, ""));
    match pass {
        "copy" if rest.is_empty() => Some(RepairCursor::Copy(None)),
        "copy" => {
            let parts = parse_parts(rest.strip_prefix("begun")?)?;
            Some(RepairCursor::Copy(Some(parts)))
        }
        "read" => parse_parts(rest).map(RepairCursor::Read),
        "count" if rest.is_empty() => Some(RepairCursor::start_of_count()),
        "count" => {
            let (counts, place) = rest.split_once(' ').unwrap_or((rest, ""));
            let count = |text: &str| {
                let (gone, alive) = text.split_once('/')?;
                Some(Count { alive: alive.parse().ok()?, gone: gone.parse().ok()? })
            };
            let counts = counts.split(',').map(count).collect::<Option<_>>()?;
            Some(RepairCursor::Count { counts, done: parse_place(place)? })
        }
        "delete" => parse_place(rest).map(RepairCursor::Delete),
        _ => None,
    }
}

fn parse_parts(text: &str) -> Option<Vec<PartDone>> {
    let part = |text: &str| {
        let mut numbers = text.split(':').map(|number| number.parse().ok());
        let (oid, filenode, blocks) = (numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(PartDone { oid, filenode, blocks })
    };
    text.split_whitespace().map(part).collect()
}

fn parse_place(text: &str) -> Option<Option<Pruned>> {
    if text.is_empty() {
        return Some(None);
    }
    let (place, up_to) = match text.split_once(' ') {
        Some((place, up_to)) => (place, Some(named_values(up_to)?)),
        None => (text, None),
    };
    let (target, partition_id) = place.split_once(':')?;
    let (target, partition_id) = (target.parse().ok()?, partition_id.to_owned());
    (!partition_id.is_empty()).then_some(Some(Pruned { target, partition_id, up_to }))
}

fn named_values(text: &str) -> Option<Vec<(String, BoundValue)>> {
    let (mut values, mut rest) = (Vec::new(), text);
    loop {
        let (name, value) = rest.split_once('=')?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(is_name) {
            return None;
        }
        let (value, behind) = match value.strip_prefix('\'') {
            Some(quoted) => unquoted(quoted).map(|(text, rest)| (BoundValue::Text(text), rest))?,
            None => {
                let (digits, rest) = value.split_at(value.find(' ').unwrap_or(value.len()));
                let unsigned = digits.strip_prefix('-').unwrap_or(digits);
                let is_number =
                    !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit());
                is_number.then(|| (BoundValue::Digits(digits.to_owned()), rest))?
            }
        };
        values.push((name.to_owned(), value));
        if behind.is_empty() {
            return Some(values);
        }
        rest = behind.strip_prefix(' ')?;
    }
}

/// The bytes up to the closing quote, and the rest.
fn unquoted(text: &str) -> Option<(Vec<u8>, &str)> {
    let (mut value, mut at) = (Vec::new(), 0);
    loop {
        let byte = match *text.as_bytes().get(at)? {
            b'\'' => return Some((value, &text[at + 1..])),
            b'\\' if text.as_bytes().get(at + 1) == Some(&b'x') => {
                let digits = text.get(at + 2..at + 4)?;
                at += 3;
                u8::from_str_radix(digits, 16).ok()?
            }
            b'\\' => {
                at += 1;
                *text.as_bytes().get(at)?
            }
            byte => byte,
        };
        value.push(byte);
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pruned(up_to: Option<&[(&str, &[u8])]>) -> RepairCursor {
        let text =
            |(name, text): &(&str, &[u8])| ((*name).to_owned(), BoundValue::Text(text.to_vec()));
        let up_to = up_to.map(|values| values.iter().map(text).collect());
        RepairCursor::Delete(Some(Pruned { target: 1, partition_id: "202611".to_owned(), up_to }))
    }

    #[test]
    fn a_position_is_read_as_it_was_written() {
        let counts = vec![Count { alive: 14, gone: 0 }, Count { alive: 14, gone: 7 }];
        let place = |partition_id: &str| {
            Some(Pruned { target: 1, partition_id: partition_id.to_owned(), up_to: None })
        };
        let part = |oid| PartDone { oid, filenode: oid + 1, blocks: 7 };
        for (position, text) in [
            (RepairCursor::Copy(None), "copy"),
            (RepairCursor::Copy(Some(vec![])), "copy begun"),
            (RepairCursor::Copy(Some(vec![part(1), part(4)])), "copy begun 1:2:7 4:5:7"),
            (RepairCursor::start(), "read"),
            (RepairCursor::Read(vec![part(1), part(4)]), "read 1:2:7 4:5:7"),
            (RepairCursor::Delete(None), "delete"),
            (RepairCursor::start_of_count(), "count"),
            (RepairCursor::Count { counts: counts.clone(), done: None }, "count 0/14,7/14"),
            (RepairCursor::Count { counts, done: place("202611") }, "count 0/14,7/14 1:202611"),
            (pruned(None), "delete 1:202611"),
            (
                pruned(Some(&[("organization_id", b"it's \\x \n\xff="), ("run_id", b"")])),
                "delete 1:202611 organization_id='it\\'s \\\\x \\x0A\\xFF=' run_id=''",
            ),
        ] {
            assert_eq!(position.to_string(), text);
            assert_eq!(text.parse(), Ok(position));
        }
    }

    #[test]
    fn the_words_of_older_versions_are_read() {
        assert_eq!("bury".parse(), Ok(RepairCursor::Delete(None)));
        assert_eq!("bury 1:202611".parse(), Ok(pruned(None)));
        assert_eq!("bury 1:".parse::<RepairCursor>(), Err(PositionError));
    }

    #[test]
    fn a_key_of_any_bytes_is_read_as_it_was_written() {
        let all: Vec<u8> = (0..=255).collect();
        for ticks in [i64::MIN, -5, 0, i64::MAX] {
            let mut position = pruned(Some(&[("a", &all), ("b", b"' c='"), ("c_1", b"\\")]));
            let RepairCursor::Delete(Some(Pruned { up_to: Some(values), .. })) = &mut position
            else {
                panic!("it has a key")
            };
            values.insert(1, ("created_at".to_owned(), BoundValue::Digits(ticks.to_string())));
            assert_eq!(position.to_string().parse(), Ok(position));
        }
    }

    #[test]
    fn a_text_of_another_shape_is_refused() {
        for text in [
            "",
            "done",
            "copy ",
            "copy 1:2:3",
            "copy begun ",
            "copy begun1:2:3",
            "copy begun 1:2",
            "read 1:2",
            "read 1:2:3:4",
            "read x:1:2",
            "read  1:2:3",
            "read +1:2:3",
            "delete ",
            // Written by a version without a count pass.
            "prune",
            "prune 1:202611",
            "count ",
            "count 1",
            "count 1/",
            "count 1/2,",
            "count 1/2 ",
            "count 01/2",
            "count 1:202611",
            "count -1/2",
            "delete 1",
            "delete 1:",
            "delete a:b",
            "delete 01:202611",
            "delete 1:202611 ",
            "delete 1:202611 id",
            "delete 1:202611 id=",
            "delete 1:202611 =1",
            "delete 1:202611 id=1x",
            "delete 1:202611 id=+1",
            "delete 1:202611 id='",
            "delete 1:202611 id='a",
            "delete 1:202611 id='a'b=1",
            "delete 1:202611 id='a' ",
            "delete 1:202611 id='a'  b=1",
            "delete 1:202611 id='\\n'",
            "delete 1:202611 id='\\",
            "delete 1:202611 id='\\x4'",
            "delete 1:202611 id='\\x41'",
            "delete 1:202611 id='\\xff'",
            "delete 1:202611 id='\u{e9}'",
            "delete 1:202611 id='\\\u{e9}'",
            "delete 1:202611 i-d='a'",
        ] {
            assert_eq!(text.parse::<RepairCursor>(), Err(PositionError), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_us(text in "((delete|count 1/2) 1:2 a=)?['\\\\x0-9a-fA= \u{e9}]*") {
            let _ = text.parse::<RepairCursor>();
        }
    }
}
