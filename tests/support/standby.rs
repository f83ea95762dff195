//! Physical standbys of a throwaway [`Postgres`]: made, waited for, promoted, put in its place.
//!
//! Uses the low-level backup functions, because not every server that tests start has
//! `pg_basebackup`. Each standby has a physical slot of its own on its primary. From Postgres 17 on
//! it synchronises failover slots; add `synchronized_standby_slots` to the primary for a standby
//! that may never be behind a logical consumer.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::postgres::{Postgres, detail, give_to_server};
use super::wait::{PATIENCE, until_true};
use super::{free_port, reaper};

/// The worker on a standby that copies slots rests up to 30 s, and needs two rounds for a new one.
pub const SYNC_PATIENCE: Duration = Duration::from_secs(150);

/// What a copy must not have, or need not have: the server makes these folders' contents again, and
/// slots belong to the server that has them.
const WITHOUT_CONTENTS: [&str; 8] = [
    "pg_wal",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
];
const LEFT_OUT: [&str; 4] =
    ["postmaster.pid", "postmaster.opts", "standby.signal", "backup_manifest"];

impl Postgres {
    /// 15, 17, ...
    pub fn version(&self) -> u32 {
        let num = self.value("SHOW server_version_num").expect("a number");
        num.parse::<u32>().expect("a number") / 10_000
    }

    /// A standby that streams from this server, on a port of its own, ready for queries.
    pub fn start_standby(&self) -> Postgres {
        self.start_standby_with(free_port(), &[])
    }

    /// The port may be that of a server that is stopped, which the standby then stands in for.
    /// Settings win over those of this server and over those of a standby.
    pub fn start_standby_with(&self, port: u16, settings: &[(&str, &str)]) -> Postgres {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("standby_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        // From here on no WAL is removed that the copy will need.
        self.execute(&format!("SELECT pg_create_physical_replication_slot('{name}', true)"));

        let dir = reaper::new_dir("standby");
        let data = dir.join("data");
        let mut client = self.client();
        let (begin, end) = match self.version() {
            15.. => ("pg_backup_start('standby', true)", "pg_backup_stop(false)"),
            _ => ("pg_start_backup('standby', true, false)", "pg_stop_backup(false, false)"),
        };
        client.batch_execute(&format!("SELECT {begin}")).unwrap_or_else(|e| panic!("{e}"));
        copy(&self.data(), &data);
        let label = format!("SELECT labelfile FROM {end}");
        let row = client.query_one(&label, &[]).unwrap_or_else(|e| panic!("{}", detail(&e)));
        write(&data.join("backup_label"), row.get(0));
        write(&data.join("standby.signal"), "");

        let primary = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres application_name={name}",
            self.port()
        );
        let mut own = vec![
            ("primary_conninfo", primary.as_str()),
            ("primary_slot_name", &name),
            ("hot_standby_feedback", "on"),
            ("wal_receiver_status_interval", "1s"),
            ("wal_retrieve_retry_interval", "100ms"),
        ];
        if 17 <= self.version() {
            own.push(("sync_replication_slots", "on"));
            // That is for the primary to say, and would hold up nobody but itself.
            own.push(("synchronized_standby_slots", ""));
        }
        own.extend(settings);
        let mut standby = Postgres::of_data(dir, port, self.settings(), &own);
        standby.start_again();
        standby
    }

    /// The name of this standby's slot on its primary.
    pub fn standby_slot(&self) -> &str {
        &self.settings()["primary_slot_name"]
    }

    pub fn is_standby(&self) -> bool {
        self.value("SELECT pg_is_in_recovery()").as_deref() == Some("t")
    }

    /// Everything that `primary` has committed until now can be read here.
    #[track_caller]
    pub fn wait_replayed(&self, primary: &Postgres) {
        let lsn = primary.value("SELECT pg_current_wal_flush_lsn()").expect("an LSN");
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
        until_true(format!("the standby has replayed up to {lsn}"), PATIENCE, || {
            self.value(&sql).as_deref() == Some("t")
        });
    }

    /// From Postgres 17 on: this standby has a copy of the logical slot that outlives a promotion,
    /// for which somebody has to advance the slot on the primary meanwhile.
    #[track_caller]
    pub fn wait_slot_synced(&self, slot: &str) {
        let sql = format!(
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'
             AND synced AND NOT temporary AND invalidation_reason IS NULL"
        );
        until_true(format!("slot `{slot}` is synchronised to the standby"), SYNC_PATIENCE, || {
            self.value(&sql).as_deref() == Some("1")
        });
    }

    /// Returns once it accepts writes, on a timeline of its own. Its old primary, should it still
    /// run, knows nothing of it.
    #[track_caller]
    pub fn promote(&self) {
        self.execute("SELECT pg_promote(false)");
        until_true("the standby is promoted", PATIENCE, || !self.is_standby());
    }

    /// The timeline it writes to; for a primary.
    pub fn timeline(&self) -> u32 {
        let sql = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)";
        u32::from_str_radix(&self.value(sql).expect("a file's name"), 16).expect("hexadecimal")
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    give_to_server(path);
}

/// A folder of a running server: files come and go meanwhile.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    give_to_server(to);
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_str().expect("names of Postgres are ASCII");
        let Ok(kind) = entry.file_type() else { continue };
        let target = to.join(name);
        if LEFT_OUT.contains(&name) {
        } else if kind.is_dir() && WITHOUT_CONTENTS.contains(&name) {
            fs::create_dir(&target).unwrap();
            fs::set_permissions(&target, fs::metadata(&path).unwrap().permissions()).unwrap();
            give_to_server(&target);
        } else if kind.is_dir() {
            copy(&path, &target);
        } else {
            match fs::copy(&path, &target) {
                Ok(_) => give_to_server(&target),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => panic!("copy {}: {error}", path.display()),
            }
        }
    }
}
