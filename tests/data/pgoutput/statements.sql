-- What the recordings of this folder are of. A blank line ends what is sent to the server at once;
-- without BEGIN that is one transaction. Every time is written out, so that nothing depends on when
-- it was recorded.

-- Rows that are too long have all their longer values TOASTed, uncompressed ones as they are.
ALTER TABLE "TaskRun" SET (toast_tuple_target = 128);
ALTER TABLE "TaskRun" ALTER COLUMN "output" SET STORAGE EXTERNAL;
ALTER TABLE "TaskRun" ALTER COLUMN "error" SET STORAGE EXTERNAL;
ALTER TABLE "TaskRun" ALTER COLUMN "payload" SET STORAGE EXTERNAL;

-- Two rows in one transaction: one with ordinary values, one with values that are hard to hold.
BEGIN;
INSERT INTO "TaskRun" ("id", "organizationId", "projectId", "runtimeEnvironmentId",
    "environmentType", "createdAt", "updatedAt", "status", "friendlyId", "attemptNumber", "engine",
    "taskIdentifier", "queue", "masterQueue", "spanId", "traceId", "usageDurationMs",
    "costInCents", "baseCostInCents", "payload", "output", "error", "runTags", "depth", "isTest",
    "isWarmStart", "annotations", "idempotencyKeyOptions", "maxDurationInSeconds")
VALUES ('run_1', 'org', 'proj', 'env', 'PRODUCTION', '2024-02-29 12:34:56.789',
    '2024-02-29 12:34:57', 'EXECUTING', 'run_f1', 3, 'V2', 'task', 'task/q', 'eu:1', 'span',
    'trace', 2147483647, 0.1, 1e-7, '{"π": [1, 2.50, "\ud83d\ude00"]}', '[true, null, 1.5]',
    '{"type": "BUILT_IN_ERROR", "name": "TypeError", "message": "x is 12345"}',
    '{plain,"with \"quotes\"","comma, {brace}",NULL,"NULL","back\\slash",""," "}', 1, true, true,
    '{"triggerSource": "api", "triggerAction": "trigger", "rootTriggerSource": "sdk"}',
    '{"key": "order \"7\"", "scope": "run"}', 4000000);
INSERT INTO "TaskRun" ("id", "organizationId", "projectId", "runtimeEnvironmentId",
    "environmentType", "createdAt", "updatedAt", "friendlyId", "attemptNumber", "taskIdentifier",
    "queue", "spanId", "traceId", "usageDurationMs", "costInCents", "baseCostInCents", "payload",
    "output", "error", "delayUntil", "startedAt", "queuedAt", "completedAt")
VALUES ('run_2', 'org', 'proj', 'env', 'DEVELOPMENT', '1969-12-31 23:59:59.999', 'infinity',
    'run_f2', 300, 'task', 'q', 's', 't', -1, 'NaN', '-Infinity',
    '"' || repeat('long ', 330) || '"', '"' || repeat('output ', 5) || '"',
    jsonb_build_object('message', repeat('error ', 5)), 'infinity', '-infinity',
    '0044-03-15 12:00:00 BC', '294276-12-31 23:59:59.999');
COMMIT;

-- Another sorting key under the same id.
UPDATE "TaskRun" SET "status" = 'COMPLETED_WITH_ERRORS', "costInCents" = 1.0 / 3,
    "projectId" = 'proj_moved' WHERE "id" = 'run_1';

-- What made the row too long goes. The other TOASTed values are not touched and stay where they are,
-- here and where the key changes.
UPDATE "TaskRun" SET "status" = 'CRASHED', "payload" = 'not JSON' WHERE "id" = 'run_2';

UPDATE "TaskRun" SET "id" = 'run_3' WHERE "id" = 'run_2';

DELETE FROM "TaskRun" WHERE "id" = 'run_3';

-- Of three rows one is rolled back to a savepoint.
BEGIN;
INSERT INTO "Session" ("id", "friendlyId", "type", "projectId", "runtimeEnvironmentId",
    "environmentType", "organizationId", "taskIdentifier", "tags", "metadata", "createdAt",
    "updatedAt", "triggerConfig")
VALUES ('session_1', 'session_f1', 'chat', 'proj', 'env', 'STAGING', 'org', 'task',
    '{{a,b},{"c d",NULL}}', '{"1": {"b": [18446744073709551616, -0]}, "ü": "\t\""}', '2024-01-01',
    '2024-01-01', '{}');
SAVEPOINT first;
INSERT INTO "Session" ("id", "friendlyId", "type", "projectId", "runtimeEnvironmentId",
    "environmentType", "organizationId", "taskIdentifier", "createdAt", "updatedAt", "triggerConfig")
VALUES ('session_2', 'session_f2', 'chat', 'proj', 'env', 'PREVIEW', 'org', 'task', '2024-01-02',
    '2024-01-02', '{}');
ROLLBACK TO first;
INSERT INTO "Session" ("id", "friendlyId", "externalId", "type", "projectId",
    "runtimeEnvironmentId", "environmentType", "organizationId", "taskIdentifier", "tags",
    "metadata", "createdAt", "updatedAt", "expiresAt", "triggerConfig")
VALUES ('session_3', 'session_f3', 'ext', 'chat', 'proj', 'env', 'PREVIEW', 'org', 'task',
    '[0:1]={x,y}', '[{"a": {}}, null]', '2024-01-03', '2024-01-03',
    '2024-01-04 00:00:00.5', '{}');
RELEASE first;
COMMIT;

-- A transaction of which nothing is published.
CREATE TABLE unpublished AS SELECT 1 AS n;

-- The relation changes: a column more, another type, another name, a new label of an enum.
ALTER TABLE "Session" ADD COLUMN "note" text;
ALTER TABLE "Session" ALTER COLUMN "currentRunVersion" TYPE bigint;
ALTER TABLE "Session" RENAME COLUMN "streamBasinName" TO "basin";
ALTER TYPE "RuntimeEnvironmentType" ADD VALUE 'SANDBOX';

UPDATE "Session" SET "note" = 'n', "closedReason" = '', "closedAt" = '2024-01-05'
    WHERE "id" = 'session_3';

INSERT INTO "Session" ("id", "friendlyId", "type", "projectId", "runtimeEnvironmentId",
    "environmentType", "organizationId", "taskIdentifier", "createdAt", "updatedAt",
    "triggerConfig", "note")
SELECT 'session_' || n, 'session_f' || n, 'chat', 'proj', 'env', 'SANDBOX', 'org', 'task',
    '2024-01-06', '2024-01-06', '{}', '' FROM generate_series(4, 5) AS n;

DELETE FROM "Session" WHERE "id" IN ('session_1', 'session_4');

TRUNCATE "Session" RESTART IDENTITY CASCADE;

-- Rows that another replication brought here.
SELECT pg_replication_origin_create('elsewhere');

SELECT pg_replication_origin_session_setup('elsewhere');

INSERT INTO "Session" ("id", "friendlyId", "type", "projectId", "runtimeEnvironmentId",
    "environmentType", "organizationId", "taskIdentifier", "createdAt", "updatedAt", "triggerConfig")
VALUES ('session_6', 'session_f6', 'chat', 'proj', 'env', 'PRODUCTION', 'org', 'task', '2024-01-07',
    '2024-01-07', '{}');

SELECT pg_replication_origin_session_reset();

SELECT pg_replication_origin_drop('elsewhere');
