//! A topic as a man page.

use roff::{Inline, Roff, bold, italic, roman};

use super::Topic;
use super::blocks::{Line, ManualBlock, Style};

pub fn page(topic: &Topic, blocks: &[ManualBlock]) -> Vec<u8> {
    let mut out = Roff::new();
    let name = format!("walhouse-{}", topic.name);
    let version = concat!("walhouse ", env!("CARGO_PKG_VERSION"));
    out.control("TH", [name.to_uppercase().as_str(), "7", "", version, "walhouse manual"]);
    out.control("SH", ["NAME"]);
    out.text([roman(format!("{name} - {}", topic.about.replace('`', "")))]);
    for block in blocks {
        add(&mut out, block);
    }
    let mut page = Vec::new();
    out.to_writer(&mut page).expect("memory takes all");
    page
}

fn add(out: &mut Roff, block: &ManualBlock) {
    match block {
        ManualBlock::Heading(level, line) => {
            let text: String = line.iter().map(|span| span.text.as_str()).collect();
            match level {
                1 => out.control("SH", [text.to_uppercase().as_str()]),
                2 => out.control("SH", [text.as_str()]),
                _ => out.control("SS", [text.as_str()]),
            };
        }
        ManualBlock::Paragraph { depth, line } => {
            out.control(if *depth == 0 { "PP" } else { "IP" }, []);
            out.text(inlines(line));
        }
        ManualBlock::Item { depth, bullet, line } => {
            for _ in 0..*depth {
                out.control("RS", ["4"]);
            }
            out.control("IP", [bullet.as_str(), "4"]);
            out.text(inlines(line));
            for _ in 0..*depth {
                out.control("RE", []);
            }
        }
        ManualBlock::Code { text, .. } => {
            out.control("PP", []);
            out.control("RS", ["4"]);
            out.control("nf", []);
            for line in text.lines() {
                out.text([roman(line)]);
            }
            out.control("fi", []);
            out.control("RE", []);
        }
        ManualBlock::Table { head, rows } => {
            for row in rows {
                let Some((term, rest)) = row.split_first() else { continue };
                out.control("TP", []);
                out.text(inlines(term));
                let cells = rest.iter().zip(&head[1..]);
                for (cell, title) in cells.filter(|(cell, _)| !cell.is_empty()) {
                    let title: String = title.iter().map(|span| span.text.as_str()).collect();
                    let mut line = inlines(cell);
                    if !title.is_empty() && 1 < rest.len() {
                        line.insert(0, roman(format!("{title}: ")));
                    }
                    out.text(line);
                    out.control("br", []);
                }
            }
        }
    }
}

fn inlines(line: &Line) -> Vec<Inline> {
    let spans = line.iter().map(|span| match span.style {
        Style::Plain => roman(span.text.as_str()),
        Style::Code | Style::Strong => bold(span.text.as_str()),
        Style::Emphasis => italic(span.text.as_str()),
    });
    spans.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::manual::{TOPICS, blocks};

    #[test]
    fn a_page_has_its_name_headings_and_terms() {
        let blocks = blocks::parse("# T\n\n## Sub\n\n`a` b\n\n| x | y |\n|-|-|\n| `.z` | w |\n");
        let page = String::from_utf8(page(&TOPICS[0], &blocks)).expect("it is text");
        for part in [".SH NAME", ".SH Sub", "\\fBa\\fR b", ".TP\n\\fB.z", "w\n.br"] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }
}
