-- Every statement of queuedtask, by name. Written by a test, from the code:
-- QUEUEDTASK_TEST_UPDATE_GOLDEN=1 pytest tests/db/test_statement.py

-- add
WITH added AS (
    INSERT INTO queued_tasks (id, name, state, context, function, args, kwargs, channel, priority,
        date_scheduled, max_retries, timeout, meta)
    VALUES (CAST(%(id)s AS UUID), CAST(%(name)s AS TEXT), CASE WHEN (coalesce(CAST(%(run_at)s AS TIMESTAMP
        WITH TIME ZONE), clock_timestamp() + CAST(%(delay)s AS DOUBLE PRECISION) * interval '1 second') >
        clock_timestamp()) THEN 'waiting' ELSE 'enqueued' END, CAST(%(context)s AS JSONB), CAST(%(function)s
        AS TEXT), CAST(%(args)s AS JSONB), CAST(%(kwargs)s AS JSONB), CAST(%(channel)s AS TEXT),
        CAST(%(priority)s AS INTEGER), coalesce(CAST(%(run_at)s AS TIMESTAMP WITH TIME ZONE),
        clock_timestamp() + CAST(%(delay)s AS DOUBLE PRECISION) * interval '1 second'), CAST(%(max_retries)s
        AS INTEGER), CAST(%(timeout)s AS DOUBLE PRECISION), CAST(%(meta)s AS JSONB))
    RETURNING queued_tasks.id
)
SELECT added.id
FROM added;

-- add_and_notify
WITH added AS (
    INSERT INTO queued_tasks (id, name, state, context, function, args, kwargs, channel, priority,
        date_scheduled, max_retries, timeout, meta)
    VALUES (CAST(%(id)s AS UUID), CAST(%(name)s AS TEXT), CASE WHEN (coalesce(CAST(%(run_at)s AS TIMESTAMP
        WITH TIME ZONE), clock_timestamp() + CAST(%(delay)s AS DOUBLE PRECISION) * interval '1 second') >
        clock_timestamp()) THEN 'waiting' ELSE 'enqueued' END, CAST(%(context)s AS JSONB), CAST(%(function)s
        AS TEXT), CAST(%(args)s AS JSONB), CAST(%(kwargs)s AS JSONB), CAST(%(channel)s AS TEXT),
        CAST(%(priority)s AS INTEGER), coalesce(CAST(%(run_at)s AS TIMESTAMP WITH TIME ZONE),
        clock_timestamp() + CAST(%(delay)s AS DOUBLE PRECISION) * interval '1 second'), CAST(%(max_retries)s
        AS INTEGER), CAST(%(timeout)s AS DOUBLE PRECISION), CAST(%(meta)s AS JSONB))
    RETURNING queued_tasks.id
)
SELECT added.id, pg_notify(CAST(%(notify_channel)s AS TEXT), '') AS pg_notify_1
FROM added;

-- add_attempts
INSERT INTO queued_task_attempts (queued_task_id, attempt, outcome, error_type, error_message,
    error_traceback, exit_signal, memory_bytes, worker, date_started)
SELECT failed.id, failed.attempt, failed.outcome, failed.error_type, failed.error_message,
    failed.error_traceback, failed.exit_signal, failed.memory_byte, CAST(%(worker)s AS INTEGER) AS anon_1,
    clock_timestamp() - failed.second * interval '1 second' AS anon_2
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE PRECISION[]),
    CAST(%(outcomes)s AS TEXT[]), CAST(%(error_types)s AS TEXT[]), CAST(%(error_messages)s AS TEXT[]),
    CAST(%(error_tracebacks)s AS TEXT[]), CAST(%(exit_signals)s AS TEXT[]), CAST(%(memory_bytes)s AS
    BIGINT[])) AS failed(id, attempt, second, outcome, error_type, error_message, error_traceback,
    exit_signal, memory_byte);

-- add_logs
INSERT INTO queued_task_logs (queued_task_id, attempt, type, name, message, date_created)
SELECT line.task_id, line.attempt, line.type, line.name, line.message, clock_timestamp() - line.second *
    interval '1 second' AS anon_1
