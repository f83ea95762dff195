//! Postgres as its clients see it: one server, or several of which one is the primary at a time.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls, SimpleQueryMessage};
use serde_json::{Map, Value};

use super::wait::{PATIENCE, until_true};

/// Also for a server that accepts and never answers, as a frozen one does.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Once one host has said that it is a primary, how long another may take to say so too.
const SECOND_PRIMARY_TIMEOUT: Duration = Duration::from_millis(300);

/// The database that the servers of the tests have.
const NAME: &str = "postgres";

/// Where to find it. Nothing is kept open.
#[derive(Debug, Clone)]
pub struct Database {
    hosts: Vec<(String, u16)>,
    name: String,
}

/// Rows as text, one `None` for each null.
pub type Rows = Vec<Vec<Option<String>>>;

impl Database {
    pub fn at_port(port: u16) -> Database {
        Database { hosts: vec![("127.0.0.1".to_owned(), port)], name: NAME.to_owned() }
    }

    /// `HOST:PORT[,HOST:PORT...]`
    pub fn parse(text: &str) -> Option<Database> {
        let host = |text: &str| {
            let (host, port) = text.rsplit_once(':')?;
            Some((host.to_owned(), port.parse().ok()?))
        };
        let hosts = text.split(',').map(host).collect::<Option<_>>()?;
        Some(Database { hosts, name: NAME.to_owned() })
    }

    /// Another database of the same server.
    pub fn at_database(&self, name: &str) -> Database {
        Database { hosts: self.hosts.clone(), name: name.to_owned() }
    }

    #[track_caller]
    pub fn client(&self) -> Client {
        self.try_client().unwrap_or_else(|| panic!("connect to Postgres at {:?}", self.hosts))
    }

    /// To the one server, whatever it is; of several, to the primary. Of two that both write, as
    /// after a failover that left the old one running, the one on the higher timeline is meant.
    pub fn try_client(&self) -> Option<Client> {
        if let [(host, port)] = self.hosts.as_slice() {
            return connect_to(host, *port, &self.name).ok();
        }
        let (sender, found) = mpsc::channel();
        for (host, port) in self.hosts.iter().cloned() {
            let sender = sender.clone();
            // Left to itself when it hangs: it ends with the server, or with us.
            thread::spawn(move || {
                // Who asked may have stopped listening.
                let _ = sender.send(connect_to_primary(&host, port));
            });
        }
        drop(sender);
        let mut deadline = Instant::now() + CONNECT_TIMEOUT;
        let mut best: Option<(u32, Client)> = None;
        while let Ok(answer) =
            found.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            let Some(primary) = answer else { continue };
            if best.as_ref().is_none_or(|best| best.0 < primary.0) {
                best = Some(primary);
            }
            deadline = deadline.min(Instant::now() + SECOND_PRIMARY_TIMEOUT);
        }
        best.map(|(_, client)| client)
    }

    /// Several statements are one transaction unless they say otherwise.
    #[track_caller]
    pub fn execute(&self, sql: &str) {
        self.client().batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {}", detail(&e)));
    }

    #[track_caller]
    pub fn rows(&self, sql: &str) -> Rows {
        rows(&mut self.client(), sql)
    }

    #[track_caller]
    pub fn rows_of<const N: usize>(&self, sql: &str) -> Vec<[String; N]> {
        let row = |row: Vec<Option<String>>| {
            let row: Vec<String> = row.into_iter().map(|value| value.expect("no null")).collect();
            row.try_into().expect("as many columns as asked for")
        };
        self.rows(sql).into_iter().map(row).collect()
    }

    /// The first column of the first row.
    #[track_caller]
    pub fn value(&self, sql: &str) -> Option<String> {
        self.rows(sql).into_iter().next()?.into_iter().next()?
    }

    /// Everything that was committed lies below it.
    pub fn flush_lsn(&self) -> u64 {
        parse_lsn(&self.value("SELECT pg_current_wal_flush_lsn()").expect("an LSN"))
    }

    pub fn confirmed_flush(&self, slot: &str) -> Option<u64> {
        let sql = format!(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'"
        );
        self.value(&sql).map(|lsn| parse_lsn(&lsn))
    }

    /// How many walsenders stream from the slot: 0 or 1.
    pub fn walsenders(&self, slot: &str) -> usize {
        self.rows(&format!(
            "SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}' AND active"
        ))
        .len()
    }

    /// Ends the walsender that holds the slot, as a failover would.
    pub fn terminate_walsender(&self, slot: &str) {
        let sql = format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
             WHERE slot_name = '{slot}' AND active"
        );
        until_true(format!("slot `{slot}` had a walsender to end"), PATIENCE, || {
            self.value(&sql).as_deref() == Some("t")
        });
    }

    #[track_caller]
    pub fn insert(&self, table: &str, row: &Value) {
        insert(&mut self.client(), table, row).unwrap_or_else(|e| panic!("{}", detail(&e)));
    }

    #[track_caller]
    pub fn update(&self, table: &str, id: &str, values: &Value) {
        let changed = update(&mut self.client(), table, id, values);
        assert_eq!(changed.unwrap_or_else(|e| panic!("{}", detail(&e))), 1, "{table} {id}");
    }

    #[track_caller]
    pub fn delete(&self, table: &str, id: &str) {
        let deleted = delete(&mut self.client(), table, id);
        assert_eq!(deleted.unwrap_or_else(|e| panic!("{}", detail(&e))), 1, "{table} {id}");
    }
}

