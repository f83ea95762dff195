//! The two services, as far as they are measured.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Runs,
    Sessions,
}

use Service::{Runs, Sessions};

impl Service {
    pub fn name(self) -> &'static str {
        match self {
            Runs => "runs",
            Sessions => "sessions",
        }
    }

    /// What its variables begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Runs => "RUN_REPLICATION",
            Sessions => "SESSION_REPLICATION",
        }
    }

    /// The source table, quoted.
    pub fn table(self) -> &'static str {
        match self {
            Runs => "public.\"TaskRun\"",
            Sessions => "public.\"Session\"",
        }
    }

    /// The one that walhouse takes unless it is told otherwise.
    pub fn publication(self) -> &'static str {
        match self {
            Runs => "task_runs_to_clickhouse_v1_publication",
            Sessions => "sessions_to_clickhouse_v1_publication",
        }
    }

    /// The table that has each row, and beside it those that have parts of it.
    pub fn targets(self) -> &'static [&'static str] {
        match self {
            Runs => &["task_runs_v2", "raw_task_runs_payload_v1"],
            Sessions => &["sessions_v1"],
        }
    }
}