FROM unnest(CAST(%(task_ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(types)s AS TEXT[]),
    CAST(%(names)s AS TEXT[]), CAST(%(messages)s AS TEXT[]), CAST(%(seconds)s AS DOUBLE PRECISION[])) WITH
    ORDINALITY AS line(task_id, attempt, type, name, message, second, position)
JOIN queued_tasks ON queued_tasks.id = line.task_id
WHERE queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = line.attempt
ORDER BY line.position;

-- add_many
WITH added AS (
    INSERT INTO queued_tasks (id, name, state, function, args, kwargs, channel, priority, date_scheduled,
        timeout, max_retries, context, meta)
    SELECT spec.id AS id, spec.name AS name, CASE WHEN (coalesce(spec.run_at, clock_timestamp() + spec.delay *
        interval '1 second') > clock_timestamp()) THEN 'waiting' ELSE 'enqueued' END AS anon_2, spec.function
        AS function, spec.arg AS arg, spec.kwarg AS kwarg, spec.channel AS channel, spec.priority AS priority,
        coalesce(spec.run_at, clock_timestamp() + spec.delay * interval '1 second') AS coalesce_1,
        spec.timeout AS timeout, spec.max_retrie AS max_retrie, spec.context AS context, spec.meta AS meta
    FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(names)s AS TEXT[]), CAST(%(functions)s AS TEXT[]),
        CAST(%(args)s AS JSONB[]), CAST(%(kwargs)s AS JSONB[]), CAST(%(channels)s AS TEXT[]),
        CAST(%(prioritys)s AS INTEGER[]), CAST(%(delays)s AS DOUBLE PRECISION[]), CAST(%(run_ats)s AS
        TIMESTAMP WITH TIME ZONE[]), CAST(%(timeouts)s AS DOUBLE PRECISION[]), CAST(%(max_retries)s AS
        INTEGER[]), CAST(%(contexts)s AS JSONB[]), CAST(%(metas)s AS JSONB[])) AS spec(id, name, function,
        arg, kwarg, channel, priority, delay, run_at, timeout, max_retrie, context, meta)
    RETURNING queued_tasks.id
)
SELECT (
    SELECT count(*) AS count_1
    FROM added
) AS anon_1;

-- add_many_and_notify
WITH added AS (
    INSERT INTO queued_tasks (id, name, state, function, args, kwargs, channel, priority, date_scheduled,
        timeout, max_retries, context, meta)
    SELECT spec.id AS id, spec.name AS name, CASE WHEN (coalesce(spec.run_at, clock_timestamp() + spec.delay *
        interval '1 second') > clock_timestamp()) THEN 'waiting' ELSE 'enqueued' END AS anon_2, spec.function
        AS function, spec.arg AS arg, spec.kwarg AS kwarg, spec.channel AS channel, spec.priority AS priority,
        coalesce(spec.run_at, clock_timestamp() + spec.delay * interval '1 second') AS coalesce_1,
        spec.timeout AS timeout, spec.max_retrie AS max_retrie, spec.context AS context, spec.meta AS meta
    FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(names)s AS TEXT[]), CAST(%(functions)s AS TEXT[]),
        CAST(%(args)s AS JSONB[]), CAST(%(kwargs)s AS JSONB[]), CAST(%(channels)s AS TEXT[]),
        CAST(%(prioritys)s AS INTEGER[]), CAST(%(delays)s AS DOUBLE PRECISION[]), CAST(%(run_ats)s AS
        TIMESTAMP WITH TIME ZONE[]), CAST(%(timeouts)s AS DOUBLE PRECISION[]), CAST(%(max_retries)s AS
        INTEGER[]), CAST(%(contexts)s AS JSONB[]), CAST(%(metas)s AS JSONB[])) AS spec(id, name, function,
        arg, kwarg, channel, priority, delay, run_at, timeout, max_retrie, context, meta)
    RETURNING queued_tasks.id
)
SELECT (
    SELECT count(*) AS count_1
    FROM added
) AS anon_1, pg_notify(CAST(%(notify_channel)s AS TEXT), '') AS pg_notify_1;

-- attempts
SELECT queued_task_attempts.attempt, queued_task_attempts.outcome, queued_task_attempts.error_type,
    queued_task_attempts.error_message, queued_task_attempts.error_traceback, queued_task_attempts.worker,
    queued_task_attempts.date_started, queued_task_attempts.date_done, queued_task_attempts.exit_signal,
    queued_task_attempts.memory_bytes
FROM queued_task_attempts
WHERE queued_task_attempts.queued_task_id = CAST(%(id)s AS UUID)
ORDER BY queued_task_attempts.attempt, queued_task_attempts.id;

