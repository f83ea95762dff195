//! Quotes values for a statement, and reads the rows of an answer.

/// An identifier in ClickHouse's backticks.
pub fn quote_name(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

/// Any bytes as a string literal, in ASCII.
pub fn quote_bytes(bytes: &[u8]) -> String {
    let mut literal = String::with_capacity(bytes.len() + 2);
    literal.push('\'');
    for &byte in bytes {
        match byte {
            b'\'' | b'\\' => literal.extend(['\\', char::from(byte)]),
            0x20..=0x7e => literal.push(char::from(byte)),
            _ => literal.push_str(&format!("\\x{byte:02X}")),
        }
    }
    literal.push('\'');
    literal
}

/// Limits a system table to these tables of the database, whose names are in the column.
pub fn of_ours(database: &str, column: &str, tables: &[&str]) -> String {
    let names: Vec<String> = tables.iter().map(|name| quote_bytes(name.as_bytes())).collect();
    let database = quote_bytes(database.as_bytes());
    format!("database = {database} AND {column} IN ({})", names.join(", "))
}

/// One row of an answer; `None` is NULL.
pub type BytesRow = Vec<Option<Vec<u8>>>;

/// Rows of TabSeparated. `None` if the last line is cut or an escape is unknown.
pub fn parse_rows(answer: &[u8]) -> Option<Vec<BytesRow>> {
    let mut rows = Vec::new();
    each_row(answer, |row| {
        rows.push(row);
        Some(())
    })?;
    Some(rows)
}

/// The same one by one, for an answer of many rows; it ends where `take` has none.
pub fn each_row(answer: &[u8], mut take: impl FnMut(BytesRow) -> Option<()>) -> Option<()> {
    let Some(body) = answer.strip_suffix(b"\n") else {
        return answer.is_empty().then_some(());
    };
    body.split(|byte| *byte == b'\n').try_for_each(|line| {
        take(line.split(|byte| *byte == b'\t').map(parse_value).collect::<Option<_>>()?)
    })
}

fn parse_value(text: &[u8]) -> Option<Option<Vec<u8>>> {
    if text == b"\\N" {
        return Some(None);
    }
    let mut value = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        value.push(match byte {
            b'\\' => match bytes.next()? {
                b'b' => 0x08,
                b'f' => 0x0c,
                b'r' => b'\r',
                b'n' => b'\n',
                b't' => b'\t',
                b'0' => 0,
                literal @ (b'\\' | b'\'') => literal,
                _ => return None,
            },
            byte => byte,
        });
    }
    Some(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bytes_cannot_leave_their_quotes() {
        assert_eq!(quote_name("a`b\\c"), "`a\\`b\\\\c`");
        assert_eq!(quote_bytes(b"it's \\ \0\xff\n"), "'it\\'s \\\\ \\x00\\xFF\\x0A'");
    }

    #[test]
    fn rows_are_read_with_escapes_and_nulls() {
        let text = |value: &[u8]| Some(value.to_vec());
        assert_eq!(parse_rows(b""), Some(vec![]));
        assert_eq!(
            parse_rows(b"a\\tb\t\\N\n\\\\N\t\xff\n"),
            Some(vec![vec![text(b"a\tb"), None], vec![text(b"\\N"), text(b"\xff")]])
        );
        assert_eq!(parse_rows(b"\n"), Some(vec![vec![text(b"")]]));
    }

    #[test]
    fn a_cut_answer_is_no_answer() {
        assert_eq!(parse_rows(b"a\tb"), None);
        assert_eq!(parse_rows(b"a\\\n"), None);
        assert_eq!(parse_rows(b"a\\q\n"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_answer_panics_us(bytes: Vec<u8>) {
            let _ = parse_rows(&bytes);
        }
    }
}
