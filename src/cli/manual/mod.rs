//! The manual: one topic a file, compiled into the program. `walhouse help TOPIC` shows a topic on
//! a terminal, `walhouse man TOPIC` as a man page; README links to the files.

mod blocks;
pub mod explain;
mod roff;
mod text;

/// A chapter of the manual.
pub struct Topic {
    /// The name used on the command line; the file is `NAME.md`.
    pub name: &'static str,
    /// One line for the list of topics.
    pub about: &'static str,
    /// Markdown.
    pub text: &'static str,
}

/// The list, and each topic as a page of these docs.
macro_rules! topics {
    ($($module:ident: $name:literal, $about:literal;)*) => {
        /// In the order in which a new user reads them.
        pub const TOPICS: &[Topic] = &[
            $(Topic { name: $name, about: $about, text: include_str!(concat!($name, ".md")) }),*
        ];
        $(#[doc = include_str!(concat!($name, ".md"))] pub mod $module {})*
    };
}

topics! {
    getting_started: "getting-started", "from an empty machine to a monitored replication";
    guarantees: "guarantees", "what is guaranteed, and what is not";
    requirements: "requirements", "Postgres, ClickHouse and Redis; `walhouse check`";
    roles_and_tls: "roles-and-tls", "privileges on each server; encryption";
    tables: "tables", "tables in ClickHouse, and unusual values";
    failover: "failover", "standbys, promotions, slots, failure drills";
    recovery_strategies: "recovery-strategies", "when a stream ends: reconnect, exit, log";
    gaps_and_repair: "gaps-and-repair", "missed changes, and how both sides become equal";
    backfill: "backfill", "copying rows that are there already";
    verify: "verify", "comparing Postgres and ClickHouse";
    leader_election: "leader-election", "several instances, and the leader lock";
    replicated_clickhouse: "replicated-clickhouse", "several hosts, clusters, quorums";
    operating: "operating", "stopping, upgrading, removing a service";
    monitoring: "monitoring", "metrics, alerts, health, status, the page";
    troubleshooting: "troubleshooting", "every warning and error, its cause and remedy";
    variables: "variables", "every variable of the configuration";
    trigger_dev: "trigger-dev", "next to or instead of its own replication";
    speed: "speed", "what was measured, and how to repeat it";
    how_it_works: "how-it-works", "threads, positions, versions, repairs";
}

pub fn find(name: &str) -> Option<&'static Topic> {
    TOPICS.iter().find(|topic| topic.name == name)
}

/// For the end of the list of commands.
pub fn list() -> String {
    let width = TOPICS.iter().map(|topic| topic.name.len()).max().unwrap_or_default();
    let lines = TOPICS.iter().map(|topic| {
        let about = topic.about.replace('`', "");
        format!("  {:width$}  {about}\n", topic.name)
    });
    format!("Topics (walhouse help TOPIC):\n{}", lines.collect::<String>())
}

impl Topic {
    /// In lines of at most so many columns, with the escape codes of a terminal if it is one.
    pub fn to_text(&self, columns: usize, is_terminal: bool) -> String {
        text::render(&blocks::parse(self.text), columns, is_terminal)
    }

    /// As walhouse-NAME(7).
    pub fn to_man(&self) -> Vec<u8> {
        roff::page(self, &blocks::parse(self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_has_a_heading_and_reads_on_a_narrow_terminal() {
        for topic in TOPICS {
            assert!(topic.text.starts_with("# "), "{}", topic.name);
            let text = topic.to_text(80, false);
            for line in text.lines().filter(|line| !line.starts_with("    ")) {
                // Text that cannot be broken, such as an address, gets its own line.
                let is_one_word = !line.trim().contains(' ');
                assert!(line.chars().count() <= 80 || is_one_word, "{}: {line}", topic.name);
            }
            // Out of the program only topics can be asked for.
            assert!(!text.contains("(walhouse help ."), "{}: links to no topic", topic.name);
            assert!(!topic.to_man().is_empty());
        }
    }

    /// Examples are run by tests/shown; this is for the commands that a sentence names.
    #[test]
    fn commands_that_are_named_take_what_they_are_given() {
        use clap::CommandFactory;
        let mut program = crate::cli::args::Arguments::command();
        program.build();
        let mut named = 0;
        for topic in TOPICS {
            let text = topic.text.replace('\n', " ");
            // The identity of a made-up row.
            let spans = text.split("`walhouse ").skip(1).filter(|span| !span.starts_with("trial`"));
            for span in spans.filter_map(|span| span.split('`').next()) {
                let mut words = span.split_whitespace().peekable();
                let command = words.next_if(|word| !word.starts_with('-')).unwrap_or("run");
                let command = program.find_subcommand(command);
                let command = command.unwrap_or_else(|| panic!("{}: {span}", topic.name));
                for option in words.filter_map(|word| word.strip_prefix("--")) {
                    let is_known = command.get_arguments().any(|a| a.get_long() == Some(option));
                    assert!(is_known, "{}: {span}", topic.name);
                }
                named += 1;
            }
        }
        assert!(10 < named, "commands were found");
    }

    #[test]
    fn no_topic_has_the_name_of_a_command() {
        use clap::CommandFactory;
        let commands = crate::cli::args::Arguments::command();
        // These two are of one thing.
        let shared = ["backfill", "verify"];
        for topic in TOPICS.iter().filter(|topic| !shared.contains(&topic.name)) {
            assert!(commands.find_subcommand(topic.name).is_none(), "{}", topic.name);
        }
    }
}