-- call_off
UPDATE queued_tasks
SET state='cancelled', date_started=coalesce(queued_tasks.date_started, clock_timestamp() - ended.second *
    interval '1 second'), date_done=clock_timestamp(), context=coalesce(ended.context, queued_tasks.context),
    error_message=ended.error_message, error_type=ended.error_type, error_traceback=ended.error_traceback
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE PRECISION[]),
    CAST(%(contexts)s AS JSONB[]), CAST(%(error_types)s AS TEXT[]), CAST(%(error_messages)s AS TEXT[]),
    CAST(%(error_tracebacks)s AS TEXT[])) AS ended(id, attempt, second, context, error_type, error_message,
    error_traceback)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = ended.id
AND queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = ended.attempt
RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.attempt;

-- cancel_backends
SELECT pg_cancel_backend(backend.pid) AS pg_cancel_backend_1
FROM unnest(CAST(%(pids)s AS INTEGER[])) AS backend(pid);

-- claim
WITH claimed AS (
    UPDATE queued_tasks
    SET state='doing', date_started=NULL, attempt=(queued_tasks.attempt + 1), claimed_by=CAST(%(worker)s AS
        INTEGER)
    WHERE queued_tasks.id = ANY (array((
        SELECT queued_tasks.id
        FROM queued_tasks
        WHERE queued_tasks.state IN ('enqueued')
        ORDER BY queued_tasks.priority DESC, queued_tasks.date_enqueued
        LIMIT CAST(%(limit)s AS INTEGER)
        FOR NO KEY UPDATE SKIP LOCKED
    )))
    AND queued_tasks.state IN ('enqueued')
    RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.function,
        CAST(queued_tasks.args AS TEXT) AS args, CAST(queued_tasks.kwargs AS TEXT) AS kwargs,
        CAST(queued_tasks.context AS TEXT) AS context, queued_tasks.attempt, queued_tasks.failures,
        queued_tasks.max_retries, queued_tasks.timeout, queued_tasks.lost_count, queued_tasks.priority,
        queued_tasks.date_enqueued
)
SELECT claimed.id, claimed.name, claimed.function, claimed.args, claimed.kwargs, claimed.context,
    claimed.attempt, claimed.failures, claimed.max_retries, claimed.timeout, claimed.lost_count
FROM claimed
ORDER BY claimed.priority DESC, claimed.date_enqueued;

-- clear
DELETE
FROM queued_tasks
WHERE queued_tasks.id = ANY (array((
    SELECT queued_tasks.id
    FROM queued_tasks
    WHERE queued_tasks.state IN ('waiting', 'enqueued')
    ORDER BY queued_tasks.id
    LIMIT CAST(%(limit)s AS INTEGER)
    FOR NO KEY UPDATE SKIP LOCKED
)))
RETURNING CAST(queued_tasks.id AS TEXT) AS id;

-- count_states
SELECT queued_tasks.state, count(*) AS count
FROM queued_tasks
GROUP BY queued_tasks.state;

-- demo_current
SELECT CAST(queued_tasks.args AS TEXT) AS args, CAST(EXTRACT(epoch FROM clock_timestamp() -
    queued_tasks.date_started) AS DOUBLE PRECISION) AS age
FROM queued_tasks
WHERE queued_tasks.id BETWEEN CAST(%(first)s AS UUID)
AND CAST(%(last)s AS UUID)
AND CAST((queued_tasks.meta ->> %(meta_1)s) AS VARCHAR) = CAST(%(run)s AS TEXT)
AND queued_tasks.state = 'doing'
ORDER BY queued_tasks.date_started, queued_tasks.date_enqueued
LIMIT CAST(%(limit)s AS INTEGER);

-- demo_failed
SELECT CAST(queued_tasks.args AS TEXT) AS args, queued_tasks.error_type, queued_tasks.error_message
FROM queued_tasks
WHERE queued_tasks.id BETWEEN CAST(%(first)s AS UUID)
AND CAST(%(last)s AS UUID)
AND CAST((queued_tasks.meta ->> %(meta_1)s) AS VARCHAR) = CAST(%(run)s AS TEXT)
AND queued_tasks.state = 'failed'
ORDER BY queued_tasks.id
LIMIT CAST(%(limit)s AS INTEGER);

-- demo_slowest
SELECT CAST(queued_tasks.args AS TEXT) AS args, CAST(EXTRACT(epoch FROM queued_tasks.date_done -
    queued_tasks.date_started) AS DOUBLE PRECISION) AS seconds
