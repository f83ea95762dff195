-- The user of walhouse in ClickHouse, with what it needs and nothing else. Fill in the two names
-- and run it as a user who may grant; running it again is harmless:
--
--   sed -e s/WALHOUSE_USER/walhouse/ -e s/WALHOUSE_PASSWORD/SECRET/ scripts/roles/clickhouse.sql |
--       clickhouse-client --host clickhouse.internal --user admin --ask-password --multiquery

CREATE USER IF NOT EXISTS `WALHOUSE_USER` IDENTIFIED WITH sha256_password BY 'WALHOUSE_PASSWORD';

-- CREATE is for the database and tables that are missing; leave it out once they are there, with
-- REPLICATION_CREATE_TABLES=0. The database is not made here: the first of trigger.dev's own
-- migrations makes it, and fails where it is there.
GRANT SELECT, INSERT, CREATE DATABASE, CREATE TABLE ON trigger_dev.* TO `WALHOUSE_USER`;

-- With replicated tables: to bring a replica up to date before it is read.
GRANT SYSTEM SYNC REPLICA ON trigger_dev.* TO `WALHOUSE_USER`;

-- For the trial row of `walhouse check`, which is left out without it. ClickHouse 24.10 or newer.
GRANT DROP TABLE ON trigger_dev.walhouse_check_* TO `WALHOUSE_USER`;

-- With REPLICATION_CLICKHOUSE_CLUSTER, take the dashes away: to create tables on all of its hosts. Run
-- the statements of this file with ON CLUSTER then, or have users in replicated access storage.
-- GRANT CLUSTER ON *.* TO `WALHOUSE_USER`;
