//! A topic as lines for a terminal.

use super::blocks::{Line, ManualBlock, Style};

/// Wider lines are hard to read.
const COLUMNS_MAX: usize = 90;
const INDENT: usize = 4;

pub fn render(blocks: &[ManualBlock], columns: usize, is_terminal: bool) -> String {
    let mut page = Page { out: String::new(), columns: columns.min(COLUMNS_MAX), is_terminal };
    let mut was_item = false;
    for block in blocks {
        let is_item = matches!(block, ManualBlock::Item { .. });
        // Items of a list stand close together.
        if !(was_item && is_item) {
            page.out.push('\n');
        }
        page.add(block);
        was_item = is_item;
    }
    page.out.trim_start().to_owned()
}

struct Page {
    out: String,
    columns: usize,
    is_terminal: bool,
}

impl Page {
    fn add(&mut self, block: &ManualBlock) {
        match block {
            ManualBlock::Heading(level, line) => {
                let text: String = line.iter().map(|span| span.text.as_str()).collect();
                let text = if *level == 1 { text.to_uppercase() } else { text };
                let text = self.styled(&text, Style::Strong);
                self.out.push_str(&format!("{text}\n"));
            }
            ManualBlock::Paragraph { depth, line } => {
                let indent = " ".repeat(depth * INDENT);
                self.wrap(line, &indent, &indent);
            }
            ManualBlock::Item { depth, bullet, line } => {
                let first = format!("{}{bullet:<3} ", " ".repeat(depth * INDENT));
                self.wrap(line, &first, &" ".repeat((depth + 1) * INDENT));
            }
            ManualBlock::Code { depth, text } => {
                for line in text.lines() {
                    let indent = " ".repeat((depth + 1) * INDENT);
                    self.out.push_str(format!("{indent}{line}").trim_end());
                    self.out.push('\n');
                }
            }
            ManualBlock::Table { head, rows } => self.table(head, rows),
        }
    }

    /// As columns if that fits, otherwise each row as a term with its description.
    fn table(&mut self, head: &[Line], rows: &[Vec<Line>]) {
        let width = |line: &Line| line.iter().map(|span| width_of(&span.text)).sum::<usize>();
        let widths: Vec<usize> = (0..head.len())
            .map(|at| {
                let cells = rows.iter().filter_map(|row| row.get(at));
                cells.chain([&head[at]]).map(width).max().unwrap_or_default()
            })
            .collect();
        if widths.iter().sum::<usize>() + 2 * widths.len() <= self.columns {
            let has_head = head.iter().any(|cell| !cell.is_empty());
            let heads = has_head.then_some(head).into_iter();
            for (number, row) in heads.chain(rows.iter().map(Vec::as_slice)).enumerate() {
                let mut line = String::new();
                for (cell, width_max) in row.iter().zip(&widths) {
                    let is_head = has_head && number == 0;
                    line.push_str(&self.line(cell, is_head));
                    line.push_str(&" ".repeat(width_max - width(cell) + 2));
                }
                self.out.push_str(line.trim_end());
                self.out.push('\n');
            }
            return;
        }
        let indent = " ".repeat(INDENT);
        for (number, row) in rows.iter().enumerate() {
            if 0 < number {
                self.out.push('\n');
            }
            let Some((term, rest)) = row.split_first() else { continue };
            self.wrap(term, "", "");
            for (cell, title) in rest.iter().zip(&head[1..]).filter(|(cell, _)| !cell.is_empty()) {
                let title: String = title.iter().map(|span| span.text.as_str()).collect();
                let first = match title.is_empty() || rest.len() == 1 {
                    true => indent.clone(),
                    false => format!("{indent}{title}: "),
                };
                self.wrap(cell, &first, &indent);
            }
        }
    }

    fn line(&self, line: &Line, is_head: bool) -> String {
        let spans = line.iter().map(|span| match is_head {
            true => self.styled(&span.text, Style::Strong),
            false => self.styled(&span.text, span.style),
        });
        spans.collect()
    }

    fn wrap(&mut self, line: &Line, first: &str, others: &str) {
        // Words with their style; those that touch, such as `code`, are one.
        let mut words: Vec<(String, usize)> = Vec::new();
        let mut joins = false;
        for span in line {
            for (at, word) in span.text.split(' ').enumerate() {
                joins &= at == 0;
                if !word.is_empty() {
                    let (styled, width) = (self.styled(word, span.style), width_of(word));
                    match words.last_mut().filter(|_| joins) {
                        Some(last) => *last = (format!("{}{styled}", last.0), last.1 + width),
                        None => words.push((styled, width)),
                    }
                }
                joins = !word.is_empty();
            }
        }
        let (mut column, mut is_first) = (width_of(first), true);
        self.out.push_str(first);
        for (word, width) in words {
            if !is_first && self.columns < column + 1 + width {
                self.out.push_str(&format!("\n{others}"));
                (column, is_first) = (width_of(others), true);
            }
            if !is_first {
                self.out.push(' ');
                column += 1;
            }
            self.out.push_str(&word);
            (column, is_first) = (column + width, false);
        }
        self.out.push('\n');
    }

    fn styled(&self, text: &str, style: Style) -> String {
        let code = match style {
            Style::Plain => return text.to_owned(),
            Style::Strong | Style::Code => "1",
            Style::Emphasis => "4",
        };
        match self.is_terminal {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// In columns: what the manual is written in takes one for each character.
fn width_of(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::manual::blocks::parse;

    #[test]
    fn paragraphs_items_and_code_are_laid_out() {
        let text = "# A\n\nOne two three four.\n\n- item one is long\n- two\n\n```\n$ cmd\n```\n";
        let expected =
            "A\n\nOne two three\nfour.\n\n-   item one is\n    long\n-   two\n\n    $ cmd\n";
        assert_eq!(render(&parse(text), 15, false), expected);
    }

    #[test]
    fn tables_are_aligned_where_they_fit() {
        let text = "| a | long head |\n|---|---|\n| `x` | y |\n";
        assert_eq!(render(&parse(text), 40, false), "a  long head\nx  y\n");
        assert_eq!(render(&parse(text), 10, false), "x\n    y\n");
        let text = "| a | b | c |\n|---|---|---|\n| `x` | one two | three |\n";
        assert_eq!(render(&parse(text), 12, false), "x\n    b: one\n    two\n    c: three\n");
    }

    #[test]
    fn words_that_touch_stay_together() {
        let text = "see (`code`), [x](a.md).\n";
        assert_eq!(render(&parse(text), 12, false), "see (code),\nx (walhouse\nhelp a).\n");
        assert_eq!(render(&parse("a **b** c"), 80, true), "a \u{1b}[1mb\u{1b}[0m c\n");
    }
}