FROM queued_tasks
WHERE queued_tasks.id BETWEEN CAST(%(first)s AS UUID)
AND CAST(%(last)s AS UUID)
AND CAST((queued_tasks.meta ->> %(meta_1)s) AS VARCHAR) = CAST(%(run)s AS TEXT)
AND queued_tasks.date_started IS NOT NULL
AND queued_tasks.state = 'done'
ORDER BY queued_tasks.date_done - queued_tasks.date_started DESC
LIMIT CAST(%(limit)s AS INTEGER);

-- demo_states
SELECT queued_tasks.state, count(*) AS count
FROM queued_tasks
WHERE queued_tasks.id BETWEEN CAST(%(first)s AS UUID)
AND CAST(%(last)s AS UUID)
AND CAST((queued_tasks.meta ->> %(meta_1)s) AS VARCHAR) = CAST(%(run)s AS TEXT)
GROUP BY queued_tasks.state;

-- demo_totals
SELECT coalesce(sum(CAST(CAST(queued_tasks.result ->> %(result_1)s AS VARCHAR) AS BIGINT)), 0) AS bytes,
    coalesce(sum(CAST(CAST(queued_tasks.result ->> %(result_2)s AS VARCHAR) AS BIGINT)), 0) AS lines,
    coalesce(sum(CAST(CAST(queued_tasks.result ->> %(result_3)s AS VARCHAR) AS BIGINT)), 0) AS definitions,
    count(*) FILTER (WHERE jsonb_exists(queued_tasks.result, 'syntax_error')) AS unparsed, count(DISTINCT
    queued_tasks.claimed_by) AS workers, CAST(EXTRACT(epoch FROM max(queued_tasks.date_done) -
    min(queued_tasks.date_started)) AS DOUBLE PRECISION) AS seconds
FROM queued_tasks
WHERE queued_tasks.id BETWEEN CAST(%(first)s AS UUID)
AND CAST(%(last)s AS UUID)
AND CAST((queued_tasks.meta ->> %(meta_1)s) AS VARCHAR) = CAST(%(run)s AS TEXT);

-- disown
UPDATE queued_tasks
SET state='enqueued', date_enqueued=clock_timestamp(), date_started=NULL, date_done=NULL, claimed_by=NULL
WHERE queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.id != ALL (CAST(%(ids)s AS UUID[]))
AND queued_tasks.state IN ('doing')
RETURNING CAST(queued_tasks.id AS TEXT) AS id;

-- disown_all
UPDATE queued_tasks
SET state='enqueued', date_enqueued=clock_timestamp(), date_started=NULL, date_done=NULL, claimed_by=NULL
WHERE queued_tasks.state IN ('doing');

-- fail
UPDATE queued_tasks
SET state='failed', date_started=coalesce(queued_tasks.date_started, clock_timestamp() - ended.second *
    interval '1 second'), date_done=clock_timestamp(), context=coalesce(ended.context, queued_tasks.context),
    error_message=ended.error_message, error_type=ended.error_type, error_traceback=ended.error_traceback,
    failures=(queued_tasks.failures + 1), lost_count=(queued_tasks.lost_count + ended.lost)
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE PRECISION[]),
    CAST(%(contexts)s AS JSONB[]), CAST(%(error_types)s AS TEXT[]), CAST(%(error_messages)s AS TEXT[]),
    CAST(%(error_tracebacks)s AS TEXT[]), CAST(%(losts)s AS INTEGER[])) AS ended(id, attempt, second, context,
    error_type, error_message, error_traceback, lost)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = ended.id
AND queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = ended.attempt
RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.attempt;

-- find
SELECT CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.state, queued_tasks.function,
    CAST(queued_tasks.args AS TEXT) AS args, CAST(queued_tasks.kwargs AS TEXT) AS kwargs,
    queued_tasks.channel, queued_tasks.priority, CAST(queued_tasks.parents AS TEXT[]) AS parents,
    queued_tasks.date_created, queued_tasks.date_enqueued, queued_tasks.date_scheduled,
    queued_tasks.date_started, queued_tasks.date_done, queued_tasks.attempt, queued_tasks.failures,
    queued_tasks.max_retries, queued_tasks.lost_count, queued_tasks.requeues, queued_tasks.timeout,
    queued_tasks.claimed_by, CAST(queued_tasks.context AS TEXT) AS context, CAST(queued_tasks.result AS TEXT)
    AS result, queued_tasks.error_type, queued_tasks.error_message, queued_tasks.error_traceback,
    CAST(queued_tasks.meta AS TEXT) AS meta
