//! tsvector and tsquery: their binary forms as Postgres prints them.

use super::network::put;
use crate::wal::wire::{DecodeError, Wire};

const TSQUERY: DecodeError = DecodeError::BadValue { context: "tsquery" };

fn put_lexeme(lexeme: &[u8], out: &mut Vec<u8>) {
    out.push(b'\'');
    for &byte in lexeme {
        if matches!(byte, b'\'' | b'\\') {
            out.push(byte);
        }
        out.push(byte);
    }
    out.push(b'\'');
}

fn take_text<'a>(wire: &mut Wire<'a>) -> Result<&'a [u8], DecodeError> {
    let end = memchr::memchr(0, wire.rest()).ok_or(TSQUERY)?;
    let text = wire.take(end, "lexeme")?;
    wire.take_u8("lexeme")?;
    Ok(text)
}

/// `'a':1A,2 'b'`.
pub fn print_tsvector(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut wire = Wire::new(bytes);
    let count = wire.take_u32("tsvector")?;
    for at in 0..count {
        if at != 0 {
            out.push(b' ');
        }
        put_lexeme(take_text(&mut wire)?, out);
        let positions = wire.take_u16("tsvector")?;
        for at in 0..positions {
            let position = wire.take_u16("tsvector")?;
            let separator = if at == 0 { ':' } else { ',' };
            let weight = ["", "C", "B", "A"][usize::from(position >> 14)];
            put(out, format_args!("{separator}{}{weight}", position & 0x3FFF));
        }
    }
    wire.end("tsvector")
}

/// A part of a query that is printed already.
struct Part {
    text: Vec<u8>,
    priority: u8,
    is_phrase: bool,
}

impl Part {
    fn in_parentheses(mut self, are_needed: bool) -> Part {
        if are_needed {
            self.text.splice(0..0, *b"( ");
            self.text.extend_from_slice(b" )");
        }
        self
    }
}

const LEXEME: u8 = 5;

enum Item<'a> {
    Lexeme { weight: u8, prefix: bool, text: &'a [u8] },
    Operator { operator: u8, distance: u16 },
}

/// As `infix` in `tsquery.c`: an operator comes before its operands, the right one first. Read from
/// the end, each finds its operands printed, however deep it lies.
pub fn print_tsquery(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut wire = Wire::new(bytes);
    let count = wire.take_u32("tsquery")?;
    let mut items = Vec::new();
    for _ in 0..count {
        items.push(match wire.take_u8("tsquery")? {
            1 => {
                let (weight, prefix) = (wire.take_u8("tsquery")?, wire.take_u8("tsquery")? != 0);
                Item::Lexeme { weight, prefix, text: take_text(&mut wire)? }
            }
            2 => {
                let operator = wire.take_u8("tsquery")?;
                let distance = if operator == 4 { wire.take_u16("tsquery")? } else { 0 };
                Item::Operator { operator, distance }
            }
            _ => return Err(TSQUERY),
        });
    }
    wire.end("tsquery")?;
    let mut parts: Vec<Part> = Vec::new();
    for item in items.iter().rev() {
        let part = match item {
            Item::Lexeme { weight, prefix, text } => lexeme(*weight, *prefix, text),
            Item::Operator { operator: 1, .. } => {
                let operand = parts.pop().ok_or(TSQUERY)?;
                let needs = operand.priority < 4;
                let mut text = vec![b'!'];
                text.extend(operand.in_parentheses(needs).text);
                Part { text, priority: 4, is_phrase: false }
            }
            Item::Operator { operator, distance } => {
                let right = parts.pop().ok_or(TSQUERY)?;
                let left = parts.pop().ok_or(TSQUERY)?;
                binary(*operator, *distance, left, right)?
            }
        };
        parts.push(part);
    }
    match parts.as_slice() {
        [] => {}
        [part] => out.extend_from_slice(&part.text),
        _ => return Err(TSQUERY),
    }
    Ok(())
}

fn lexeme(weight: u8, prefix: bool, text: &[u8]) -> Part {
    let mut printed = Vec::new();
    put_lexeme(text, &mut printed);
    if weight != 0 || prefix {
        printed.push(b':');
    }
    if prefix {
        printed.push(b'*');
    }
    for (bit, letter) in [(8, b'A'), (4, b'B'), (2, b'C'), (1, b'D')] {
        if weight & bit != 0 {
            printed.push(letter);
        }
    }
    Part { text: printed, priority: LEXEME, is_phrase: false }
}

fn binary(operator: u8, distance: u16, left: Part, right: Part) -> Result<Part, DecodeError> {
    let priority = match operator {
        2 => 2,
        3 => 1,
        4 => 3,
        _ => return Err(TSQUERY),
    };
    let is_phrase = operator == 4;
    // The order of phrases matters, so one on the right of another keeps its parentheses.
    let right_needs = right.priority < priority || is_phrase && right.is_phrase;
    let left_needs = left.priority < priority;
    let mut text = left.in_parentheses(left_needs).text;
    match (operator, distance) {
        (2, _) => text.extend_from_slice(b" & "),
        (3, _) => text.extend_from_slice(b" | "),
        (_, 1) => text.extend_from_slice(b" <-> "),
        (_, distance) => put(&mut text, format_args!(" <{distance}> ")),
    }
    text.extend(right.in_parentheses(right_needs).text);
    Ok(Part { text, priority, is_phrase })
}
