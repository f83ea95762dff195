//! The provider of the server, which decides where to change a setting and how to grant a role a
//! privilege.

use super::super::sql::{ident, literal};

/// Recognized by settings that no other provider has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    Plain,
    /// Amazon RDS and Aurora.
    Rds,
    /// Google Cloud SQL.
    CloudSql,
    /// Azure Database for PostgreSQL, flexible server.
    Azure,
}

/// When a changed setting holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Restart,
    Reload,
}

impl Provider {
    /// The setting that identifies each one.
    pub(super) const MARKS: [(&'static str, Provider); 3] = [
        ("rds.logical_replication", Provider::Rds),
        ("cloudsql.logical_decoding", Provider::CloudSql),
        ("azure.extensions", Provider::Azure),
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Provider::Plain => "Postgres",
            Provider::Rds => "Postgres on Amazon RDS",
            Provider::CloudSql => "Postgres on Cloud SQL",
            Provider::Azure => "Postgres on Azure",
        }
    }

    /// How a setting of the server is changed.
    pub fn set(self, name: &str, value: &str, effect: Effect) -> String {
        match (self, effect) {
            (Provider::Plain, Effect::Restart) => {
                format!("Run: ALTER SYSTEM SET {name} = {}; and restart Postgres.", literal(value))
            }
            (Provider::Plain, Effect::Reload) => {
                format!(
                    "Run: ALTER SYSTEM SET {name} = {}; SELECT pg_reload_conf();",
                    literal(value)
                )
            }
            (Provider::Rds, Effect::Restart) => {
                format!("Set {name} = {value} in the parameter group, and reboot the instance.")
            }
            (Provider::Rds, Effect::Reload) => {
                format!("Set {name} = {value} in the parameter group.")
            }
            (Provider::CloudSql, _) => format!(
                "Set the database flag {name} to {value} (gcloud sql instances patch INSTANCE \
                 --database-flags={name}={value}, with all other flags)."
            ),
            (Provider::Azure, Effect::Restart) => {
                format!("Set the server parameter {name} to {value}, and restart the server.")
            }
            (Provider::Azure, Effect::Reload) => {
                format!("Set the server parameter {name} to {value}.")
            }
        }
    }

    pub fn set_wal_level(self) -> String {
        match self {
            Provider::Plain | Provider::Azure => self.set("wal_level", "logical", Effect::Restart),
            Provider::Rds => self.set("rds.logical_replication", "1", Effect::Restart),
            Provider::CloudSql => self.set("cloudsql.logical_decoding", "on", Effect::Restart),
        }
    }

    pub fn grant_replication(self, role: &str) -> String {
        let role = ident(role);
        match self {
            Provider::Rds => format!("Run: GRANT rds_replication TO {role};"),
            Provider::Plain | Provider::CloudSql | Provider::Azure => {
                format!("Run: ALTER ROLE {role} REPLICATION;")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_provider_has_its_own_words() {
        for (provider, wal_level, replication) in [
            (
                Provider::Plain,
                "Run: ALTER SYSTEM SET wal_level = 'logical'; and restart Postgres.",
                "Run: ALTER ROLE \"r\"\"x\" REPLICATION;",
            ),
            (
                Provider::Rds,
                "Set rds.logical_replication = 1 in the parameter group, and reboot the instance.",
                "Run: GRANT rds_replication TO \"r\"\"x\";",
            ),
            (
                Provider::Azure,
                "Set the server parameter wal_level to logical, and restart the server.",
                "Run: ALTER ROLE \"r\"\"x\" REPLICATION;",
            ),
        ] {
            assert_eq!(provider.set_wal_level(), wal_level);
            assert_eq!(provider.grant_replication("r\"x"), replication);
        }
        assert!(Provider::CloudSql.set_wal_level().contains("cloudsql.logical_decoding=on"));
        let reload = Provider::Plain.set("a", "b'c", Effect::Reload);
        assert_eq!(reload, "Run: ALTER SYSTEM SET a = 'b''c'; SELECT pg_reload_conf();");
    }
}