FROM queued_tasks
WHERE (CAST(%(states)s AS TEXT[]) IS NULL OR queued_tasks.state = ANY (CAST(%(states)s AS TEXT[])))
AND (CAST(%(name)s AS TEXT) IS NULL OR queued_tasks.name = CAST(%(name)s AS TEXT))
AND (CAST(%(channel)s AS TEXT) IS NULL OR queued_tasks.channel = CAST(%(channel)s AS TEXT))
ORDER BY queued_tasks.id DESC
LIMIT CAST(%(limit)s AS INTEGER);

-- finish
UPDATE queued_tasks
SET state='done', date_started=coalesce(queued_tasks.date_started, clock_timestamp() - ended.second * interval
    '1 second'), date_done=clock_timestamp(), context=coalesce(ended.context, queued_tasks.context),
    result=ended.result, error_message=NULL, error_type=NULL, error_traceback=NULL
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE PRECISION[]),
    CAST(%(contexts)s AS JSONB[]), CAST(%(results)s AS JSONB[])) AS ended(id, attempt, second, context,
    result)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = ended.id
AND queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = ended.attempt
RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.attempt;

-- hand_back
UPDATE queued_tasks
SET state='enqueued', date_enqueued=clock_timestamp(), date_started=NULL, date_done=NULL,
    context=coalesce(ended.context, queued_tasks.context), claimed_by=NULL
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE PRECISION[]),
    CAST(%(contexts)s AS JSONB[])) AS ended(id, attempt, second, context)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = ended.id
AND queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = ended.attempt
RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.attempt;

-- heartbeat
UPDATE queued_task_workers
SET max_workers=CAST(%(slots)s AS INTEGER), active_workers=CAST(%(active)s AS INTEGER),
    idle_workers=(CAST(%(slots)s AS INTEGER) - CAST(%(active)s AS INTEGER)), is_running=true,
    last_heartbeat=clock_timestamp(), stuck=CAST(%(stuck)s AS JSONB), refused=CAST(%(refused)s AS INTEGER)
WHERE queued_task_workers.id = CAST(%(worker)s AS INTEGER);

-- keep_alive
UPDATE queued_task_workers
SET last_heartbeat=clock_timestamp()
WHERE queued_task_workers.id = ANY (CAST(%(workers)s AS INTEGER[]))
AND queued_task_workers.is_running
RETURNING queued_task_workers.id;

-- lock_claimed
SELECT CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.function, CAST(queued_tasks.args
    AS TEXT) AS args, CAST(queued_tasks.kwargs AS TEXT) AS kwargs, CAST(queued_tasks.context AS TEXT) AS
    context, queued_tasks.attempt, queued_tasks.failures, queued_tasks.max_retries, queued_tasks.timeout,
    queued_tasks.lost_count, CAST(EXTRACT(epoch FROM clock_timestamp() - queued_tasks.date_started) AS DOUBLE
    PRECISION) AS age
FROM queued_tasks
WHERE queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
ORDER BY queued_tasks.id
LIMIT CAST(%(limit)s AS INTEGER)
FOR NO KEY UPDATE SKIP LOCKED;

-- lock_silent_worker
SELECT queued_task_workers.id
FROM queued_task_workers
WHERE queued_task_workers.id = CAST(%(worker)s AS INTEGER)
AND (CAST(%(last_heartbeat)s AS TIMESTAMP WITH TIME ZONE) IS NULL OR queued_task_workers.last_heartbeat =
    CAST(%(last_heartbeat)s AS TIMESTAMP WITH TIME ZONE))
FOR NO KEY UPDATE SKIP LOCKED;

-- logs
SELECT queued_task_logs.id, queued_task_logs.date_created, queued_task_logs.type, queued_task_logs.message,
    queued_task_logs.name, queued_task_logs.attempt
FROM queued_task_logs
WHERE queued_task_logs.queued_task_id = CAST(%(id)s AS UUID)
AND queued_task_logs.id > CAST(%(after)s AS BIGINT)
ORDER BY queued_task_logs.id;

-- lose
UPDATE queued_tasks
SET state='failed', date_started=coalesce(queued_tasks.date_started, clock_timestamp() - ended.second *
    interval '1 second'), date_done=clock_timestamp(), context=coalesce(ended.context, queued_tasks.context),
    error_message=ended.error_message, error_type=ended.error_type, error_traceback=ended.error_traceback,
    lost_count=(queued_tasks.lost_count + ended.lost)
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE PRECISION[]),
    CAST(%(contexts)s AS JSONB[]), CAST(%(error_types)s AS TEXT[]), CAST(%(error_messages)s AS TEXT[]),
    CAST(%(error_tracebacks)s AS TEXT[]), CAST(%(losts)s AS INTEGER[])) AS ended(id, attempt, second, context,
    error_type, error_message, error_traceback, lost)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = ended.id
