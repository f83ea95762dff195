//! Markdown as a sequence of blocks, for a terminal and for a man page alike.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    Code,
    Strong,
    Emphasis,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub text: String,
    pub style: Style,
}

pub type Line = Vec<Span>;

#[derive(Debug, PartialEq, Eq)]
pub enum ManualBlock {
    /// From 1 on.
    Heading(u8, Line),
    Paragraph {
        depth: usize,
        line: Line,
    },
    /// The first paragraph of an item of a list.
    Item {
        depth: usize,
        bullet: String,
        line: Line,
    },
    Code {
        depth: usize,
        text: String,
    },
    Table {
        head: Vec<Line>,
        rows: Vec<Vec<Line>>,
    },
}

/// Markup that has been opened and not closed yet.
#[derive(Default)]
struct Reader {
    blocks: Vec<ManualBlock>,
    line: Line,
    styles: Vec<Style>,
    /// The next number of each list that is open; `None` has bullets.
    lists: Vec<Option<u64>>,
    /// Of an item whose first paragraph is still to come.
    bullet: Option<String>,
    code: Option<String>,
    /// Where links that are open lead to.
    links: Vec<String>,
    table: Option<(Vec<Line>, Vec<Vec<Line>>)>,
    row: Vec<Line>,
}

pub fn parse(markdown: &str) -> Vec<ManualBlock> {
    let mut reader = Reader::default();
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        reader.step(event);
    }
    reader.blocks
}

impl Reader {
    fn step(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.open(tag),
            Event::End(tag) => self.close(tag),
            Event::Text(text) => match &mut self.code {
                Some(code) => code.push_str(&text),
                None => self.push(&text, self.styles.last().copied().unwrap_or(Style::Plain)),
            },
            Event::Code(text) => self.push(&text, Style::Code),
            Event::SoftBreak | Event::HardBreak => self.push(" ", Style::Plain),
            // `<br>` between the names of one variable.
            Event::Html(_) | Event::InlineHtml(_) => self.push(", ", Style::Plain),
            _ => {}
        }
    }

    fn push(&mut self, text: &str, style: Style) {
        self.line.push(Span { text: text.to_owned(), style });
    }

    fn open(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::Strong => self.styles.push(Style::Strong),
            Tag::Emphasis => self.styles.push(Style::Emphasis),
            Tag::Link { dest_url, .. } => self.links.push(dest_url.into_string()),
            Tag::CodeBlock(_) => self.code = Some(String::new()),
            Tag::List(first) => {
                self.end_paragraph();
                self.lists.push(first);
            }
            Tag::Item => {
                let bullet = match self.lists.last_mut() {
                    Some(Some(number)) => {
                        *number += 1;
                        format!("{}.", *number - 1)
                    }
                    _ => "-".to_owned(),
                };
                self.bullet = Some(bullet);
            }
            Tag::Table(_) => self.table = Some(Default::default()),
            _ => {}
        }
    }

    fn close(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Strong | TagEnd::Emphasis => {
                self.styles.pop();
            }
            TagEnd::Link => {
                let to = self.links.pop().unwrap_or_default();
                self.push_target(&to);
            }
            TagEnd::Heading(level) => {
                let line = std::mem::take(&mut self.line);
                self.blocks.push(ManualBlock::Heading(level as u8, line));
            }
            TagEnd::Paragraph => self.end_paragraph(),
            TagEnd::Item => self.end_paragraph(),
            TagEnd::List(_) => {
                self.lists.pop();
            }
            TagEnd::CodeBlock => {
                let text = self.code.take().unwrap_or_default();
                self.blocks.push(ManualBlock::Code { depth: self.lists.len(), text });
            }
            TagEnd::TableCell => self.row.push(std::mem::take(&mut self.line)),
            TagEnd::TableHead => {
                let row = std::mem::take(&mut self.row);
                self.table.get_or_insert_default().0 = row;
            }
            TagEnd::TableRow => {
                let row = std::mem::take(&mut self.row);
                self.table.get_or_insert_default().1.push(row);
            }
            TagEnd::Table => {
                let (head, rows) = self.table.take().unwrap_or_default();
                self.blocks.push(ManualBlock::Table { head, rows });
            }
            _ => {}
        }
    }

    fn end_paragraph(&mut self) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return;
        }
        let depth = self.lists.len();
        self.blocks.push(match self.bullet.take() {
            Some(bullet) => ManualBlock::Item { depth: depth.saturating_sub(1), bullet, line },
            None => ManualBlock::Paragraph { depth, line },
        });
    }

    /// A terminal has no links: a link to a topic becomes its name, any other prints its address.
    fn push_target(&mut self, to: &str) {
        let (file, _) = to.split_once('#').unwrap_or((to, ""));
        if let Some(topic) = file.strip_suffix(".md") {
            self.push(" (", Style::Plain);
            self.push(&format!("walhouse help {topic}"), Style::Code);
            self.push(")", Style::Plain);
        } else if to.starts_with("http") && self.line.last().is_some_and(|last| last.text != to) {
            self.push(&format!(" <{to}>"), Style::Plain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(line: &Line) -> String {
        line.iter().map(|span| span.text.as_str()).collect()
    }

    #[test]
    fn lists_hold_paragraphs_and_code() {
        let blocks = parse("1. One\n   line.\n\n   ```\n   code\n   ```\n2. *Two*:\n   - inner\n");
        let [first, code, second, inner] = &blocks[..] else { panic!("{blocks:?}") };
        assert!(matches!(first, ManualBlock::Item { depth: 0, bullet, line }
            if bullet == "1." && plain(line) == "One line."));
        assert_eq!(*code, ManualBlock::Code { depth: 1, text: "code\n".to_owned() });
        assert!(matches!(second, ManualBlock::Item { bullet, line, .. }
            if bullet == "2." && line[0].style == Style::Emphasis));
        assert!(matches!(inner, ManualBlock::Item { depth: 1, .. }));
    }

    #[test]
    fn tables_are_read_by_cells_and_links_name_their_topic() {
        let blocks = parse("| a | b |\n|---|---|\n| `x\\|y` | [it](failover.md#slots) |\n");
        let [ManualBlock::Table { head, rows }] = &blocks[..] else { panic!("{blocks:?}") };
        assert_eq!(head.iter().map(plain).collect::<Vec<_>>(), ["a", "b"]);
        let cells: Vec<String> = rows[0].iter().map(plain).collect();
        assert_eq!(cells, ["x|y", "it (walhouse help failover)"]);
        let blocks = parse("[here](https://a.b) <https://c.d> [there](#below)");
        let [ManualBlock::Paragraph { line, .. }] = &blocks[..] else { panic!("{blocks:?}") };
        assert_eq!(plain(line), "here <https://a.b> https://c.d there");
    }
}