/// With its timeline; `None` if it is a standby or does not answer.
fn connect_to_primary(host: &str, port: u16) -> Option<(u32, Client)> {
    let mut client = connect_to(host, port, NAME).ok()?;
    // The name of a WAL file begins with the timeline, as eight digits.
    let sql = "SELECT CASE WHEN NOT pg_is_in_recovery() \
               THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END";
    let row = client.query_one(sql, &[]).ok()?;
    let timeline = u32::from_str_radix(row.get::<_, Option<&str>>(0)?, 16).ok()?;
    Some((timeline, client))
}

pub fn connect(port: u16) -> Result<Client, postgres::Error> {
    connect_to("127.0.0.1", port, NAME)
}

fn connect_to(host: &str, port: u16, name: &str) -> Result<Client, postgres::Error> {
    postgres::Config::new()
        .host(host)
        .port(port)
        .user("postgres")
        .dbname(name)
        .application_name("walhouse-tests")
        .connect_timeout(CONNECT_TIMEOUT)
        // A silent network is noticed, whether something is on its way to the server or back.
        .tcp_user_timeout(Duration::from_secs(10))
        .keepalives_idle(Duration::from_secs(2))
        .keepalives_interval(Duration::from_secs(1))
        .keepalives_retries(5)
        .connect(NoTls)
}

pub fn rows(client: &mut Client, sql: &str) -> Rows {
    let messages = client.simple_query(sql).unwrap_or_else(|e| panic!("{sql}: {}", detail(&e)));
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect())
        }
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

/// A row from a JSON object of its columns; the others take their defaults. Strings stand for
/// whatever Postgres reads as a text: enums, timestamps, `infinity`.
pub fn insert<C: postgres::GenericClient>(
    client: &mut C,
    table: &str,
    row: &Value,
) -> Result<(), postgres::Error> {
    let (names, values) = columns(row);
    let sql = format!(
        "INSERT INTO public.\"{table}\" ({names}) \
         SELECT {values} FROM jsonb_populate_record(NULL::public.\"{table}\", $1::text::jsonb) r"
    );
    client.execute(&sql, &[&row.to_string()]).map(|_| ())
}

pub fn update<C: postgres::GenericClient>(
    client: &mut C,
    table: &str,
    id: &str,
    values: &Value,
) -> Result<u64, postgres::Error> {
    let (names, values_of) = columns(values);
    let sql = format!(
        "UPDATE public.\"{table}\" SET ({names}) = (SELECT {values_of} \
         FROM jsonb_populate_record(NULL::public.\"{table}\", $1::text::jsonb) r) WHERE \"id\" = $2"
    );
    client.execute(&sql, &[&values.to_string(), &id])
}

pub fn delete<C: postgres::GenericClient>(
    client: &mut C,
    table: &str,
    id: &str,
) -> Result<u64, postgres::Error> {
    client.execute(&format!("DELETE FROM public.\"{table}\" WHERE \"id\" = $1"), &[&id])
}

fn columns(row: &Value) -> (String, String) {
    let row: &Map<String, Value> = row.as_object().expect("a row is an object");
    let list = |prefix: &str| {
        let names: Vec<String> = row.keys().map(|name| format!("{prefix}\"{name}\"")).collect();
        names.join(", ")
    };
    (list(""), list("r."))
}

/// What the server said; the client's own text is only `db error`.
pub fn detail(error: &postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string)
}

pub fn parse_lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("an LSN has a slash");
    let half = |text| u64::from_str_radix(text, 16).expect("halves of an LSN are hexadecimal");
    half(high) << 32 | half(low)
}
