-- The role of walhouse in Postgres, with what it needs and nothing else, and the publications.
-- Run it as a superuser (on RDS as the master user, who must own the tables), in the database of
-- the tables; running it again is harmless:
--
--   psql -v role=walhouse -v password=SECRET -f scripts/roles/postgres.sql postgres://admin@db/app
--
-- With `-v read_stats=1` the role may also see other sessions: which transactions hold up a new
-- slot, and how standbys do. Without it walhouse runs all the same and warns of less.
\set ON_ERROR_STOP on
\if :{?read_stats}
\else
    \set read_stats 0
\endif

SELECT current_setting('rds.logical_replication', true) IS NOT NULL AS is_rds \gset

SELECT format('CREATE ROLE %I LOGIN', :'role')
WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = :'role') \gexec

ALTER ROLE :"role" LOGIN PASSWORD :'password';
\if :is_rds
    GRANT rds_replication TO :"role";
\else
    ALTER ROLE :"role" REPLICATION;
\endif

GRANT CONNECT ON DATABASE :"DBNAME" TO :"role";
GRANT USAGE ON SCHEMA public TO :"role";
-- For large values that an update left alone, for backfills, repairs and comparisons.
SELECT format('GRANT SELECT ON public.%I TO %I', relname, :'role')
FROM pg_class WHERE relnamespace = 'public'::regnamespace
  AND relname IN ('TaskRun', 'Session', 'WebhookDelivery') \gexec
\if :read_stats
    GRANT pg_read_all_stats TO :"role";
\endif

-- Made here, the role needs neither CREATE on the database nor to own the tables.
-- Partitions are streamed under the name of their root.
SELECT format('CREATE PUBLICATION %I FOR TABLE public.%I WITH (publish = %L%s)',
              name, of, 'insert, update, delete, truncate',
              CASE relkind WHEN 'p' THEN ', publish_via_partition_root = true' ELSE '' END)
FROM (VALUES ('task_runs_to_clickhouse_v1_publication', 'TaskRun'),
             ('sessions_to_clickhouse_v1_publication', 'Session'),
             ('webhook_deliveries_to_clickhouse_v1_publication', 'WebhookDelivery'))
     AS wanted (name, of)
JOIN pg_class ON relname = of AND relnamespace = 'public'::regnamespace
WHERE NOT EXISTS (SELECT 1 FROM pg_publication WHERE pubname = name) \gexec