AND queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = ended.attempt
RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.attempt;

-- notify
SELECT pg_notify(CAST(%(notify_channel)s AS TEXT), '') AS pg_notify_1;

-- oldest_enqueued
SELECT CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.date_enqueued, CAST(EXTRACT(epoch
    FROM clock_timestamp() - queued_tasks.date_enqueued) AS DOUBLE PRECISION) AS age
FROM queued_tasks
WHERE queued_tasks.state = 'enqueued'
ORDER BY queued_tasks.date_enqueued
LIMIT 1;

-- owners
SELECT owners.id, queued_task_workers.last_heartbeat, queued_task_workers.lease
FROM (
    SELECT queued_tasks.claimed_by AS id
    FROM queued_tasks
    WHERE queued_tasks.state = 'doing'
    AND queued_tasks.claimed_by IS NOT NULL UNION
    SELECT queued_task_workers.id AS id
    FROM queued_task_workers
    WHERE queued_task_workers.is_running
) AS owners
LEFT OUTER JOIN queued_task_workers ON queued_task_workers.id = owners.id;

-- rebuild_dependencies
INSERT INTO queued_task_dependencies (task, parent)
SELECT queued_tasks.id, parent.id AS id_1
FROM queued_tasks
JOIN unnest(queued_tasks.parents) AS edge(parent) ON true
JOIN queued_tasks AS parent ON parent.id = edge.parent
ON CONFLICT DO NOTHING;

-- recount_parents
UPDATE queued_tasks
SET pending_parents=(
    SELECT count(*) AS count_1
    FROM queued_task_dependencies
    JOIN queued_tasks AS parent ON parent.id = queued_task_dependencies.parent
    WHERE queued_task_dependencies.task = queued_tasks.id
    AND (parent.state NOT IN ('done', 'failed', 'cancelled', 'stopped'))
)
WHERE queued_tasks.state IN ('waiting');

-- register_worker
INSERT INTO queued_task_workers (server_name, max_workers, idle_workers, pid, supervisor_pid, version, lease)
VALUES (CAST(%(server_name)s AS TEXT), CAST(%(slots)s AS INTEGER), CAST(%(slots)s AS INTEGER), CAST(%(pid)s AS
    INTEGER), CAST(%(supervisor_pid)s AS INTEGER), CAST(%(version)s AS TEXT), CAST(%(lease)s AS DOUBLE
    PRECISION))
RETURNING queued_task_workers.id;

-- release
UPDATE queued_tasks
SET state='enqueued', date_enqueued=clock_timestamp(), date_started=NULL, date_done=NULL, claimed_by=NULL
WHERE queued_tasks.id = ANY (array((
    SELECT queued_tasks.id
    FROM queued_tasks
    WHERE queued_tasks.state IN ('waiting')
    AND queued_tasks.pending_parents <= 0
    AND (queued_tasks.date_scheduled IS NULL OR queued_tasks.date_scheduled <= now())
    ORDER BY queued_tasks.date_scheduled
    LIMIT CAST(%(limit)s AS INTEGER)
    FOR NO KEY UPDATE SKIP LOCKED
)))
AND queued_tasks.state IN ('waiting')
RETURNING CAST(queued_tasks.id AS TEXT) AS id;

-- requeue
UPDATE queued_tasks
SET state='enqueued', date_enqueued=clock_timestamp(), date_started=NULL, date_done=NULL, result=NULL,
    error_message=NULL, error_type=NULL, error_traceback=NULL, date_scheduled=NULL, failures=0, lost_count=0,
    requeues=(queued_tasks.requeues + 1), claimed_by=NULL, cancel_requested=NULL, stop_requested=NULL
WHERE queued_tasks.id = ANY (array((
    SELECT queued_tasks.id
    FROM queued_tasks
    WHERE queued_tasks.state = ANY (CAST(%(states)s AS TEXT[]))
    AND (CAST(%(ids)s AS UUID[]) IS NULL OR queued_tasks.id = ANY (CAST(%(ids)s AS UUID[])))
    AND (CAST(%(name)s AS TEXT) IS NULL OR queued_tasks.name = CAST(%(name)s AS TEXT))
    AND (CAST(%(since)s AS DOUBLE PRECISION) IS NULL OR queued_tasks.date_done >= now() - CAST(%(since)s AS
        DOUBLE PRECISION) * interval '1 second')
    AND (CAST(%(max_requeues)s AS INTEGER) IS NULL OR queued_tasks.requeues < CAST(%(max_requeues)s AS
        INTEGER))
    ORDER BY queued_tasks.date_done
    LIMIT CAST(%(limit)s AS INTEGER)
    FOR NO KEY UPDATE SKIP LOCKED
)))
AND queued_tasks.state IN ('done', 'failed', 'cancelled', 'stopped')
RETURNING CAST(queued_tasks.id AS TEXT) AS id;

