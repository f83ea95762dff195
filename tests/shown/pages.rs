//! A page's examples: what it tells to type, and what it shows below.

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A block of commands, and what is shown below it.
pub struct Step {
    pub commands: String,
    /// Lines; empty where the page shows none.
    pub shown: Vec<String>,
}

/// The blocks of `sh` and `sql`. One of `text` is what the block before it prints; without one in
/// its section it is a picture, or a file.
pub fn steps(markdown: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut is_open = false;
    let mut block: Option<(String, String)> = None;
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        match (event, &mut block) {
            (Event::Start(Tag::Heading { .. }), _) => is_open = false,
            (Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))), _) => {
                block = Some((language.into_string(), String::new()));
            }
            (Event::Text(part), Some((_, text))) => text.push_str(&part),
            (Event::End(TagEnd::CodeBlock), _) => {
                let (language, text) = block.take().expect("it began");
                let commands = match language.as_str() {
                    "sh" => text,
                    "sql" => as_commands(&text),
                    "text" => {
                        let step = steps.last_mut().filter(|_| is_open);
                        if let Some(step) = step {
                            step.shown = text.lines().map(str::to_owned).collect();
                        }
                        is_open = false;
                        continue;
                    }
                    other => panic!("nobody runs a block of `{other}`:\n{text}"),
                };
                steps.push(Step { commands, shown: Vec::new() });
                is_open = true;
            }
            _ => {}
        }
    }
    steps
}

/// SQL that names the database of ClickHouse is for it.
fn as_commands(sql: &str) -> String {
    let client = match sql.contains("trigger_dev") {
        true => r#"curl -sS --fail-with-body "$CLICKHOUSE_URL" --data-binary @-"#,
        false => r#"psql -X -v ON_ERROR_STOP=1 "$DATABASE_URL""#,
    };
    format!("{client} <<'SQL'\n{sql}SQL\n")
}

/// The section below a heading of the second level.
pub fn section<'a>(markdown: &'a str, heading: &str) -> &'a str {
    let heading = format!("\n## {heading}\n");
    let (_, rest) = markdown.split_once(&heading).expect("the page has the section");
    rest.split("\n## ").next().unwrap_or_default()
}
