//! ClickHouse: its version, our user's privileges there, its tables, and a trial row.

use std::time::Instant;

use super::table::UNFILLED;
use super::{cluster, interrupt, is_near, now_ms, without_query_id};
use crate::clickhouse::Client;
use crate::clickhouse::client::quote_name;
use crate::clickhouse::document_types::document_types;
use crate::clickhouse::own::{self, state};
use crate::clickhouse::refusal::Refusal;
use crate::clickhouse::survey::judge::{self, ColumnFit, Order};
use crate::clickhouse::survey::{self, ClickHouseFacts, Grant, TrialRow};
use crate::clickhouse::tables::{self, TableShape};
use crate::config::ServiceConfig;
use crate::delivery::target_tables::{columns_of, mapping};
use crate::delivery::unfilled;
use crate::error::{Error, ErrorKind, Result};
use crate::finding::Finding;
use crate::postgres::survey::judge::clock;
use crate::rows::target::Target;
use crate::rows::{Shape, native};
use crate::services::mapping::Mapping;
use crate::services::trial;

const AWAY: &str = "Point *_REPLICATION_CLICKHOUSE_URL at ClickHouse's HTTP interface (port 8123, \
                    or 8443 with https://), and start ClickHouse.";
const AGAIN: &str = "Run `walhouse check` again; if the problem persists, see ClickHouse's log.";

/// ClickHouse with all tables, for what needs Postgres as well.
pub(super) struct ReachedClickHouse {
    pub client: Client,
    pub shapes: Vec<Shape>,
    /// Missing tables of walhouse's own.
    pub absent: Vec<&'static str>,
}

pub(super) fn look(service: &ServiceConfig) -> (Vec<Finding>, Option<ReachedClickHouse>) {
    let mut found = Vec::new();
    let before_ms = now_ms();
    let reached = Client::connect(&service.clickhouse)
        .and_then(|mut client| Ok((survey::look(&mut client, deadline(service))?, client)));
    let (facts, client) = match reached {
        Ok(reached) => reached,
        Err(error) => {
            let mut finding = Finding::of_error("ClickHouse", &error, AWAY);
            finding.text = without_query_id(&finding.text);
            found.push(finding);
            return (found, None);
        }
    };
    let after_ms = now_ms();
    let endpoint = client.endpoint();
    found.push(Finding::ok("ClickHouse", format!("{endpoint} answers to user `{}`", facts.user)));
    found.push(encryption(endpoint));
    found.push(clock("ClickHouse", (before_ms, after_ms), facts.now_ms));
    found.extend(judge::server(&facts, &service.clickhouse.database));
    let mapping = mapping(service);
    let mut client = client;
    let targets: Vec<&str> = mapping.targets().iter().map(|target| &*target.table).collect();
    let (user, creates) = (facts.user.as_str(), service.create_tables);
    let replication = cluster::look(&mut client, user, &targets, creates, || deadline(service));
    match replication {
        Ok(findings) => found.extend(findings),
        Err(error) => found.push(Finding::of_error("cluster", &error, AGAIN)),
    }
    let mut looking = Looking { service, mapping: &*mapping, facts, client, found };
    let tables = looking.tables();
    let Looking { mut found, client, .. } = looking;
    match tables {
        Ok(Some((shapes, absent))) => (found, Some(ReachedClickHouse { client, shapes, absent })),
        Ok(None) => (found, None),
        Err(error) => {
            found.push(Finding::of_error("ClickHouse", &error, AGAIN));
            (found, None)
        }
    }
}

fn deadline(service: &ServiceConfig) -> Instant {
    Instant::now() + service.clickhouse.request_timeout.min(super::STEP_TIMEOUT)
}