-- requeueable
SELECT CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.state, queued_tasks.function,
    CAST(queued_tasks.args AS TEXT) AS args, CAST(queued_tasks.kwargs AS TEXT) AS kwargs,
    queued_tasks.channel, queued_tasks.priority, CAST(queued_tasks.parents AS TEXT[]) AS parents,
    queued_tasks.date_created, queued_tasks.date_enqueued, queued_tasks.date_scheduled,
    queued_tasks.date_started, queued_tasks.date_done, queued_tasks.attempt, queued_tasks.failures,
    queued_tasks.max_retries, queued_tasks.lost_count, queued_tasks.requeues, queued_tasks.timeout,
    queued_tasks.claimed_by, CAST(queued_tasks.context AS TEXT) AS context, CAST(queued_tasks.result AS TEXT)
    AS result, queued_tasks.error_type, queued_tasks.error_message, queued_tasks.error_traceback,
    CAST(queued_tasks.meta AS TEXT) AS meta
FROM queued_tasks
WHERE queued_tasks.state = ANY (CAST(%(states)s AS TEXT[]))
AND (CAST(%(ids)s AS UUID[]) IS NULL OR queued_tasks.id = ANY (CAST(%(ids)s AS UUID[])))
AND (CAST(%(name)s AS TEXT) IS NULL OR queued_tasks.name = CAST(%(name)s AS TEXT))
AND (CAST(%(since)s AS DOUBLE PRECISION) IS NULL OR queued_tasks.date_done >= now() - CAST(%(since)s AS DOUBLE
    PRECISION) * interval '1 second')
AND (CAST(%(max_requeues)s AS INTEGER) IS NULL OR queued_tasks.requeues < CAST(%(max_requeues)s AS INTEGER))
ORDER BY queued_tasks.date_done
LIMIT CAST(%(limit)s AS INTEGER);

-- rescue
UPDATE queued_tasks
SET state='enqueued', date_enqueued=clock_timestamp(), date_started=NULL, date_done=NULL,
    context=coalesce(ended.context, queued_tasks.context), lost_count=(queued_tasks.lost_count + ended.lost),
    claimed_by=NULL
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE PRECISION[]),
    CAST(%(contexts)s AS JSONB[]), CAST(%(losts)s AS INTEGER[])) AS ended(id, attempt, second, context, lost)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = ended.id
AND queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = ended.attempt
RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.attempt;

-- retire_all_workers
UPDATE queued_task_workers
SET active_workers=0, idle_workers=0, is_running=false, stuck='[]';

-- retire_worker
UPDATE queued_task_workers
SET active_workers=0, idle_workers=0, is_running=false, stuck='[]'
WHERE queued_task_workers.id = CAST(%(worker)s AS INTEGER);

-- retry
UPDATE queued_tasks
SET state='waiting', date_started=NULL, date_done=NULL, context=coalesce(ended.context, queued_tasks.context),
    error_message=ended.error_message, error_type=ended.error_type, error_traceback=ended.error_traceback,
    date_scheduled=(clock_timestamp() + ended.delay * interval '1 second'), failures=(queued_tasks.failures +
    1), lost_count=(queued_tasks.lost_count + ended.lost), claimed_by=NULL
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE PRECISION[]),
    CAST(%(contexts)s AS JSONB[]), CAST(%(error_types)s AS TEXT[]), CAST(%(error_messages)s AS TEXT[]),
    CAST(%(error_tracebacks)s AS TEXT[]), CAST(%(delays)s AS DOUBLE PRECISION[]), CAST(%(losts)s AS
    INTEGER[])) AS ended(id, attempt, second, context, error_type, error_message, error_traceback, delay,
    lost)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = ended.id
AND queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = ended.attempt
RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.attempt;

-- running
SELECT CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.claimed_by, queued_tasks.attempt,
    queued_tasks.date_started, queued_tasks.timeout, CAST(EXTRACT(epoch FROM clock_timestamp() -
    queued_tasks.date_started) AS DOUBLE PRECISION) AS age
