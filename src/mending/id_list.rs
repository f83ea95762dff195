//! The list of ids that an operator gives: one a line, as editors of all kinds write them.

use std::io::BufRead;

use crate::error::{Error, ErrorKind, Result};

const DOING: &str = "read the list of ids";
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

pub struct IdList<R> {
    lines: R,
    count: u64,
}

impl<R: BufRead> IdList<R> {
    pub fn new(lines: R) -> IdList<R> {
        IdList { lines, count: 0 }
    }

    /// The next line without what surrounds its id, which may leave nothing; `None` at the end.
    pub fn next(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        let read = self.lines.read_until(b'\n', &mut line);
        if read.map_err(|cause| Error::new(ErrorKind::Setup, DOING).because(cause))? == 0 {
            return Ok(None);
        }
        self.count += 1;
        let is_first = self.count == 1;
        let bytes = match line.strip_prefix(BYTE_ORDER_MARK) {
            Some(rest) if is_first => rest,
            _ => &line,
        };
        let is_utf16 =
            is_first && (bytes.starts_with(b"\xFF\xFE") || bytes.starts_with(b"\xFE\xFF"));
        match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => Ok(Some(text.trim().to_owned())),
            _ => Err(Error::new(ErrorKind::Setup, DOING)
                .because(match is_utf16 {
                    true => "it is UTF-16".to_owned(),
                    false => format!("line {} is not UTF-8 text", self.count),
                })
                .hint("Save it as UTF-8, one id per line: `iconv -f UTF-16 -t UTF-8`.")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> std::result::Result<Vec<String>, String> {
        let mut list = IdList::new(bytes);
        let mut ids = Vec::new();
        loop {
            match list.next() {
                Ok(Some(id)) => ids.push(id),
                Ok(None) => return Ok(ids),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    #[test]
    fn every_editor_writes_the_same_ids() {
        for bytes in [
            &b"a\nb\n"[..],
            b"a\nb",
            b"a\r\nb\r\n",
            b"\xEF\xBB\xBFa\nb\n",
            b"\xEF\xBB\xBFa\r\nb",
            b" a \n\tb\t\n",
        ] {
            assert_eq!(read(bytes).expect("it is text"), ["a", "b"], "{bytes:?}");
        }
        assert_eq!(read(b"\na\n\n \nb\n\n").expect("it is text"), ["", "a", "", "", "b", ""]);
        assert_eq!(read(b"\xEF\xBB\xBF").expect("it is text"), [""]);
        assert_eq!(read(b"").expect("it is text"), [""; 0]);
    }

    #[test]
    fn what_is_no_utf8_is_refused_and_no_id_missed() {
        for bytes in [&b"\xFF\xFEa\0\n\0"[..], b"\xFE\xFF\0a\0\n"] {
            assert_eq!(read(bytes), Err("read the list of ids: it is UTF-16".to_owned()));
        }
        for bytes in [&b"a\n\xE9\n"[..], b"a\nb\0\n"] {
            assert_eq!(read(bytes), Err("read the list of ids: line 2 is not UTF-8 text".into()));
        }
        assert!(read(b"a\0\n\0b\0\n\0").is_err(), "UTF-16 without a mark");
    }
}