fn encryption(endpoint: &str) -> Finding {
    match endpoint.strip_prefix("http://") {
        None => Finding::ok("TLS", format!("the connection to {endpoint} is encrypted")),
        Some(host) if is_near(host) => {
            Finding::ok("TLS", format!("{endpoint} is this machine: not encrypted"))
        }
        Some(_) => Finding::warning(
            "TLS",
            format!("the connection to {endpoint} is not encrypted"),
            "Use https:// and the TLS port, 8443, in *_REPLICATION_CLICKHOUSE_URL.",
        ),
    }
}

struct Looking<'a> {
    service: &'a ServiceConfig,
    mapping: &'a dyn Mapping,
    facts: ClickHouseFacts,
    client: Client,
    found: Vec<Finding>,
}

impl Looking<'_> {
    fn deadline(&self) -> Instant {
        deadline(self.service)
    }

    /// The columns that the target tables accept, and which of walhouse's own tables are absent;
    /// `None` if a target is missing or is not as it has to be.
    fn tables(&mut self) -> Result<Option<(Vec<Shape>, Vec<&'static str>)>> {
        let creates = self.service.create_tables;
        let deadline = self.deadline();
        let own = own::tables::absent_names(&mut self.client, deadline)?;
        let names: Vec<&str> = self.mapping.targets().iter().map(|target| &*target.table).collect();
        let deadline = self.deadline();
        let missing = tables::missing(&mut self.client, &names, deadline)?;
        if creates && !(own.is_empty() && missing.is_empty()) {
            self.may_create(&[missing.as_slice(), &own].concat())?;
        }
        if !creates && !self.facts.has_database {
            let database = self.client.database();
            self.found.push(Finding::problem(
                "database",
                format!(
                    "database `{database}` is missing, and REPLICATION_CREATE_TABLES=0 forbids \
                     creating it"
                ),
                format!("Run on ClickHouse: CREATE DATABASE {}", quote_name(database)),
            ));
        }
        if !creates {
            for error in &own::tables::absences(&self.client, &own) {
                self.found.push(Finding::of_error("table", error, AGAIN));
            }
        }
        let mut shapes = Vec::new();
        for target in self.mapping.targets() {
            if creates && missing.contains(&&*target.table) {
                // As it would be made.
                self.trial(target, &Shape::of(vec![true; target.columns.len()]), false)?;
                continue;
            }
            let deadline = self.deadline();
            match tables::ensure(&mut self.client, target, false, deadline) {
                Ok(shape) => shapes.extend(self.table(target, &shape)?),
                Err(error) if error.kind() == ErrorKind::Setup => {
                    self.found.push(Finding::of_error("table", &error, AGAIN));
                }
                Err(error) => return Err(error),
            }
        }
        let is_complete = shapes.len() == self.mapping.targets().len();
        // If none of them exists, nothing is recorded, and the state of the tables does not matter.
        match is_complete || own.contains(&state::TABLE.name) {
            true => Ok(Some((shapes, own))),
            false => Ok(None),
        }
    }

    fn may_create(&mut self, missing: &[&str]) -> Result<()> {
        let user = &self.facts.user;
        let database = self.client.database().to_owned();
        if !self.facts.has_database {
            let deadline = self.deadline();
            let grant = survey::grant(&mut self.client, "CREATE DATABASE", None, deadline)?;
            self.found.push(match grant {
                Grant::Given | Grant::Unknown => Finding::ok(
                    "database",
                    format!(
                        "database `{database}` does not exist yet: walhouse creates it when it \
                         starts. trigger.dev's own migrations fail if it exists: run them first"
                    ),
                ),
                Grant::Denied => Finding::problem(
                    "database",
                    format!("database `{database}` is missing, and `{user}` may not create it"),
                    format!("Run on ClickHouse: CREATE DATABASE {}", quote_name(&database)),
                ),
            });
        }
        let what = format!("`{}`", missing.join("`, `"));
        let deadline = self.deadline();
        let grant = survey::grant(&mut self.client, "CREATE TABLE", None, deadline)?;
        let user = &self.facts.user;
        self.found.push(match grant {
            Grant::Given | Grant::Unknown => {
                Finding::ok("table", format!("walhouse creates it when it starts: {what}"))
            }
            Grant::Denied => Finding::problem(
                "table",
                format!("missing, and user `{user}` may not create tables: {what}"),
                format!(
                    "Run on ClickHouse: GRANT CREATE TABLE ON {}.* TO {}",
                    quote_name(&database),
                    quote_name(user)
                ),
            ),
        });
        Ok(())
    }

    /// `None` if rows would not fit.
    fn table(&mut self, target: &Target, shape: &TableShape) -> Result<Option<Shape>> {
        let name = &target.table;
        let before = self.found.len();
        let aside = survey::set_aside(&self.client, &target.table);
        let again = match self.service.create_tables {
            true => {
                format!("Run on ClickHouse: {aside}; walhouse creates the table when it starts.")
            }
            false => format!("Run on ClickHouse: {aside}; {};", tables::ddl(&self.client, target)),
        };
        for warning in &shape.warnings {
            self.found.push(Finding::warning("table", warning, &again));
        }
        let ours = target.names(&target.order_by);
        match judge::order(&shape.engine, &shape.sorting_key, &ours, &target.id_names()) {
            Some(Order::WithoutKey) => self.found.push(Finding::problem(
                "table",
                format!(
                    "`{name}` is ordered by ({}), without `{}`: rows replace each other",
                    shape.sorting_key,
                    target.id_names().join("`, `")
                ),
                &again,
            )),
            Some(Order::Other) => self.found.push(Finding::warning(
                "table",
                format!(
                    "`{name}` is ordered by ({}), expected ({})",
                    shape.sorting_key,
                    ours.join(", ")
                ),
                &again,
            )),
            None => {}
        }
        let (present, problems) = columns_of(&self.client, target, shape);
        for error in &problems {
            self.found.push(Finding::of_error("table", error, AGAIN));
        }
        let is_narrowed = self.types(target, shape, &again);
        if !problems.is_empty() || is_narrowed {
            return Ok(None);
        }
        let columns: Vec<&str> = (target.columns.iter().zip(&present))
            .filter(|(_, is_present)| **is_present)
            .map(|(column, _)| &*column.name)
            .collect();
        let deadline = self.deadline();
        if let Err(error) = survey::try_insert(&mut self.client, name, &columns, deadline) {
            self.found.push(self.denied(name, &error));
            return Ok(None);
        }
        let is_whole = self.found.len() == before;
        let unfilled = unfilled::of_target(&self.client, target, shape).into_iter();
        self.found.extend(unfilled.map(|text| Finding::warning("columns", text, UNFILLED)));
        if is_whole {
            let text = format!("`{name}` ({}) has every column", shape.engine);
            self.found.push(Finding::ok("table", text));
        }
        let documents = document_types(shape, &target.columns, &self.facts.version);
        let taken = Shape { documents, ..Shape::of(present) };
        self.trial(target, &taken, true)?;
        Ok(Some(taken))
    }

    /// True if a column does not accept what is sent.
    fn types(&mut self, target: &Target, shape: &TableShape, again: &str) -> bool {
        let table = self.client.qualified(&target.table);
        let mut is_refused = false;
        for (at, column) in target.columns.iter().enumerate() {
            let Some(found) = shape.column(&column.name) else { continue };
            let fit = judge::fit(&column.kind, &found.type_text);
            if fit == ColumnFit::Whole {
                continue;
            }
            let ours = &column.ddl;
            let text = format!(
                "column `{}` of `{}` is {}, expected {ours}",
                column.name, target.table, found.type_text
            );
            // Columns of the sorting key cannot be altered.
            let hint = match target.order_by.contains(&at) {
                true => again.to_owned(),
                false => format!(
                    "Run on ClickHouse: ALTER TABLE {table} MODIFY COLUMN `{}` {ours}",
                    column.name
                ),
            };
            is_refused |= fit == ColumnFit::Not;
            // The survey has already reported a coarser DateTime that deletes may miss.
            let is_told = shape.warnings.iter().any(|told| told.contains(&*column.name));
            match fit {
                ColumnFit::Not => self.found.push(Finding::problem("table", text, hint)),
                _ if is_told => {}
                _ => self.found.push(Finding::warning("table", text, hint)),
            }
        }
        is_refused
    }

    fn denied(&self, table: &str, error: &Error) -> Finding {
        const ACCESS_DENIED: u32 = 497;
        let refusal = error.cause().and_then(|cause| cause.downcast_ref::<Refusal>());
        let is_denied = refusal.is_some_and(|refusal| refusal.code == ACCESS_DENIED);
        match is_denied {
            true => Finding::problem(
                "privileges",
                format!("user `{}` may not read and insert into `{table}`", self.facts.user),
                format!(
                    "Run on ClickHouse: GRANT SELECT, INSERT ON {}.* TO {}",
                    quote_name(self.client.database()),
                    quote_name(&self.facts.user)
                ),
            ),
            false => Finding::of_error("privileges", error, AGAIN),
        }
    }

    /// Inserts a row by the real mapping into a separate table.
    fn trial(&mut self, target: &Target, shape: &Shape, is_there: bool) -> Result<()> {
        let name = survey::trial_name();
        for privilege in ["CREATE TABLE", "DROP TABLE", "INSERT"] {
            let deadline = self.deadline();
            let grant = survey::grant(&mut self.client, privilege, Some(&name), deadline)?;
            if grant != Grant::Given {
                let why = match grant {
                    Grant::Unknown => {
                        "this version of ClickHouse cannot be asked for privileges".to_owned()
                    }
                    _ => format!("user `{}` has no {privilege}", self.facts.user),
                };
                let text = format!(
                    "none for `{}`: {why}; the first batch will show whether the table accepts \
                     rows",
                    target.table
                );
                self.found.push(Finding::ok("trial row", text));
                return Ok(());
            }
        }
        if !self.facts.has_database {
            return Ok(());
        }
        let shapes: Vec<Shape> = (self.mapping.targets().iter())
            .map(|one| match one.table == target.table {
                true => shape.clone(),
                false => Shape::of(vec![true; one.columns.len()]),
            })
            .collect();
        let blocks = trial::blocks(self.mapping, &shapes).map_err(|cause| {
            Error::new(ErrorKind::Bug, "map a trial row").because(cause.to_string())
        })?;
        let at = self.mapping.targets().iter().position(|one| one.table == target.table);
        let Some(block) = at.and_then(|at| blocks.get(at)) else { return Ok(()) };
        let mut bytes = Vec::new();
        native::encode(block, &[0], &[], &mut bytes);
        let columns = native::column_names(block);
        let deadline = self.deadline();
        let like = (target, is_there);
        let trial = interrupt::TrialGuard::begin();
        let tried = survey::try_block(&mut self.client, &name, like, &columns, &bytes, deadline);
        drop(trial);
        self.found.push(match tried {
            TrialRow::Taken => {
                Finding::ok("trial row", format!("accepted as a row of `{}`", target.table))
            }
            TrialRow::NotMade(error) => Finding::warning(
                "trial row",
                format!("none for `{}`: {error}", target.table),
                error.hint_text().unwrap_or("Allow this user to create tables."),
            ),
            TrialRow::Refused(error) => Finding::of_error(
                "trial row",
                &error,
                &format!(
                    "Run on ClickHouse: {}; walhouse creates the table when it starts.",
                    survey::set_aside(&self.client, &target.table)
                ),
            ),
            TrialRow::Left(table, error) => Finding::problem(
                "trial row",
                format!("the check left a table behind: {error}"),
                format!("Run on ClickHouse: DROP TABLE {table}"),
            ),
        });
        Ok(())
    }
}