FROM queued_tasks
WHERE queued_tasks.state = 'doing'
AND queued_tasks.date_started IS NOT NULL
ORDER BY queued_tasks.claimed_by, queued_tasks.date_started;

-- seconds_to_next_due
SELECT CAST(EXTRACT(epoch FROM min(queued_tasks.date_scheduled) - clock_timestamp()) AS DOUBLE PRECISION) AS
    anon_1
FROM queued_tasks
WHERE queued_tasks.state IN ('waiting')
AND queued_tasks.pending_parents <= 0;

-- server_version
SELECT current_setting('server_version') AS current_setting_1, clock_timestamp() AS clock_timestamp_1;

-- stats
SELECT sample.name, count(*) FILTER (WHERE sample.state = 'waiting') AS waiting, count(*) FILTER (WHERE
    sample.state = 'enqueued') AS enqueued, count(*) FILTER (WHERE sample.state = 'doing') AS doing, count(*)
    FILTER (WHERE sample.state = 'done') AS done, count(*) FILTER (WHERE sample.state = 'failed') AS failed,
    count(*) FILTER (WHERE sample.state = 'cancelled') AS cancelled, count(*) FILTER (WHERE sample.state =
    'stopped') AS stopped, sum(sample.failures) AS failures, avg(CAST(EXTRACT(epoch FROM sample.date_done -
    sample.date_started) AS DOUBLE PRECISION)) AS seconds_average, percentile_cont(0.95) WITHIN GROUP (ORDER
    BY CAST(EXTRACT(epoch FROM sample.date_done - sample.date_started) AS DOUBLE PRECISION)) AS seconds_p95,
    count(*) FILTER (WHERE sample.date_done > clock_timestamp() - interval '1 hour') AS ended_last_hour
FROM (
    SELECT queued_tasks.name AS name, queued_tasks.state AS state, queued_tasks.failures AS failures,
        queued_tasks.date_started AS date_started, queued_tasks.date_done AS date_done
    FROM queued_tasks
    ORDER BY queued_tasks.id DESC
    LIMIT CAST(%(sample)s AS INTEGER)
) AS sample
GROUP BY sample.name
ORDER BY count(*) DESC, sample.name;

-- task
SELECT CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.state, queued_tasks.function,
    CAST(queued_tasks.args AS TEXT) AS args, CAST(queued_tasks.kwargs AS TEXT) AS kwargs,
    queued_tasks.channel, queued_tasks.priority, CAST(queued_tasks.parents AS TEXT[]) AS parents,
    queued_tasks.date_created, queued_tasks.date_enqueued, queued_tasks.date_scheduled,
    queued_tasks.date_started, queued_tasks.date_done, queued_tasks.attempt, queued_tasks.failures,
    queued_tasks.max_retries, queued_tasks.lost_count, queued_tasks.requeues, queued_tasks.timeout,
    queued_tasks.claimed_by, CAST(queued_tasks.context AS TEXT) AS context, CAST(queued_tasks.result AS TEXT)
    AS result, queued_tasks.error_type, queued_tasks.error_message, queued_tasks.error_traceback,
    CAST(queued_tasks.meta AS TEXT) AS meta
FROM queued_tasks
WHERE queued_tasks.id = CAST(%(id)s AS UUID);

-- workers
SELECT queued_task_workers.id, queued_task_workers.server_name, queued_task_workers.max_workers,
    queued_task_workers.active_workers, queued_task_workers.idle_workers, queued_task_workers.is_running,
    queued_task_workers.last_heartbeat, queued_task_workers.pid, queued_task_workers.supervisor_pid,
    queued_task_workers.date_started, queued_task_workers.version, queued_task_workers.lease,
    CAST(queued_task_workers.stuck AS TEXT) AS stuck, queued_task_workers.refused, CAST(EXTRACT(epoch FROM
    clock_timestamp() - queued_task_workers.last_heartbeat) AS DOUBLE PRECISION) AS silence
FROM queued_task_workers
WHERE queued_task_workers.is_running OR CAST(%(all)s AS INTEGER) = %(param_1)s
ORDER BY queued_task_workers.id;

-- write_progress
UPDATE queued_tasks
SET date_started=coalesce(queued_tasks.date_started, clock_timestamp() - running.second * interval '1
    second'), context=coalesce(running.context, queued_tasks.context)
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE PRECISION[]),
    CAST(%(contexts)s AS JSONB[])) AS running(id, attempt, second, context)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = running.id
AND queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = running.attempt
RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.attempt;
