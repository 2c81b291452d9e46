-- Every statement of queuedtask, by name. Written by a test, from the code:
-- QUEUEDTASK_TEST_UPDATE_GOLDEN=1 pytest tests/db/test_statement.py

-- add
INSERT INTO queued_tasks (id, name, state, context, function, args, kwargs, channel, priority, date_scheduled,
    max_retries, timeout, concurrency_key, auto_remove, pickled_function, meta)
VALUES (CAST(%(id)s AS UUID), CAST(%(name)s AS TEXT), CASE WHEN (coalesce(CAST(%(run_at)s AS TIMESTAMP WITH
    TIME ZONE), clock_timestamp() + CAST(%(delay)s AS DOUBLE PRECISION) * interval '1 second') >
    clock_timestamp()) THEN 'waiting' ELSE 'enqueued' END, CAST(%(context)s AS JSONB), CAST(%(function)s AS
    TEXT), CAST(%(args)s AS JSONB), CAST(%(kwargs)s AS JSONB), CAST(%(channel)s AS TEXT), CAST(%(priority)s AS
    INTEGER), coalesce(CAST(%(run_at)s AS TIMESTAMP WITH TIME ZONE), clock_timestamp() + CAST(%(delay)s AS
    DOUBLE PRECISION) * interval '1 second'), CAST(%(max_retries)s AS INTEGER), CAST(%(timeout)s AS DOUBLE
    PRECISION), CAST(%(concurrency_key)s AS TEXT), CAST(%(auto_remove)s AS BOOLEAN),
    decode(CAST(%(pickled_function)s AS TEXT), 'base64'), CAST(%(meta)s AS JSONB));

-- add_and_notify
INSERT INTO queued_tasks (id, name, state, context, function, args, kwargs, channel, priority, date_scheduled,
    max_retries, timeout, concurrency_key, auto_remove, pickled_function, meta)
VALUES (CAST(%(id)s AS UUID), CAST(%(name)s AS TEXT), CASE WHEN (coalesce(CAST(%(run_at)s AS TIMESTAMP WITH
    TIME ZONE), clock_timestamp() + CAST(%(delay)s AS DOUBLE PRECISION) * interval '1 second') >
    clock_timestamp()) THEN 'waiting' ELSE 'enqueued' END, CAST(%(context)s AS JSONB), CAST(%(function)s AS
    TEXT), CAST(%(args)s AS JSONB), CAST(%(kwargs)s AS JSONB), CAST(%(channel)s AS TEXT), CAST(%(priority)s AS
    INTEGER), coalesce(CAST(%(run_at)s AS TIMESTAMP WITH TIME ZONE), clock_timestamp() + CAST(%(delay)s AS
    DOUBLE PRECISION) * interval '1 second'), CAST(%(max_retries)s AS INTEGER), CAST(%(timeout)s AS DOUBLE
    PRECISION), CAST(%(concurrency_key)s AS TEXT), CAST(%(auto_remove)s AS BOOLEAN),
    decode(CAST(%(pickled_function)s AS TEXT), 'base64'), CAST(%(meta)s AS JSONB))
RETURNING pg_notify(CAST(%(notify_channel)s AS TEXT), '') AS pg_notify_1;

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

-- add_family
WITH wish AS (
    SELECT wanted.task AS task, wanted.parent AS parent
    FROM unnest(CAST(%(tasks)s AS UUID[]), CAST(%(parents)s AS UUID[])) AS wanted(task, parent)
), known AS (
    SELECT queued_tasks.id AS id, queued_tasks.state AS state
    FROM queued_tasks
    WHERE queued_tasks.id = ANY (array((
        SELECT DISTINCT wish.parent
        FROM wish
    )))
    ORDER BY queued_tasks.id FOR KEY SHARE
), awaited AS (
    SELECT wish.task AS task, count(*) AS parents
    FROM wish
    LEFT OUTER JOIN known ON known.id = wish.parent
    JOIN unnest(CAST(%(ids)s AS UUID[]), CAST(%(names)s AS TEXT[]), CAST(%(functions)s AS TEXT[]), array((
        SELECT nullif(CAST(argss_value AS JSONB), 'null'::jsonb) AS nullif_1
        FROM json_array_elements(CAST(%(argss)s AS JSON)) AS argss_value
    )), array((
        SELECT nullif(CAST(kwargss_value AS JSONB), 'null'::jsonb) AS nullif_2
        FROM json_array_elements(CAST(%(kwargss)s AS JSON)) AS kwargss_value
    )), CAST(%(channels)s AS TEXT[]), CAST(%(prioritys)s AS INTEGER[]), CAST(%(timeouts)s AS DOUBLE
        PRECISION[]), CAST(%(max_retriess)s AS INTEGER[]), array((
        SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_3
        FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
    )), array((
        SELECT nullif(CAST(metas_value AS JSONB), 'null'::jsonb) AS nullif_4
        FROM json_array_elements(CAST(%(metas)s AS JSON)) AS metas_value
    )), CAST(%(concurrency_keys)s AS TEXT[]), CAST(%(auto_removes)s AS BOOLEAN[]), CAST(%(pickled_functions)s
        AS TEXT[]), CAST(%(on_parent_failures)s AS TEXT[]), CAST(%(delays)s AS DOUBLE PRECISION[]),
        CAST(%(run_ats)s AS TIMESTAMP WITH TIME ZONE[])) AS spec(id, name, function, args, kwargs, channel,
        priority, timeout, max_retries, context, meta, concurrency_key, auto_remove, pickled_function,
        on_parent_failure, delay, run_at) ON spec.id = wish.task
    WHERE (known.state IS NULL OR known.state != 'done')
    AND (known.state IS NULL OR (known.state NOT IN ('done', 'failed', 'cancelled', 'stopped')) OR
        spec.on_parent_failure = 'cancel')
    GROUP BY wish.task
), missing AS (
    SELECT DISTINCT wish.parent AS parent
    FROM wish
    WHERE (wish.parent NOT IN (
        SELECT known.id
        FROM known
    ))
    AND wish.parent != ALL (CAST(%(ids)s AS UUID[]))
), added AS (
    INSERT INTO queued_tasks (id, name, function, args, kwargs, channel, priority, timeout, max_retries,
        context, meta, concurrency_key, auto_remove, pickled_function, date_scheduled, on_parent_failure,
        parent_task, parents, pending_parents, state)
    SELECT spec.id AS id, spec.name AS name, spec.function AS function, spec.args AS args, spec.kwargs AS
        kwargs, spec.channel AS channel, spec.priority AS priority, spec.timeout AS timeout, spec.max_retries
        AS max_retries, spec.context AS context, spec.meta AS meta, spec.concurrency_key AS concurrency_key,
        spec.auto_remove AS auto_remove, decode(spec.pickled_function, 'base64') AS decode_1,
        coalesce(spec.run_at, clock_timestamp() + spec.delay * interval '1 second') AS coalesce_1,
        spec.on_parent_failure AS on_parent_failure, (
        SELECT wish.parent
        FROM wish
        WHERE wish.task = spec.id
        LIMIT 1
    ) AS anon_1, coalesce((
        SELECT array_agg(wish.parent) AS array_agg_1
        FROM wish
        WHERE wish.task = spec.id
    ), CAST('{}' AS UUID[])) AS coalesce_2, coalesce(awaited.parents, 0) AS coalesce_3, CASE WHEN
        (coalesce(awaited.parents, 0) > 0) THEN 'waiting' ELSE CASE WHEN (coalesce(spec.run_at,
        clock_timestamp() + spec.delay * interval '1 second') > clock_timestamp()) THEN 'waiting' ELSE
        'enqueued' END END AS anon_2
    FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(names)s AS TEXT[]), CAST(%(functions)s AS TEXT[]), array((
        SELECT nullif(CAST(argss_value AS JSONB), 'null'::jsonb) AS nullif_1
        FROM json_array_elements(CAST(%(argss)s AS JSON)) AS argss_value
    )), array((
        SELECT nullif(CAST(kwargss_value AS JSONB), 'null'::jsonb) AS nullif_2
        FROM json_array_elements(CAST(%(kwargss)s AS JSON)) AS kwargss_value
    )), CAST(%(channels)s AS TEXT[]), CAST(%(prioritys)s AS INTEGER[]), CAST(%(timeouts)s AS DOUBLE
        PRECISION[]), CAST(%(max_retriess)s AS INTEGER[]), array((
        SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_3
        FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
    )), array((
        SELECT nullif(CAST(metas_value AS JSONB), 'null'::jsonb) AS nullif_4
        FROM json_array_elements(CAST(%(metas)s AS JSON)) AS metas_value
    )), CAST(%(concurrency_keys)s AS TEXT[]), CAST(%(auto_removes)s AS BOOLEAN[]), CAST(%(pickled_functions)s
        AS TEXT[]), CAST(%(on_parent_failures)s AS TEXT[]), CAST(%(delays)s AS DOUBLE PRECISION[]),
        CAST(%(run_ats)s AS TIMESTAMP WITH TIME ZONE[])) AS spec(id, name, function, args, kwargs, channel,
        priority, timeout, max_retries, context, meta, concurrency_key, auto_remove, pickled_function,
        on_parent_failure, delay, run_at)
    LEFT OUTER JOIN awaited ON awaited.task = spec.id
    WHERE NOT (EXISTS (
        SELECT missing.parent
        FROM missing
    ))
), edges AS (
    INSERT INTO queued_task_dependencies (task, parent)
    SELECT wish.task AS task, wish.parent AS parent
    FROM wish
    WHERE NOT (EXISTS (
        SELECT missing.parent
        FROM missing
    ))
)
SELECT CAST(missing.parent AS TEXT) AS parent
FROM missing;

-- add_logs
INSERT INTO queued_task_logs (queued_task_id, attempt, type, name, message, date_created)
SELECT line.task_id, line.attempt, line.type, line.name, line.message, clock_timestamp() - line.second *
    interval '1 second' AS anon_1
FROM unnest(CAST(%(task_ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(types)s AS TEXT[]),
    CAST(%(names)s AS TEXT[]), CAST(%(messages)s AS TEXT[]), CAST(%(seconds)s AS DOUBLE PRECISION[])) WITH
    ORDINALITY AS line(task_id, attempt, type, name, message, second, position)
JOIN queued_tasks ON queued_tasks.id = line.task_id
WHERE queued_tasks.id = ANY (CAST(%(task_ids)s AS UUID[]))
AND queued_tasks.state IN ('doing', 'done')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = line.attempt
ORDER BY line.position;

-- add_many
WITH added AS (
    INSERT INTO queued_tasks (id, name, function, args, kwargs, channel, priority, timeout, max_retries,
        context, meta, concurrency_key, auto_remove, pickled_function, date_scheduled, state)
    SELECT spec.id AS id, spec.name AS name, spec.function AS function, spec.args AS args, spec.kwargs AS
        kwargs, spec.channel AS channel, spec.priority AS priority, spec.timeout AS timeout, spec.max_retries
        AS max_retries, spec.context AS context, spec.meta AS meta, spec.concurrency_key AS concurrency_key,
        spec.auto_remove AS auto_remove, decode(spec.pickled_function, 'base64') AS decode_1,
        coalesce(spec.run_at, clock_timestamp() + spec.delay * interval '1 second') AS coalesce_1, CASE WHEN
        (coalesce(spec.run_at, clock_timestamp() + spec.delay * interval '1 second') > clock_timestamp()) THEN
        'waiting' ELSE 'enqueued' END AS anon_2
    FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(names)s AS TEXT[]), CAST(%(functions)s AS TEXT[]), array((
        SELECT nullif(CAST(argss_value AS JSONB), 'null'::jsonb) AS nullif_1
        FROM json_array_elements(CAST(%(argss)s AS JSON)) AS argss_value
    )), array((
        SELECT nullif(CAST(kwargss_value AS JSONB), 'null'::jsonb) AS nullif_2
        FROM json_array_elements(CAST(%(kwargss)s AS JSON)) AS kwargss_value
    )), CAST(%(channels)s AS TEXT[]), CAST(%(prioritys)s AS INTEGER[]), CAST(%(timeouts)s AS DOUBLE
        PRECISION[]), CAST(%(max_retriess)s AS INTEGER[]), array((
        SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_3
        FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
    )), array((
        SELECT nullif(CAST(metas_value AS JSONB), 'null'::jsonb) AS nullif_4
        FROM json_array_elements(CAST(%(metas)s AS JSON)) AS metas_value
    )), CAST(%(concurrency_keys)s AS TEXT[]), CAST(%(auto_removes)s AS BOOLEAN[]), CAST(%(pickled_functions)s
        AS TEXT[]), CAST(%(delays)s AS DOUBLE PRECISION[]), CAST(%(run_ats)s AS TIMESTAMP WITH TIME ZONE[]))
        AS spec(id, name, function, args, kwargs, channel, priority, timeout, max_retries, context, meta,
        concurrency_key, auto_remove, pickled_function, delay, run_at)
    RETURNING queued_tasks.id
)
SELECT (
    SELECT count(*) AS count_1
    FROM added
) AS anon_1;

-- add_many_and_notify
WITH added AS (
    INSERT INTO queued_tasks (id, name, function, args, kwargs, channel, priority, timeout, max_retries,
        context, meta, concurrency_key, auto_remove, pickled_function, date_scheduled, state)
    SELECT spec.id AS id, spec.name AS name, spec.function AS function, spec.args AS args, spec.kwargs AS
        kwargs, spec.channel AS channel, spec.priority AS priority, spec.timeout AS timeout, spec.max_retries
        AS max_retries, spec.context AS context, spec.meta AS meta, spec.concurrency_key AS concurrency_key,
        spec.auto_remove AS auto_remove, decode(spec.pickled_function, 'base64') AS decode_1,
        coalesce(spec.run_at, clock_timestamp() + spec.delay * interval '1 second') AS coalesce_1, CASE WHEN
        (coalesce(spec.run_at, clock_timestamp() + spec.delay * interval '1 second') > clock_timestamp()) THEN
        'waiting' ELSE 'enqueued' END AS anon_2
    FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(names)s AS TEXT[]), CAST(%(functions)s AS TEXT[]), array((
        SELECT nullif(CAST(argss_value AS JSONB), 'null'::jsonb) AS nullif_1
        FROM json_array_elements(CAST(%(argss)s AS JSON)) AS argss_value
    )), array((
        SELECT nullif(CAST(kwargss_value AS JSONB), 'null'::jsonb) AS nullif_2
        FROM json_array_elements(CAST(%(kwargss)s AS JSON)) AS kwargss_value
    )), CAST(%(channels)s AS TEXT[]), CAST(%(prioritys)s AS INTEGER[]), CAST(%(timeouts)s AS DOUBLE
        PRECISION[]), CAST(%(max_retriess)s AS INTEGER[]), array((
        SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_3
        FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
    )), array((
        SELECT nullif(CAST(metas_value AS JSONB), 'null'::jsonb) AS nullif_4
        FROM json_array_elements(CAST(%(metas)s AS JSON)) AS metas_value
    )), CAST(%(concurrency_keys)s AS TEXT[]), CAST(%(auto_removes)s AS BOOLEAN[]), CAST(%(pickled_functions)s
        AS TEXT[]), CAST(%(delays)s AS DOUBLE PRECISION[]), CAST(%(run_ats)s AS TIMESTAMP WITH TIME ZONE[]))
        AS spec(id, name, function, args, kwargs, channel, priority, timeout, max_retries, context, meta,
        concurrency_key, auto_remove, pickled_function, delay, run_at)
    RETURNING queued_tasks.id
)
SELECT (
    SELECT count(*) AS count_1
    FROM added
) AS anon_1, pg_notify(CAST(%(notify_channel)s AS TEXT), '') AS pg_notify_1;

-- add_ticks
INSERT INTO queued_task_ticks (schedule, tick, task)
SELECT CAST(%(name)s AS TEXT) AS anon_1, fired.tick, fired.task
FROM unnest(CAST(%(ticks)s AS TIMESTAMP WITH TIME ZONE[]), CAST(%(tasks)s AS UUID[])) AS fired(tick, task)
ON CONFLICT DO NOTHING
RETURNING CAST(queued_task_ticks.task AS TEXT) AS task;

-- add_unique
WITH added AS (
    INSERT INTO queued_tasks (id, name, function, args, kwargs, channel, priority, timeout, max_retries,
        context, meta, concurrency_key, auto_remove, pickled_function, date_scheduled, unique_key, state)
    SELECT spec.id AS id, spec.name AS name, spec.function AS function, spec.args AS args, spec.kwargs AS
        kwargs, spec.channel AS channel, spec.priority AS priority, spec.timeout AS timeout, spec.max_retries
        AS max_retries, spec.context AS context, spec.meta AS meta, spec.concurrency_key AS concurrency_key,
        spec.auto_remove AS auto_remove, decode(spec.pickled_function, 'base64') AS decode_1,
        coalesce(spec.run_at, clock_timestamp() + spec.delay * interval '1 second') AS coalesce_1,
        spec.unique_key AS unique_key, CASE WHEN (coalesce(spec.run_at, clock_timestamp() + spec.delay *
        interval '1 second') > clock_timestamp()) THEN 'waiting' ELSE 'enqueued' END AS anon_2
    FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(names)s AS TEXT[]), CAST(%(functions)s AS TEXT[]), array((
        SELECT nullif(CAST(argss_value AS JSONB), 'null'::jsonb) AS nullif_1
        FROM json_array_elements(CAST(%(argss)s AS JSON)) AS argss_value
    )), array((
        SELECT nullif(CAST(kwargss_value AS JSONB), 'null'::jsonb) AS nullif_2
        FROM json_array_elements(CAST(%(kwargss)s AS JSON)) AS kwargss_value
    )), CAST(%(channels)s AS TEXT[]), CAST(%(prioritys)s AS INTEGER[]), CAST(%(timeouts)s AS DOUBLE
        PRECISION[]), CAST(%(max_retriess)s AS INTEGER[]), array((
        SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_3
        FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
    )), array((
        SELECT nullif(CAST(metas_value AS JSONB), 'null'::jsonb) AS nullif_4
        FROM json_array_elements(CAST(%(metas)s AS JSON)) AS metas_value
    )), CAST(%(concurrency_keys)s AS TEXT[]), CAST(%(auto_removes)s AS BOOLEAN[]), CAST(%(pickled_functions)s
        AS TEXT[]), CAST(%(delays)s AS DOUBLE PRECISION[]), CAST(%(run_ats)s AS TIMESTAMP WITH TIME ZONE[]),
        CAST(%(unique_keys)s AS TEXT[]), CAST(%(on_conflicts)s AS TEXT[])) AS spec(id, name, function, args,
        kwargs, channel, priority, timeout, max_retries, context, meta, concurrency_key, auto_remove,
        pickled_function, delay, run_at, unique_key, on_conflict)
    WHERE CAST(%(is_protected)s AS BOOLEAN) OR current_setting('transaction_isolation') IN ('read committed',
        'read uncommitted')
    ORDER BY spec.unique_key COLLATE "C"
    ON CONFLICT (unique_key)
    WHERE unique_key IS NOT NULL
    AND state IN ('waiting', 'enqueued', 'doing') DO NOTHING
    RETURNING queued_tasks.id
)
SELECT answer.is_safe, answer.missing, CAST(added.id AS TEXT) AS id, CASE WHEN (added.id IS NULL OR
    CAST(%(notify_channel)s AS TEXT) IS NULL) THEN NULL ELSE CAST(pg_notify(CAST(%(notify_channel)s AS TEXT),
    '') AS TEXT) END AS anon_1
FROM (
    SELECT CAST(%(is_protected)s AS BOOLEAN) OR current_setting('transaction_isolation') IN ('read committed',
        'read uncommitted') AS is_safe, NULL AS missing
) AS answer
LEFT OUTER JOIN added ON true;

-- add_unique_family
WITH wish AS (
    SELECT wanted.task AS task, wanted.parent AS parent
    FROM unnest(CAST(%(tasks)s AS UUID[]), CAST(%(parents)s AS UUID[])) AS wanted(task, parent)
), known AS (
    SELECT queued_tasks.id AS id, queued_tasks.state AS state
    FROM queued_tasks
    WHERE queued_tasks.id = ANY (array((
        SELECT DISTINCT wish.parent
        FROM wish
    )))
    ORDER BY queued_tasks.id FOR KEY SHARE
), awaited AS (
    SELECT wish.task AS task, count(*) AS parents
    FROM wish
    LEFT OUTER JOIN known ON known.id = wish.parent
    JOIN unnest(CAST(%(ids)s AS UUID[]), CAST(%(names)s AS TEXT[]), CAST(%(functions)s AS TEXT[]), array((
        SELECT nullif(CAST(argss_value AS JSONB), 'null'::jsonb) AS nullif_1
        FROM json_array_elements(CAST(%(argss)s AS JSON)) AS argss_value
    )), array((
        SELECT nullif(CAST(kwargss_value AS JSONB), 'null'::jsonb) AS nullif_2
        FROM json_array_elements(CAST(%(kwargss)s AS JSON)) AS kwargss_value
    )), CAST(%(channels)s AS TEXT[]), CAST(%(prioritys)s AS INTEGER[]), CAST(%(timeouts)s AS DOUBLE
        PRECISION[]), CAST(%(max_retriess)s AS INTEGER[]), array((
        SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_3
        FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
    )), array((
        SELECT nullif(CAST(metas_value AS JSONB), 'null'::jsonb) AS nullif_4
        FROM json_array_elements(CAST(%(metas)s AS JSON)) AS metas_value
    )), CAST(%(concurrency_keys)s AS TEXT[]), CAST(%(auto_removes)s AS BOOLEAN[]), CAST(%(pickled_functions)s
        AS TEXT[]), CAST(%(on_parent_failures)s AS TEXT[]), CAST(%(delays)s AS DOUBLE PRECISION[]),
        CAST(%(run_ats)s AS TIMESTAMP WITH TIME ZONE[])) AS spec(id, name, function, args, kwargs, channel,
        priority, timeout, max_retries, context, meta, concurrency_key, auto_remove, pickled_function,
        on_parent_failure, delay, run_at) ON spec.id = wish.task
    WHERE (known.state IS NULL OR known.state != 'done')
    AND (known.state IS NULL OR (known.state NOT IN ('done', 'failed', 'cancelled', 'stopped')) OR
        spec.on_parent_failure = 'cancel')
    GROUP BY wish.task
), missing AS (
    SELECT DISTINCT wish.parent AS parent
    FROM wish
    WHERE (wish.parent NOT IN (
        SELECT known.id
        FROM known
    ))
    AND wish.parent != ALL (CAST(%(ids)s AS UUID[]))
), added AS (
    INSERT INTO queued_tasks (id, name, function, args, kwargs, channel, priority, timeout, max_retries,
        context, meta, concurrency_key, auto_remove, pickled_function, date_scheduled, on_parent_failure,
        parent_task, parents, pending_parents, unique_key, state)
    SELECT spec.id AS id, spec.name AS name, spec.function AS function, spec.args AS args, spec.kwargs AS
        kwargs, spec.channel AS channel, spec.priority AS priority, spec.timeout AS timeout, spec.max_retries
        AS max_retries, spec.context AS context, spec.meta AS meta, spec.concurrency_key AS concurrency_key,
        spec.auto_remove AS auto_remove, decode(spec.pickled_function, 'base64') AS decode_1,
        coalesce(spec.run_at, clock_timestamp() + spec.delay * interval '1 second') AS coalesce_1,
        spec.on_parent_failure AS on_parent_failure, (
        SELECT wish.parent
        FROM wish
        WHERE wish.task = spec.id
        LIMIT 1
    ) AS anon_1, coalesce((
        SELECT array_agg(wish.parent) AS array_agg_1
        FROM wish
        WHERE wish.task = spec.id
    ), CAST('{}' AS UUID[])) AS coalesce_2, coalesce(awaited.parents, 0) AS coalesce_3, keyed.unique_key AS
        unique_key, CASE WHEN (coalesce(awaited.parents, 0) > 0) THEN 'waiting' ELSE CASE WHEN
        (coalesce(spec.run_at, clock_timestamp() + spec.delay * interval '1 second') > clock_timestamp()) THEN
        'waiting' ELSE 'enqueued' END END AS anon_2
    FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(names)s AS TEXT[]), CAST(%(functions)s AS TEXT[]), array((
        SELECT nullif(CAST(argss_value AS JSONB), 'null'::jsonb) AS nullif_1
        FROM json_array_elements(CAST(%(argss)s AS JSON)) AS argss_value
    )), array((
        SELECT nullif(CAST(kwargss_value AS JSONB), 'null'::jsonb) AS nullif_2
        FROM json_array_elements(CAST(%(kwargss)s AS JSON)) AS kwargss_value
    )), CAST(%(channels)s AS TEXT[]), CAST(%(prioritys)s AS INTEGER[]), CAST(%(timeouts)s AS DOUBLE
        PRECISION[]), CAST(%(max_retriess)s AS INTEGER[]), array((
        SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_3
        FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
    )), array((
        SELECT nullif(CAST(metas_value AS JSONB), 'null'::jsonb) AS nullif_4
        FROM json_array_elements(CAST(%(metas)s AS JSON)) AS metas_value
    )), CAST(%(concurrency_keys)s AS TEXT[]), CAST(%(auto_removes)s AS BOOLEAN[]), CAST(%(pickled_functions)s
        AS TEXT[]), CAST(%(on_parent_failures)s AS TEXT[]), CAST(%(delays)s AS DOUBLE PRECISION[]),
        CAST(%(run_ats)s AS TIMESTAMP WITH TIME ZONE[])) AS spec(id, name, function, args, kwargs, channel,
        priority, timeout, max_retries, context, meta, concurrency_key, auto_remove, pickled_function,
        on_parent_failure, delay, run_at)
    JOIN unnest(CAST(%(ids)s AS UUID[]), CAST(%(unique_keys)s AS TEXT[])) AS keyed(id, unique_key) ON keyed.id
        = spec.id
    LEFT OUTER JOIN awaited ON awaited.task = spec.id
    WHERE NOT (EXISTS (
        SELECT missing.parent
        FROM missing
    ))
    AND (CAST(%(is_protected)s AS BOOLEAN) OR current_setting('transaction_isolation') IN ('read committed',
        'read uncommitted'))
    ORDER BY keyed.unique_key COLLATE "C"
    ON CONFLICT (unique_key)
    WHERE unique_key IS NOT NULL
    AND state IN ('waiting', 'enqueued', 'doing') DO NOTHING
    RETURNING queued_tasks.id
), edges AS (
    INSERT INTO queued_task_dependencies (task, parent)
    SELECT wish.task AS task, wish.parent AS parent
    FROM wish
    WHERE wish.task IN (
        SELECT added.id
        FROM added
    )
)
SELECT answer.is_safe, answer.missing, CAST(added.id AS TEXT) AS id, CASE WHEN (added.id IS NULL OR
    CAST(%(notify_channel)s AS TEXT) IS NULL) THEN NULL ELSE CAST(pg_notify(CAST(%(notify_channel)s AS TEXT),
    '') AS TEXT) END AS anon_3
FROM (
    SELECT CAST(%(is_protected)s AS BOOLEAN) OR current_setting('transaction_isolation') IN ('read committed',
        'read uncommitted') AS is_safe, array((
        SELECT CAST(missing.parent AS TEXT) AS parent
        FROM missing
    )) AS missing
) AS answer
LEFT OUTER JOIN added ON true;

-- attempts
SELECT queued_task_attempts.attempt, queued_task_attempts.outcome, queued_task_attempts.error_type,
    queued_task_attempts.error_message, queued_task_attempts.error_traceback, queued_task_attempts.worker,
    queued_task_attempts.date_started, queued_task_attempts.date_done, queued_task_attempts.exit_signal,
    queued_task_attempts.memory_bytes
FROM queued_task_attempts
WHERE queued_task_attempts.queued_task_id = CAST(%(id)s AS UUID)
ORDER BY queued_task_attempts.attempt, queued_task_attempts.id;

-- await
UPDATE queued_tasks
SET is_awaited=true
WHERE queued_tasks.id = CAST(%(id)s AS UUID)
AND (queued_tasks.state NOT IN ('done', 'failed', 'cancelled', 'stopped'))
RETURNING CAST(queued_tasks.id AS TEXT) AS id, CASE WHEN (queued_tasks.state = 'enqueued' AND
    CAST(%(notify_channel)s AS TEXT) IS NOT NULL) THEN pg_notify(CAST(%(notify_channel)s AS TEXT), '') END AS
    anon_1;

-- bad_parents
SELECT CAST(edge.parent AS TEXT) AS parent
FROM queued_task_dependencies AS edge
JOIN queued_tasks AS parent ON parent.id = edge.parent
JOIN queued_tasks AS child ON child.id = edge.task
WHERE edge.task = ANY (CAST(%(ids)s AS UUID[]))
AND parent.state IN ('failed', 'cancelled', 'stopped')
AND child.state IN ('waiting')
AND child.pending_parents > 0
AND child.on_parent_failure = 'cancel'
ORDER BY edge.parent FOR SHARE OF parent;

-- bound_statements
SELECT set_config('statement_timeout', CAST(%(milliseconds)s AS TEXT), true) AS set_config_1;

-- call_off
UPDATE queued_tasks
SET state='cancelled', date_started=coalesce(queued_tasks.date_started, clock_timestamp() - ended.second *
    interval '1 second'), date_done=clock_timestamp(), context=coalesce(ended.context, queued_tasks.context),
    error_message=ended.error_message, error_type=ended.error_type, error_traceback=ended.error_traceback,
    is_awaited=CASE WHEN queued_tasks.is_awaited THEN pg_notify('queuedtask_done', CAST(queued_tasks.id AS
    TEXT)) IS NULL ELSE false END
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE PRECISION[]),
    array((
    SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_1
    FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
)), CAST(%(error_types)s AS TEXT[]), CAST(%(error_messages)s AS TEXT[]), CAST(%(error_tracebacks)s AS TEXT[]))
    AS ended(id, attempt, second, context, error_type, error_message, error_traceback)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = ended.id
AND queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = ended.attempt
RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.attempt;

-- cancel_backends
SELECT pg_cancel_backend(backend.pid) AS pg_cancel_backend_1
FROM unnest(CAST(%(pids)s AS INTEGER[])) AS backend(pid);

-- cancel_pending
UPDATE queued_tasks
SET state='cancelled', date_done=clock_timestamp(), error_message='the task was cancelled',
    error_type='TaskCancelled', error_traceback=NULL, is_awaited=CASE WHEN queued_tasks.is_awaited THEN
    pg_notify('queuedtask_done', CAST(queued_tasks.id AS TEXT)) IS NULL ELSE false END
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.state IN ('waiting', 'enqueued')
RETURNING CAST(queued_tasks.id AS TEXT) AS id;

-- candidates_far
WITH RECURSIVE keys(key, number) AS (
    SELECT (
        SELECT queued_tasks.concurrency_key
        FROM queued_tasks
        WHERE queued_tasks.concurrency_key IS NOT NULL
        AND queued_tasks.state IN ('waiting', 'enqueued', 'doing')
        AND queued_tasks.concurrency_key > CAST(%(after)s AS TEXT)
        ORDER BY queued_tasks.concurrency_key
        LIMIT 1
    ) AS key, 1 AS number UNION ALL
    SELECT (
        SELECT queued_tasks.concurrency_key
        FROM queued_tasks
        WHERE queued_tasks.concurrency_key IS NOT NULL
        AND queued_tasks.state IN ('waiting', 'enqueued', 'doing')
        AND queued_tasks.concurrency_key > keys.key
        ORDER BY queued_tasks.concurrency_key
        LIMIT 1
    ) AS anon_1, keys.number + 1 AS anon_2
    FROM keys
    WHERE keys.key IS NOT NULL
    AND keys.number < 100
)
SELECT CAST(candidate.id AS TEXT) AS id, keys.key, candidate.channel, candidate.priority,
    candidate.date_enqueued
FROM keys
LEFT OUTER JOIN LATERAL (
    SELECT first.id AS id, first.channel AS channel, first.priority AS priority, first.date_enqueued AS
        date_enqueued
    FROM LATERAL (
        SELECT next.id AS id, next.channel AS channel, next.priority AS priority, next.date_enqueued AS
            date_enqueued, next.meta AS meta, next.function AS function
        FROM queued_tasks AS next
        WHERE next.concurrency_key IS NOT NULL
        AND next.concurrency_key = keys.key
        AND next.state = 'enqueued'
        ORDER BY next.priority DESC, next.date_created, next.id
        LIMIT 20
    ) AS first
    WHERE first.channel != ALL (CAST(%(shut)s AS TEXT[]))
    AND (CAST(%(channels)s AS TEXT[]) IS NULL OR first.channel = ANY (CAST(%(channels)s AS TEXT[])))
    AND (CAST(%(like)s AS TEXT[]) IS NULL OR replace(first.function, ':', '.') LIKE ANY (CAST(%(like)s AS
        TEXT[])) AND first.function != ALL (CAST(%(old_refused)s AS TEXT[])) OR first.function = ANY
        (CAST(%(old_allowed)s AS TEXT[])))
    AND (
        SELECT count(*) AS count_1
        FROM queued_tasks AS running
        WHERE running.concurrency_key IS NOT NULL
        AND running.concurrency_key = keys.key
        AND running.state = 'doing'
    ) < CASE WHEN coalesce((first.meta ->> 'fifo') = 'true', false) THEN 1 WHEN ((first.meta ->>
        'concurrency') ~ '^[1-9][0-9]{0,8}$') THEN CAST(first.meta ->> 'concurrency' AS INTEGER) ELSE 1 END
    AND (NOT coalesce((first.meta ->> 'fifo') = 'true', false) OR first.id = (
        SELECT "both".id
        FROM ((
            SELECT first_waiting.id AS id, first_waiting.priority AS priority, first_waiting.date_created AS
                date_created
            FROM queued_tasks AS first_waiting
            WHERE first_waiting.concurrency_key IS NOT NULL
            AND first_waiting.concurrency_key = keys.key
            AND first_waiting.state = 'waiting'
            ORDER BY first_waiting.priority DESC, first_waiting.date_created, first_waiting.id
            LIMIT 1
        ) UNION ALL (
            SELECT first_enqueued.id AS id, first_enqueued.priority AS priority, first_enqueued.date_created
                AS date_created
            FROM queued_tasks AS first_enqueued
            WHERE first_enqueued.concurrency_key IS NOT NULL
            AND first_enqueued.concurrency_key = keys.key
            AND first_enqueued.state = 'enqueued'
            ORDER BY first_enqueued.priority DESC, first_enqueued.date_created, first_enqueued.id
            LIMIT 1
        )) AS "both"
        ORDER BY "both".priority DESC, "both".date_created, "both".id
        LIMIT 1
    ))
    LIMIT 1
) AS candidate ON true
WHERE keys.key IS NOT NULL
ORDER BY keys.key;

-- candidates_near
SELECT CAST(candidate.id AS TEXT) AS id, near_key.key, candidate.channel, candidate.priority,
    candidate.date_enqueued
FROM (
    SELECT near.key AS key, max(near.priority) AS priority, min(near.date_enqueued) AS since
    FROM (
        SELECT queued_tasks.concurrency_key AS key, queued_tasks.priority AS priority,
            queued_tasks.date_enqueued AS date_enqueued
        FROM queued_tasks
        WHERE queued_tasks.state IN ('enqueued')
        AND queued_tasks.concurrency_key IS NOT NULL
        ORDER BY queued_tasks.priority DESC, queued_tasks.date_enqueued
        LIMIT 100
    ) AS near
    GROUP BY near.key
) AS near_key
JOIN LATERAL (
    SELECT first.id AS id, first.channel AS channel, first.priority AS priority, first.date_enqueued AS
        date_enqueued
    FROM LATERAL (
        SELECT next.id AS id, next.channel AS channel, next.priority AS priority, next.date_enqueued AS
            date_enqueued, next.meta AS meta, next.function AS function
        FROM queued_tasks AS next
        WHERE next.concurrency_key IS NOT NULL
        AND next.concurrency_key = near_key.key
        AND next.state = 'enqueued'
        ORDER BY next.priority DESC, next.date_created, next.id
        LIMIT 20
    ) AS first
    WHERE first.channel != ALL (CAST(%(shut)s AS TEXT[]))
    AND (CAST(%(channels)s AS TEXT[]) IS NULL OR first.channel = ANY (CAST(%(channels)s AS TEXT[])))
    AND (CAST(%(like)s AS TEXT[]) IS NULL OR replace(first.function, ':', '.') LIKE ANY (CAST(%(like)s AS
        TEXT[])) AND first.function != ALL (CAST(%(old_refused)s AS TEXT[])) OR first.function = ANY
        (CAST(%(old_allowed)s AS TEXT[])))
    AND (
        SELECT count(*) AS count_1
        FROM queued_tasks AS running
        WHERE running.concurrency_key IS NOT NULL
        AND running.concurrency_key = near_key.key
        AND running.state = 'doing'
    ) < CASE WHEN coalesce((first.meta ->> 'fifo') = 'true', false) THEN 1 WHEN ((first.meta ->>
        'concurrency') ~ '^[1-9][0-9]{0,8}$') THEN CAST(first.meta ->> 'concurrency' AS INTEGER) ELSE 1 END
    AND (NOT coalesce((first.meta ->> 'fifo') = 'true', false) OR first.id = (
        SELECT "both".id
        FROM ((
            SELECT first_waiting.id AS id, first_waiting.priority AS priority, first_waiting.date_created AS
                date_created
            FROM queued_tasks AS first_waiting
            WHERE first_waiting.concurrency_key IS NOT NULL
            AND first_waiting.concurrency_key = near_key.key
            AND first_waiting.state = 'waiting'
            ORDER BY first_waiting.priority DESC, first_waiting.date_created, first_waiting.id
            LIMIT 1
        ) UNION ALL (
            SELECT first_enqueued.id AS id, first_enqueued.priority AS priority, first_enqueued.date_created
                AS date_created
            FROM queued_tasks AS first_enqueued
            WHERE first_enqueued.concurrency_key IS NOT NULL
            AND first_enqueued.concurrency_key = near_key.key
            AND first_enqueued.state = 'enqueued'
            ORDER BY first_enqueued.priority DESC, first_enqueued.date_created, first_enqueued.id
            LIMIT 1
        )) AS "both"
        ORDER BY "both".priority DESC, "both".date_created, "both".id
        LIMIT 1
    ))
    LIMIT 1
) AS candidate ON true
ORDER BY near_key.priority DESC, near_key.since
LIMIT CAST(%(limit)s AS INTEGER);

-- change_schedule
UPDATE queued_task_schedules
SET cron=CAST(%(cron)s AS TEXT), timezone=CAST(%(timezone)s AS TEXT), is_paused=CAST(%(is_paused)s AS
    BOOLEAN), date_updated=clock_timestamp(), date_next=CAST(%(date_next)s AS TIMESTAMP WITH TIME ZONE)
WHERE queued_task_schedules.name = CAST(%(name)s AS TEXT);

-- claim
WITH claimed AS (
    UPDATE queued_tasks
    SET state='doing', date_started=NULL, attempt=(queued_tasks.attempt + 1), claimed_by=CAST(%(worker)s AS
        INTEGER), unique_key=CASE WHEN (queued_tasks.unique_key IS NULL OR (queued_tasks.meta ->>
        'on_conflict') IN ('replace', 'debounce')) THEN NULL ELSE queued_tasks.unique_key END
    WHERE queued_tasks.id = ANY (array((
        SELECT queued_tasks.id
        FROM queued_tasks
        WHERE queued_tasks.state IN ('enqueued')
        AND queued_tasks.concurrency_key IS NULL
        AND queued_tasks.channel = CAST(%(channel)s AS TEXT)
        AND NOT (EXISTS (
            SELECT queued_task_channels.name
            FROM queued_task_channels
            WHERE queued_task_channels.name IN (CAST(%(channel)s AS TEXT), '*')
            AND (queued_task_channels.is_paused OR queued_task_channels.max_running IS NOT NULL OR
                queued_task_channels.max_starts IS NOT NULL)
        ))
        AND (CAST(%(like)s AS TEXT[]) IS NULL OR replace(queued_tasks.function, ':', '.') LIKE ANY
            (CAST(%(like)s AS TEXT[])) AND queued_tasks.function != ALL (CAST(%(old_refused)s AS TEXT[])) OR
            queued_tasks.function = ANY (CAST(%(old_allowed)s AS TEXT[])))
        ORDER BY queued_tasks.priority DESC, queued_tasks.date_enqueued
        LIMIT CAST(%(limit)s AS INTEGER)
        FOR NO KEY UPDATE SKIP LOCKED
    )))
    AND queued_tasks.state IN ('enqueued')
    RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.function,
        CAST(queued_tasks.args AS TEXT) AS args, CAST(queued_tasks.kwargs AS TEXT) AS kwargs,
        CAST(queued_tasks.context AS TEXT) AS context, queued_tasks.attempt, queued_tasks.failures,
        queued_tasks.max_retries, queued_tasks.timeout, queued_tasks.lost_count, queued_tasks.channel,
        CAST(nullif(queued_tasks.parents, '{}') AS TEXT[]) AS parents, CAST(queued_tasks.meta AS TEXT) AS
        meta, encode(queued_tasks.pickled_function, 'base64') AS pickled_function,
        queued_tasks.concurrency_key, CAST(%(monotonic)s AS DOUBLE PRECISION) - date_part('epoch',
        clock_timestamp() - queued_tasks.date_enqueued) AS eligible_at, queued_tasks.priority,
        queued_tasks.date_enqueued
)
SELECT claimed.id, claimed.name, claimed.function, claimed.args, claimed.kwargs, claimed.context,
    claimed.attempt, claimed.failures, claimed.max_retries, claimed.timeout, claimed.lost_count,
    claimed.channel, claimed.parents, claimed.meta, claimed.pickled_function, claimed.concurrency_key,
    claimed.eligible_at
FROM claimed
ORDER BY claimed.priority DESC, claimed.date_enqueued;

-- claim_from
WITH claimed AS (
    UPDATE queued_tasks
    SET state='doing', date_started=NULL, attempt=(queued_tasks.attempt + 1), claimed_by=CAST(%(worker)s AS
        INTEGER), unique_key=CASE WHEN (queued_tasks.unique_key IS NULL OR (queued_tasks.meta ->>
        'on_conflict') IN ('replace', 'debounce')) THEN NULL ELSE queued_tasks.unique_key END
    WHERE queued_tasks.id = ANY (array_cat(array((
        SELECT queued_tasks.id
        FROM queued_tasks
        WHERE queued_tasks.state IN ('enqueued')
        AND queued_tasks.concurrency_key IS NULL
        AND queued_tasks.channel = 'default'
        AND (CAST(%(like)s AS TEXT[]) IS NULL OR replace(queued_tasks.function, ':', '.') LIKE ANY
            (CAST(%(like)s AS TEXT[])) AND queued_tasks.function != ALL (CAST(%(old_refused)s AS TEXT[])) OR
            queued_tasks.function = ANY (CAST(%(old_allowed)s AS TEXT[])))
        AND ('default' = ANY (CAST(%(locked)s AS TEXT[])) OR NOT (EXISTS (
            SELECT queued_task_channels.name
            FROM queued_task_channels
            WHERE queued_task_channels.name IN ('default', '*')
            AND (queued_task_channels.is_paused OR queued_task_channels.max_running IS NOT NULL OR
                queued_task_channels.max_starts IS NOT NULL)
        )))
        AND NOT (EXISTS (
            SELECT queued_task_channels.name
            FROM queued_task_channels
            WHERE queued_task_channels.name = '*'
            AND queued_task_channels.is_paused
        ))
        ORDER BY queued_tasks.priority DESC, queued_tasks.date_enqueued
        LIMIT CAST(%(default_most)s AS INTEGER)
        FOR NO KEY UPDATE OF queued_tasks SKIP LOCKED
    )), array((
        SELECT picked.id
        FROM (
            SELECT source.name AS name, source.most AS most
            FROM unnest(CAST(%(names)s AS TEXT[]), CAST(%(mosts)s AS INTEGER[])) AS source(name, most)
            WHERE (source.name = ANY (CAST(%(locked)s AS TEXT[])) OR NOT (EXISTS (
                SELECT queued_task_channels.name
                FROM queued_task_channels
                WHERE queued_task_channels.name IN (source.name, '*')
                AND (queued_task_channels.is_paused OR queued_task_channels.max_running IS NOT NULL OR
                    queued_task_channels.max_starts IS NOT NULL)
            )))
            AND NOT (EXISTS (
                SELECT queued_task_channels.name
                FROM queued_task_channels
                WHERE queued_task_channels.name = '*'
                AND queued_task_channels.is_paused
            ))
        ) AS open
        JOIN LATERAL (
            SELECT queued_tasks.id AS id
            FROM queued_tasks
            WHERE queued_tasks.state IN ('enqueued')
            AND queued_tasks.concurrency_key IS NULL
            AND queued_tasks.channel != 'default'
            AND queued_tasks.channel = open.name
            AND (CAST(%(like)s AS TEXT[]) IS NULL OR replace(queued_tasks.function, ':', '.') LIKE ANY
                (CAST(%(like)s AS TEXT[])) AND queued_tasks.function != ALL (CAST(%(old_refused)s AS TEXT[]))
                OR queued_tasks.function = ANY (CAST(%(old_allowed)s AS TEXT[])))
            ORDER BY queued_tasks.priority DESC, queued_tasks.date_enqueued
            LIMIT open.most
            FOR NO KEY UPDATE OF queued_tasks SKIP LOCKED
        ) AS picked ON true
    ))))
    AND queued_tasks.state IN ('enqueued')
    RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.function,
        CAST(queued_tasks.args AS TEXT) AS args, CAST(queued_tasks.kwargs AS TEXT) AS kwargs,
        CAST(queued_tasks.context AS TEXT) AS context, queued_tasks.attempt, queued_tasks.failures,
        queued_tasks.max_retries, queued_tasks.timeout, queued_tasks.lost_count, queued_tasks.channel,
        CAST(nullif(queued_tasks.parents, '{}') AS TEXT[]) AS parents, CAST(queued_tasks.meta AS TEXT) AS
        meta, encode(queued_tasks.pickled_function, 'base64') AS pickled_function,
        queued_tasks.concurrency_key, CAST(%(monotonic)s AS DOUBLE PRECISION) - date_part('epoch',
        clock_timestamp() - queued_tasks.date_enqueued) AS eligible_at, queued_tasks.priority,
        queued_tasks.date_enqueued
)
SELECT claimed.id, claimed.name, claimed.function, claimed.args, claimed.kwargs, claimed.context,
    claimed.attempt, claimed.failures, claimed.max_retries, claimed.timeout, claimed.lost_count,
    claimed.channel, claimed.parents, claimed.meta, claimed.pickled_function, claimed.concurrency_key,
    claimed.eligible_at
FROM claimed
ORDER BY claimed.priority DESC, claimed.date_enqueued;

-- claim_keyed
WITH claimed AS (
    UPDATE queued_tasks
    SET state='doing', date_started=NULL, attempt=(queued_tasks.attempt + 1), claimed_by=CAST(%(worker)s AS
        INTEGER), unique_key=CASE WHEN (queued_tasks.unique_key IS NULL OR (queued_tasks.meta ->>
        'on_conflict') IN ('replace', 'debounce')) THEN NULL ELSE queued_tasks.unique_key END
    WHERE queued_tasks.id = ANY (array((
        SELECT queued_tasks.id
        FROM queued_tasks
        WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
        AND queued_tasks.state IN ('enqueued')
        AND queued_tasks.concurrency_key IS NOT NULL
        AND (CAST(%(like)s AS TEXT[]) IS NULL OR replace(queued_tasks.function, ':', '.') LIKE ANY
            (CAST(%(like)s AS TEXT[])) AND queued_tasks.function != ALL (CAST(%(old_refused)s AS TEXT[])) OR
            queued_tasks.function = ANY (CAST(%(old_allowed)s AS TEXT[])))
        AND (EXISTS (
            SELECT 1
            FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(keys)s AS TEXT[])) AS wanted(id, key)
            WHERE queued_tasks.id = wanted.id
            AND queued_tasks.concurrency_key = wanted.key
        ))
        AND (
            SELECT count(*) AS count_1
            FROM queued_tasks AS running
            WHERE running.concurrency_key IS NOT NULL
            AND running.concurrency_key = queued_tasks.concurrency_key
            AND running.state = 'doing'
        ) < CASE WHEN coalesce((queued_tasks.meta ->> 'fifo') = 'true', false) THEN 1 WHEN ((queued_tasks.meta
            ->> 'concurrency') ~ '^[1-9][0-9]{0,8}$') THEN CAST(queued_tasks.meta ->> 'concurrency' AS
            INTEGER) ELSE 1 END
        AND (NOT coalesce((queued_tasks.meta ->> 'fifo') = 'true', false) OR queued_tasks.id = (
            SELECT "both".id
            FROM ((
                SELECT first_waiting.id AS id, first_waiting.priority AS priority, first_waiting.date_created
                    AS date_created
                FROM queued_tasks AS first_waiting
                WHERE first_waiting.concurrency_key IS NOT NULL
                AND first_waiting.concurrency_key = queued_tasks.concurrency_key
                AND first_waiting.state = 'waiting'
                ORDER BY first_waiting.priority DESC, first_waiting.date_created, first_waiting.id
                LIMIT 1
            ) UNION ALL (
                SELECT first_enqueued.id AS id, first_enqueued.priority AS priority,
                    first_enqueued.date_created AS date_created
                FROM queued_tasks AS first_enqueued
                WHERE first_enqueued.concurrency_key IS NOT NULL
                AND first_enqueued.concurrency_key = queued_tasks.concurrency_key
                AND first_enqueued.state = 'enqueued'
                ORDER BY first_enqueued.priority DESC, first_enqueued.date_created, first_enqueued.id
                LIMIT 1
            )) AS "both"
            ORDER BY "both".priority DESC, "both".date_created, "both".id
            LIMIT 1
        ))
        AND (queued_tasks.channel = ANY (CAST(%(locked)s AS TEXT[])) OR NOT (EXISTS (
            SELECT queued_task_channels.name
            FROM queued_task_channels
            WHERE queued_task_channels.name IN (queued_tasks.channel, '*')
            AND (queued_task_channels.is_paused OR queued_task_channels.max_running IS NOT NULL OR
                queued_task_channels.max_starts IS NOT NULL)
        )))
        AND NOT (EXISTS (
            SELECT queued_task_channels.name
            FROM queued_task_channels
            WHERE queued_task_channels.name = '*'
            AND queued_task_channels.is_paused
        ))
        FOR NO KEY UPDATE SKIP LOCKED
    )))
    AND queued_tasks.state IN ('enqueued')
    RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.function,
        CAST(queued_tasks.args AS TEXT) AS args, CAST(queued_tasks.kwargs AS TEXT) AS kwargs,
        CAST(queued_tasks.context AS TEXT) AS context, queued_tasks.attempt, queued_tasks.failures,
        queued_tasks.max_retries, queued_tasks.timeout, queued_tasks.lost_count, queued_tasks.channel,
        CAST(nullif(queued_tasks.parents, '{}') AS TEXT[]) AS parents, CAST(queued_tasks.meta AS TEXT) AS
        meta, encode(queued_tasks.pickled_function, 'base64') AS pickled_function,
        queued_tasks.concurrency_key, CAST(%(monotonic)s AS DOUBLE PRECISION) - date_part('epoch',
        clock_timestamp() - queued_tasks.date_enqueued) AS eligible_at, queued_tasks.priority,
        queued_tasks.date_enqueued
)
SELECT claimed.id, claimed.name, claimed.function, claimed.args, claimed.kwargs, claimed.context,
    claimed.attempt, claimed.failures, claimed.max_retries, claimed.timeout, claimed.lost_count,
    claimed.channel, claimed.parents, claimed.meta, claimed.pickled_function, claimed.concurrency_key,
    claimed.eligible_at
FROM claimed
ORDER BY claimed.priority DESC, claimed.date_enqueued;

-- claim_strangers
WITH claimed AS (
    UPDATE queued_tasks
    SET state='doing', date_started=NULL, attempt=(queued_tasks.attempt + 1), claimed_by=CAST(%(worker)s AS
        INTEGER)
    WHERE queued_tasks.id = ANY (array((
        SELECT queued_tasks.id
        FROM queued_tasks
        WHERE (queued_tasks.state IN ('enqueued') AND queued_tasks.concurrency_key IS NULL AND
            queued_tasks.channel = 'default' OR queued_tasks.state IN ('enqueued') AND
            queued_tasks.concurrency_key IS NULL AND queued_tasks.channel != 'default' OR queued_tasks.state
            IN ('enqueued') AND queued_tasks.concurrency_key IS NOT NULL)
        AND NOT (replace(queued_tasks.function, ':', '.') LIKE ANY (CAST(%(like)s AS TEXT[])) AND
            queued_tasks.function != ALL (CAST(%(old_refused)s AS TEXT[])) OR queued_tasks.function = ANY
            (CAST(%(old_allowed)s AS TEXT[])))
        AND queued_tasks.date_enqueued < now() - CAST(%(second)s AS DOUBLE PRECISION) * interval '1 second'
        ORDER BY queued_tasks.id
        LIMIT CAST(%(limit)s AS INTEGER)
        FOR NO KEY UPDATE SKIP LOCKED
    )))
    AND queued_tasks.state IN ('enqueued')
    RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.function,
        CAST(queued_tasks.args AS TEXT) AS args, CAST(queued_tasks.kwargs AS TEXT) AS kwargs,
        CAST(queued_tasks.context AS TEXT) AS context, queued_tasks.attempt, queued_tasks.failures,
        queued_tasks.max_retries, queued_tasks.timeout, queued_tasks.lost_count, queued_tasks.channel,
        CAST(nullif(queued_tasks.parents, '{}') AS TEXT[]) AS parents, CAST(queued_tasks.meta AS TEXT) AS
        meta, encode(queued_tasks.pickled_function, 'base64') AS pickled_function,
        queued_tasks.concurrency_key, CAST(%(monotonic)s AS DOUBLE PRECISION) - date_part('epoch',
        clock_timestamp() - queued_tasks.date_enqueued) AS eligible_at
)
SELECT claimed.id, claimed.name, claimed.function, claimed.args, claimed.kwargs, claimed.context,
    claimed.attempt, claimed.failures, claimed.max_retries, claimed.timeout, claimed.lost_count,
    claimed.channel, claimed.parents, claimed.meta, claimed.pickled_function, claimed.concurrency_key,
    claimed.eligible_at
FROM claimed;

-- clean_ticks
WITH "old" AS (
    SELECT queued_task_ticks.schedule AS schedule, queued_task_ticks.tick AS tick
    FROM queued_task_ticks
    WHERE queued_task_ticks.tick < now() - CAST(%(kept)s AS DOUBLE PRECISION) * interval '1 second'
    AND NOT (EXISTS (
        SELECT queued_task_schedules.name
        FROM queued_task_schedules
        WHERE queued_task_schedules.name = queued_task_ticks.schedule
        AND queued_task_schedules.date_next <= queued_task_ticks.tick
    ))
    ORDER BY queued_task_ticks.tick
    LIMIT CAST(%(limit)s AS INTEGER) FOR UPDATE SKIP LOCKED
)
DELETE
FROM queued_task_ticks
WHERE (queued_task_ticks.schedule, queued_task_ticks.tick) IN (
    SELECT "old".schedule, "old".tick
    FROM "old"
)
RETURNING queued_task_ticks.tick;

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
RETURNING CAST(queued_tasks.id AS TEXT) AS id, CASE WHEN queued_tasks.is_awaited THEN
    pg_notify('queuedtask_done', CAST(queued_tasks.id AS TEXT)) IS NULL ELSE false END AS anon_1;

-- count_blocked
SELECT count(*) AS count_1
FROM queued_tasks
WHERE queued_tasks.state = ANY (CAST(%(states)s AS TEXT[]))
AND (CAST(%(ids)s AS UUID[]) IS NULL OR queued_tasks.id = ANY (CAST(%(ids)s AS UUID[])))
AND (CAST(%(name)s AS TEXT) IS NULL OR queued_tasks.name = CAST(%(name)s AS TEXT))
AND (CAST(%(channel)s AS TEXT) IS NULL OR queued_tasks.channel = CAST(%(channel)s AS TEXT))
AND (CAST(%(since)s AS DOUBLE PRECISION) IS NULL OR queued_tasks.date_done >= now() - CAST(%(since)s AS DOUBLE
    PRECISION) * interval '1 second')
AND (CAST(%(max_requeues)s AS INTEGER) IS NULL OR queued_tasks.requeues < CAST(%(max_requeues)s AS INTEGER))
AND queued_tasks.unique_key IS NOT NULL
AND (EXISTS (
    SELECT 1
    FROM queued_tasks AS holder
    WHERE holder.unique_key = queued_tasks.unique_key
    AND holder.unique_key IS NOT NULL
    AND holder.state IN ('waiting', 'enqueued', 'doing')
));

-- count_down
WITH edges AS (
    SELECT queued_task_dependencies.task AS task, count(*) AS parents
    FROM queued_task_dependencies
    WHERE queued_task_dependencies.parent = ANY (CAST(%(ids)s AS UUID[]))
    GROUP BY queued_task_dependencies.task
), counted AS (
    UPDATE queued_tasks
    SET pending_parents=greatest(queued_tasks.pending_parents - edges.parents, 0)
    FROM edges
    WHERE queued_tasks.id = edges.task
    AND queued_tasks.id = ANY (array((
        SELECT queued_tasks.id
        FROM queued_tasks
        WHERE queued_tasks.id = ANY (array((
            SELECT edges.task
            FROM edges
        )))
        AND queued_tasks.state IN ('waiting')
        AND queued_tasks.pending_parents > 0
        AND queued_tasks.on_parent_failure = 'run'
        ORDER BY queued_tasks.id
        FOR NO KEY UPDATE
    )))
    AND queued_tasks.state IN ('waiting')
    AND queued_tasks.pending_parents > 0
    AND queued_tasks.on_parent_failure = 'run'
    RETURNING queued_tasks.pending_parents
)
SELECT (
    SELECT count(*) AS count_1
    FROM counted
    WHERE counted.pending_parents = 0
) AS freed;

-- count_due
SELECT queued_tasks.state, count(*) AS count
FROM queued_tasks
WHERE queued_tasks.state IN ('done', 'failed', 'cancelled', 'stopped')
AND queued_tasks.date_done < now() - CASE WHEN (queued_tasks.state = 'done') THEN CAST(%(done)s AS DOUBLE
    PRECISION) WHEN (queued_tasks.state = 'failed') THEN CAST(%(failed)s AS DOUBLE PRECISION) WHEN
    (queued_tasks.state = 'cancelled') THEN CAST(%(cancelled)s AS DOUBLE PRECISION) WHEN (queued_tasks.state =
    'stopped') THEN CAST(%(stopped)s AS DOUBLE PRECISION) END * interval '1 second'
AND NOT ((EXISTS (
    SELECT *
    FROM queued_tasks AS unfinished
    WHERE unfinished.parent_task = queued_tasks.id
    AND (unfinished.state NOT IN ('done', 'failed', 'cancelled', 'stopped'))
)) OR (EXISTS (
    SELECT *
    FROM queued_task_dependencies, queued_tasks AS unfinished
    WHERE queued_task_dependencies.parent = queued_tasks.id
    AND unfinished.id = queued_task_dependencies.task
    AND (unfinished.state NOT IN ('done', 'failed', 'cancelled', 'stopped'))
)))
GROUP BY queued_tasks.state;

-- count_running
SELECT channel.name, running."all", running.own, cardinality(array((
    SELECT queued_task_workers.id
    FROM queued_task_workers
    WHERE queued_task_workers.is_running
    AND (queued_task_workers.id = CAST(%(worker)s AS INTEGER) OR CAST(%(is_unsure)s AS BOOLEAN) OR
        queued_task_workers.last_heartbeat > clock_timestamp() - coalesce(queued_task_workers.lease,
        CAST(%(lease)s AS DOUBLE PRECISION)) * interval '1 second')
))) AS cardinality_1
FROM unnest(CAST(%(names)s AS TEXT[])) AS channel(name)
JOIN LATERAL (
    SELECT count(*) AS "all", count(*) FILTER (WHERE queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)) AS
        own
    FROM queued_tasks
    WHERE queued_tasks.state = 'doing'
    AND queued_tasks.claimed_by = ANY (array((
        SELECT queued_task_workers.id
        FROM queued_task_workers
        WHERE queued_task_workers.is_running
        AND (queued_task_workers.id = CAST(%(worker)s AS INTEGER) OR CAST(%(is_unsure)s AS BOOLEAN) OR
            queued_task_workers.last_heartbeat > clock_timestamp() - coalesce(queued_task_workers.lease,
            CAST(%(lease)s AS DOUBLE PRECISION)) * interval '1 second')
    )))
    AND queued_tasks.channel = channel.name
) AS running ON true;

-- count_states
SELECT queued_tasks.state, count(*) AS count
FROM queued_tasks
GROUP BY queued_tasks.state;

-- count_strangers
SELECT queued_tasks.function, count(*) AS count_1
FROM queued_tasks
WHERE (queued_tasks.state IN ('enqueued') AND queued_tasks.concurrency_key IS NULL AND queued_tasks.channel =
    'default' OR queued_tasks.state IN ('enqueued') AND queued_tasks.concurrency_key IS NULL AND
    queued_tasks.channel != 'default' OR queued_tasks.state IN ('enqueued') AND queued_tasks.concurrency_key
    IS NOT NULL)
AND NOT (replace(queued_tasks.function, ':', '.') LIKE ANY (CAST(%(like)s AS TEXT[])) AND
    queued_tasks.function != ALL (CAST(%(old_refused)s AS TEXT[])) OR queued_tasks.function = ANY
    (CAST(%(old_allowed)s AS TEXT[])))
GROUP BY queued_tasks.function
ORDER BY count(*) DESC
LIMIT CAST(%(limit)s AS INTEGER);

-- declare_schedule
INSERT INTO queued_task_schedules (name, function, args, kwargs, cron, timezone, misfire, overlap, options,
    definition, date_next)
VALUES (CAST(%(name)s AS TEXT), CAST(%(function)s AS TEXT), CAST(%(args)s AS JSONB), CAST(%(kwargs)s AS
    JSONB), CAST(%(cron)s AS TEXT), CAST(%(timezone)s AS TEXT), CAST(%(misfire)s AS TEXT), CAST(%(overlap)s AS
    TEXT), CAST(%(options)s AS JSONB), CAST(%(definition)s AS TEXT), CAST(%(date_next)s AS TIMESTAMP WITH TIME
    ZONE))
ON CONFLICT (name) DO UPDATE
SET function = excluded.function, args = excluded.args, kwargs = excluded.kwargs, cron = excluded.cron,
    timezone = excluded.timezone, misfire = excluded.misfire, overlap = excluded.overlap, options =
    excluded.options, date_updated = clock_timestamp(), definition = excluded.definition, date_next = CASE
    WHEN (queued_task_schedules.cron = excluded.cron AND queued_task_schedules.timezone = excluded.timezone)
    THEN queued_task_schedules.date_next ELSE excluded.date_next END
WHERE queued_task_schedules.definition IS DISTINCT
FROM excluded.definition
RETURNING queued_task_schedules.name;

-- delete_logs
DELETE
FROM queued_task_logs
WHERE queued_task_logs.id = ANY (array((
    SELECT queued_task_logs.id
    FROM queued_task_logs
    WHERE queued_task_logs.queued_task_id = ANY (CAST(%(ids)s AS UUID[]))
    LIMIT CAST(%(limit)s AS BIGINT)
)));

-- demo_current
SELECT CAST(queued_tasks.args AS TEXT) AS args, date_part('epoch', clock_timestamp() -
    queued_tasks.date_started) AS age
FROM queued_tasks
WHERE queued_tasks.id BETWEEN CAST(%(first)s AS UUID)
AND CAST(%(last)s AS UUID)
AND CAST((queued_tasks.meta ->> %(meta_1)s) AS VARCHAR) = CAST(%(run)s AS TEXT)
AND queued_tasks.state IN ('doing')
ORDER BY queued_tasks.date_started, queued_tasks.date_enqueued
LIMIT CAST(%(limit)s AS INTEGER);

-- demo_failed
SELECT CAST(queued_tasks.args AS TEXT) AS args, queued_tasks.error_type, queued_tasks.error_message
FROM queued_tasks
WHERE queued_tasks.id BETWEEN CAST(%(first)s AS UUID)
AND CAST(%(last)s AS UUID)
AND CAST((queued_tasks.meta ->> %(meta_1)s) AS VARCHAR) = CAST(%(run)s AS TEXT)
AND queued_tasks.state IN ('failed')
ORDER BY queued_tasks.id
LIMIT CAST(%(limit)s AS INTEGER);

-- demo_slowest
SELECT CAST(queued_tasks.args AS TEXT) AS args, date_part('epoch', queued_tasks.date_done -
    queued_tasks.date_started) AS seconds
FROM queued_tasks
WHERE queued_tasks.id BETWEEN CAST(%(first)s AS UUID)
AND CAST(%(last)s AS UUID)
AND CAST((queued_tasks.meta ->> %(meta_1)s) AS VARCHAR) = CAST(%(run)s AS TEXT)
AND queued_tasks.date_started IS NOT NULL
AND queued_tasks.state IN ('done')
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
    queued_tasks.claimed_by) AS workers, date_part('epoch', max(queued_tasks.date_done) -
    min(queued_tasks.date_started)) AS seconds
FROM queued_tasks
WHERE queued_tasks.id BETWEEN CAST(%(first)s AS UUID)
AND CAST(%(last)s AS UUID)
AND CAST((queued_tasks.meta ->> %(meta_1)s) AS VARCHAR) = CAST(%(run)s AS TEXT);

-- detach
UPDATE queued_tasks
SET parent_task=NULL
WHERE queued_tasks.id = ANY (array((
    SELECT queued_tasks.id
    FROM queued_tasks
    WHERE queued_tasks.parent_task = ANY (CAST(%(ids)s AS UUID[]))
    ORDER BY queued_tasks.id
    FOR NO KEY UPDATE SKIP LOCKED
)));

-- disown
UPDATE queued_tasks
SET state='enqueued', date_enqueued=clock_timestamp(), date_started=NULL, date_done=NULL, claimed_by=NULL
WHERE queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.id != ALL (CAST(%(ids)s AS UUID[]))
AND queued_tasks.state IN ('doing')
RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.cancel_requested IS NOT NULL OR
    queued_tasks.stop_requested IS NOT NULL AS is_ordered;

-- disown_all
UPDATE queued_tasks
SET state='enqueued', date_enqueued=clock_timestamp(), date_started=NULL, date_done=NULL, claimed_by=NULL
WHERE queued_tasks.state IN ('doing');

-- due
WITH looked_at AS (
    SELECT queued_tasks.id AS id, queued_tasks.state AS state, queued_tasks.date_done AS date_done
    FROM queued_tasks
    WHERE queued_tasks.id < CAST(%(before)s AS UUID)
    AND queued_tasks.id >= CAST(%(least)s AS UUID)
    ORDER BY queued_tasks.id DESC
    LIMIT CAST(%(look)s AS INTEGER)
)
SELECT CAST(looked_at.id AS TEXT) AS id, coalesce(looked_at.state IN ('done', 'failed', 'cancelled',
    'stopped') AND looked_at.date_done < now() - CASE WHEN (looked_at.state = 'done') THEN CAST(%(done)s AS
    DOUBLE PRECISION) WHEN (looked_at.state = 'failed') THEN CAST(%(failed)s AS DOUBLE PRECISION) WHEN
    (looked_at.state = 'cancelled') THEN CAST(%(cancelled)s AS DOUBLE PRECISION) WHEN (looked_at.state =
    'stopped') THEN CAST(%(stopped)s AS DOUBLE PRECISION) END * interval '1 second', false) AS is_due
FROM looked_at
WHERE coalesce(looked_at.state IN ('done', 'failed', 'cancelled', 'stopped') AND looked_at.date_done < now() -
    CASE WHEN (looked_at.state = 'done') THEN CAST(%(done)s AS DOUBLE PRECISION) WHEN (looked_at.state =
    'failed') THEN CAST(%(failed)s AS DOUBLE PRECISION) WHEN (looked_at.state = 'cancelled') THEN
    CAST(%(cancelled)s AS DOUBLE PRECISION) WHEN (looked_at.state = 'stopped') THEN CAST(%(stopped)s AS DOUBLE
    PRECISION) END * interval '1 second', false) OR looked_at.id = (
    SELECT looked_at.id
    FROM looked_at
    ORDER BY looked_at.id
    LIMIT 1
)
ORDER BY looked_at.id DESC;

-- empty_channels
DELETE
FROM queued_task_channels;

-- empty_logs
DELETE
FROM queued_task_logs;

-- empty_s
DELETE
FROM queued_tasks;

-- empty_schedules
DELETE
FROM queued_task_schedules;

-- empty_ticks
DELETE
FROM queued_task_ticks;

-- end
SELECT queued_tasks.state, queued_tasks.is_awaited, CAST(queued_tasks.result AS TEXT) AS result,
    queued_tasks.error_type, queued_tasks.error_message, queued_tasks.error_traceback
FROM queued_tasks
WHERE queued_tasks.id = CAST(%(id)s AS UUID);

-- end_all_cancelled
UPDATE queued_tasks
SET state='cancelled', date_done=clock_timestamp(), error_message='the task was cancelled while it was
    running', error_type='TaskCancelled', error_traceback=NULL, is_awaited=CASE WHEN queued_tasks.is_awaited
    THEN pg_notify('queuedtask_done', CAST(queued_tasks.id AS TEXT)) IS NULL ELSE false END
WHERE queued_tasks.cancel_requested IS NOT NULL
AND queued_tasks.stop_requested IS NULL
AND queued_tasks.state IN ('waiting', 'enqueued');

-- end_all_stopped
UPDATE queued_tasks
SET state='stopped', date_done=clock_timestamp(), error_message='the task was stopped while it was running',
    error_type='TaskStopped', error_traceback=NULL, is_awaited=CASE WHEN queued_tasks.is_awaited THEN
    pg_notify('queuedtask_done', CAST(queued_tasks.id AS TEXT)) IS NULL ELSE false END
WHERE queued_tasks.stop_requested IS NOT NULL
AND queued_tasks.state IN ('waiting', 'enqueued');

-- end_cancelled
UPDATE queued_tasks
SET state='cancelled', date_started=(clock_timestamp() - ended.second * interval '1 second'),
    date_done=clock_timestamp(), error_message='the task was cancelled while it was running',
    error_type='TaskCancelled', error_traceback=NULL, claimed_by=CAST(%(worker)s AS INTEGER), is_awaited=CASE
    WHEN queued_tasks.is_awaited THEN pg_notify('queuedtask_done', CAST(queued_tasks.id AS TEXT)) IS NULL ELSE
    false END
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(seconds)s AS DOUBLE PRECISION[])) AS ended(id, second)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = ended.id
AND queued_tasks.cancel_requested IS NOT NULL
AND queued_tasks.stop_requested IS NULL
AND queued_tasks.state IN ('waiting', 'enqueued')
RETURNING CAST(queued_tasks.id AS TEXT) AS id;

-- end_stopped
UPDATE queued_tasks
SET state='stopped', date_started=(clock_timestamp() - ended.second * interval '1 second'),
    date_done=clock_timestamp(), error_message='the task was stopped while it was running',
    error_type='TaskStopped', error_traceback=NULL, claimed_by=CAST(%(worker)s AS INTEGER), is_awaited=CASE
    WHEN queued_tasks.is_awaited THEN pg_notify('queuedtask_done', CAST(queued_tasks.id AS TEXT)) IS NULL ELSE
    false END
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(seconds)s AS DOUBLE PRECISION[])) AS ended(id, second)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = ended.id
AND queued_tasks.stop_requested IS NOT NULL
AND queued_tasks.state IN ('waiting', 'enqueued')
RETURNING CAST(queued_tasks.id AS TEXT) AS id;

-- estimated_tasks
SELECT CAST(reltuples AS BIGINT) AS reltuples
FROM pg_class
WHERE oid = to_regclass('queued_tasks');

-- fail
UPDATE queued_tasks
SET state='failed', date_started=coalesce(queued_tasks.date_started, clock_timestamp() - ended.second *
    interval '1 second'), date_done=clock_timestamp(), context=coalesce(ended.context, queued_tasks.context),
    error_message=ended.error_message, error_type=ended.error_type, error_traceback=ended.error_traceback,
    failures=(queued_tasks.failures + 1), lost_count=(queued_tasks.lost_count + ended.lost), is_awaited=CASE
    WHEN queued_tasks.is_awaited THEN pg_notify('queuedtask_done', CAST(queued_tasks.id AS TEXT)) IS NULL ELSE
    false END
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE PRECISION[]),
    array((
    SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_1
    FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
)), CAST(%(error_types)s AS TEXT[]), CAST(%(error_messages)s AS TEXT[]), CAST(%(error_tracebacks)s AS TEXT[]),
    CAST(%(losts)s AS INTEGER[])) AS ended(id, attempt, second, context, error_type, error_message,
    error_traceback, lost)
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
    queued_tasks.claimed_by, queued_tasks.cancel_requested, queued_tasks.stop_requested,
    CAST(queued_tasks.context AS TEXT) AS context, CAST(queued_tasks.result AS TEXT) AS result,
    queued_tasks.error_type, queued_tasks.error_message, queued_tasks.error_traceback, CAST(queued_tasks.meta
    AS TEXT) AS meta, queued_tasks.unique_key
FROM queued_tasks
WHERE (CAST(%(states)s AS TEXT[]) IS NULL OR queued_tasks.state = ANY (CAST(%(states)s AS TEXT[])))
AND (CAST(%(name)s AS TEXT) IS NULL OR queued_tasks.name = CAST(%(name)s AS TEXT))
AND (CAST(%(channel)s AS TEXT) IS NULL OR queued_tasks.channel = CAST(%(channel)s AS TEXT))
ORDER BY queued_tasks.id DESC
LIMIT CAST(%(limit)s AS INTEGER);

-- finish
WITH ended AS (
    UPDATE queued_tasks
    SET state='done', date_started=coalesce(queued_tasks.date_started, clock_timestamp() - ended.second *
        interval '1 second'), date_done=clock_timestamp(), context=coalesce(ended.context,
        queued_tasks.context), result=ended.result, error_message=NULL, error_type=NULL, error_traceback=NULL,
        is_awaited=CASE WHEN queued_tasks.is_awaited THEN pg_notify('queuedtask_done', CAST(queued_tasks.id AS
        TEXT)) IS NULL ELSE false END
    FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE
        PRECISION[]), array((
        SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_1
        FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
    )), array((
        SELECT nullif(CAST(results_value AS JSONB), 'null'::jsonb) AS nullif_2
        FROM json_array_elements(CAST(%(results)s AS JSON)) AS results_value
    ))) AS ended(id, attempt, second, context, result)
    WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
    AND queued_tasks.id = ended.id
    AND queued_tasks.state IN ('doing')
    AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
    AND queued_tasks.attempt = ended.attempt
    RETURNING queued_tasks.id, queued_tasks.attempt
), edges AS (
    SELECT queued_task_dependencies.task AS task, count(*) AS parents
    FROM queued_task_dependencies
    WHERE queued_task_dependencies.parent = ANY (array((
        SELECT ended.id
        FROM ended
    )))
    GROUP BY queued_task_dependencies.task
), counted AS (
    UPDATE queued_tasks
    SET pending_parents=greatest(queued_tasks.pending_parents - edges.parents, 0)
    FROM edges
    WHERE queued_tasks.id = edges.task
    AND queued_tasks.id = ANY (array((
        SELECT queued_tasks.id
        FROM queued_tasks
        WHERE queued_tasks.id = ANY (array((
            SELECT edges.task
            FROM edges
        )))
        AND queued_tasks.state IN ('waiting')
        AND queued_tasks.pending_parents > 0
        ORDER BY queued_tasks.id
        FOR NO KEY UPDATE
    )))
    AND queued_tasks.state IN ('waiting')
    AND queued_tasks.pending_parents > 0
    RETURNING queued_tasks.pending_parents
)
SELECT CAST(ended.id AS TEXT) AS id, ended.attempt, (
    SELECT count(*) AS count_1
    FROM counted
    WHERE counted.pending_parents = 0
) AS freed
FROM ended;

-- forget_pause
DELETE
FROM queued_task_channels
WHERE queued_task_channels.name = CAST(%(name)s AS TEXT)
AND queued_task_channels.is_paused
AND queued_task_channels.max_running IS NULL
AND queued_task_channels.max_starts IS NULL;

-- halt
UPDATE queued_tasks
SET state='stopped', date_started=coalesce(queued_tasks.date_started, clock_timestamp() - ended.second *
    interval '1 second'), date_done=clock_timestamp(), context=coalesce(ended.context, queued_tasks.context),
    error_message=ended.error_message, error_type=ended.error_type, error_traceback=ended.error_traceback,
    is_awaited=CASE WHEN queued_tasks.is_awaited THEN pg_notify('queuedtask_done', CAST(queued_tasks.id AS
    TEXT)) IS NULL ELSE false END
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE PRECISION[]),
    array((
    SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_1
    FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
)), CAST(%(error_types)s AS TEXT[]), CAST(%(error_messages)s AS TEXT[]), CAST(%(error_tracebacks)s AS TEXT[]))
    AS ended(id, attempt, second, context, error_type, error_message, error_traceback)
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
    array((
    SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_1
    FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
))) AS ended(id, attempt, second, context)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = ended.id
AND queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = ended.attempt
RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.attempt, queued_tasks.cancel_requested IS NOT NULL
    OR queued_tasks.stop_requested IS NOT NULL AS is_ordered;

-- hasten
UPDATE queued_tasks
SET date_scheduled=clock_timestamp()
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.state IN ('waiting');

-- heads
SELECT first.name, first.position, count(*) AS count_1
FROM (
    SELECT ranked.name AS name, ranked.position AS position
    FROM (
        SELECT heads.name AS name, heads.position AS position, heads.priority AS priority, heads.date_enqueued
            AS date_enqueued, row_number() OVER (PARTITION BY heads.name ORDER BY heads.priority DESC,
            heads.date_enqueued) AS rank
        FROM (
            SELECT source.name AS name, CAST(NULL AS INTEGER) AS position, head.priority AS priority,
                head.date_enqueued AS date_enqueued
            FROM unnest(CAST(%(names)s AS TEXT[]), CAST(%(mosts)s AS INTEGER[])) AS source(name, most)
            JOIN LATERAL (
                SELECT queued_tasks.priority AS priority, queued_tasks.date_enqueued AS date_enqueued
                FROM queued_tasks
                WHERE queued_tasks.state IN ('enqueued')
                AND queued_tasks.concurrency_key IS NULL
                AND queued_tasks.channel != 'default'
                AND queued_tasks.channel = source.name
                AND (CAST(%(like)s AS TEXT[]) IS NULL OR replace(queued_tasks.function, ':', '.') LIKE ANY
                    (CAST(%(like)s AS TEXT[])) AND queued_tasks.function != ALL (CAST(%(old_refused)s AS
                    TEXT[])) OR queued_tasks.function = ANY (CAST(%(old_allowed)s AS TEXT[])))
                ORDER BY queued_tasks.priority DESC, queued_tasks.date_enqueued
                LIMIT source.most
            ) AS head ON true UNION ALL
            SELECT CAST('default' AS TEXT) AS "'default'", CAST(NULL AS INTEGER) AS position,
                default_head.priority AS priority, default_head.date_enqueued AS date_enqueued
            FROM (
                SELECT queued_tasks.priority AS priority, queued_tasks.date_enqueued AS date_enqueued
                FROM queued_tasks
                WHERE queued_tasks.state IN ('enqueued')
                AND queued_tasks.concurrency_key IS NULL
                AND queued_tasks.channel = 'default'
                AND (CAST(%(like)s AS TEXT[]) IS NULL OR replace(queued_tasks.function, ':', '.') LIKE ANY
                    (CAST(%(like)s AS TEXT[])) AND queued_tasks.function != ALL (CAST(%(old_refused)s AS
                    TEXT[])) OR queued_tasks.function = ANY (CAST(%(old_allowed)s AS TEXT[])))
                ORDER BY queued_tasks.priority DESC, queued_tasks.date_enqueued
                LIMIT CAST(%(default_most)s AS INTEGER)
            ) AS default_head UNION ALL
            SELECT keyed.keyed_channel AS keyed_channel, keyed.position AS position, keyed.keyed_priority AS
                keyed_priority, keyed.keyed_date AS keyed_date
            FROM unnest(CAST(%(keyed_channels)s AS TEXT[]), CAST(%(keyed_prioritys)s AS INTEGER[]),
                CAST(%(keyed_dates)s AS TIMESTAMP WITH TIME ZONE[])) WITH ORDINALITY AS keyed(keyed_channel,
                keyed_priority, keyed_date, position)
        ) AS heads
    ) AS ranked
    LEFT OUTER JOIN unnest(CAST(%(room_names)s AS TEXT[]), CAST(%(room_mosts)s AS INTEGER[])) AS
        room(room_name, room_most) ON room.room_name = ranked.name
    WHERE room.room_most IS NULL OR ranked.rank <= room.room_most
    ORDER BY ranked.priority DESC, ranked.date_enqueued
    LIMIT CAST(%(limit)s AS INTEGER)
) AS first
GROUP BY first.name, first.position;

-- heartbeat
UPDATE queued_task_workers
SET max_workers=CAST(%(slots)s AS INTEGER), active_workers=CAST(%(active)s AS INTEGER),
    idle_workers=(CAST(%(slots)s AS INTEGER) - CAST(%(active)s AS INTEGER)), is_running=true,
    last_heartbeat=clock_timestamp(), stuck=CAST(%(stuck)s AS JSONB), refused=CAST(%(refused)s AS INTEGER)
WHERE queued_task_workers.id = CAST(%(worker)s AS INTEGER);

-- hold
UPDATE queued_tasks
SET state='waiting', date_started=NULL, date_done=NULL, claimed_by=NULL
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.pending_parents > 0
AND queued_tasks.state IN ('enqueued');

-- holders
SELECT queued_tasks.unique_key, CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.state
FROM queued_tasks
WHERE queued_tasks.unique_key = ANY (CAST(%(unique_keys)s AS TEXT[]))
AND queued_tasks.unique_key IS NOT NULL
AND queued_tasks.state IN ('waiting', 'enqueued', 'doing');

-- keep_alive
UPDATE queued_task_workers
SET last_heartbeat=clock_timestamp()
WHERE queued_task_workers.id = ANY (CAST(%(workers)s AS INTEGER[]))
AND queued_task_workers.is_running
RETURNING queued_task_workers.id;

-- limit_idling
SELECT set_config('idle_in_transaction_session_timeout', CAST(%(limit)s AS TEXT), true) AS set_config_1;

-- list_channels
SELECT queued_task_channels.name, queued_task_channels.max_running, queued_task_channels.max_starts,
    queued_task_channels.per_seconds, queued_task_channels.is_paused, queued_task_channels.date_updated
FROM queued_task_channels
ORDER BY queued_task_channels.name;

-- list_schedules
SELECT queued_task_schedules.name, queued_task_schedules.function, CAST(queued_task_schedules.args AS TEXT) AS
    args, CAST(queued_task_schedules.kwargs AS TEXT) AS kwargs, queued_task_schedules.cron,
    queued_task_schedules.timezone, queued_task_schedules.misfire, queued_task_schedules.overlap,
    CAST(queued_task_schedules.options AS TEXT) AS options, queued_task_schedules.is_paused,
    queued_task_schedules.date_last_tick, queued_task_schedules.date_next,
    CAST(queued_task_schedules.last_task AS TEXT) AS last_task, queued_task_schedules.definition,
    clock_timestamp() AS now
FROM queued_task_schedules
ORDER BY queued_task_schedules.name;

-- lock_channels
SELECT queued_task_channels.name, queued_task_channels.max_running, queued_task_channels.max_starts,
    queued_task_channels.per_seconds, queued_task_channels.is_paused, CAST(queued_task_channels.starts AS
    TEXT) AS starts, date_part('epoch', clock_timestamp()) AS date_part_1
FROM queued_task_channels
WHERE queued_task_channels.name = ANY (CAST(%(names)s AS TEXT[]))
ORDER BY queued_task_channels.name
FOR NO KEY UPDATE SKIP LOCKED;

-- lock_children
SELECT CAST(queued_tasks.id AS TEXT) AS id
FROM queued_tasks
WHERE (queued_tasks.id = ANY (array((
    SELECT queued_task_dependencies.task
    FROM queued_task_dependencies
    WHERE queued_task_dependencies.parent = ANY (CAST(%(ids)s AS UUID[]))
))) OR queued_tasks.id = ANY (CAST(%(ids)s AS UUID[])))
AND queued_tasks.state IN ('waiting', 'enqueued')
ORDER BY queued_tasks.id
FOR NO KEY UPDATE;

-- lock_claimed
SELECT CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.function, CAST(queued_tasks.args
    AS TEXT) AS args, CAST(queued_tasks.kwargs AS TEXT) AS kwargs, CAST(queued_tasks.context AS TEXT) AS
    context, queued_tasks.attempt, queued_tasks.failures, queued_tasks.max_retries, queued_tasks.timeout,
    queued_tasks.lost_count, queued_tasks.channel, CAST(nullif(queued_tasks.parents, '{}') AS TEXT[]) AS
    parents, CAST(queued_tasks.meta AS TEXT) AS meta, encode(queued_tasks.pickled_function, 'base64') AS
    pickled_function, queued_tasks.concurrency_key, CAST(%(monotonic)s AS DOUBLE PRECISION) -
    date_part('epoch', clock_timestamp() - queued_tasks.date_enqueued) AS eligible_at, date_part('epoch',
    clock_timestamp() - queued_tasks.date_started) AS age
FROM queued_tasks
WHERE queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
ORDER BY queued_tasks.id
LIMIT CAST(%(limit)s AS INTEGER)
FOR NO KEY UPDATE SKIP LOCKED;

-- lock_due
SELECT CAST(queued_tasks.id AS TEXT) AS id
FROM queued_tasks
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.state IN ('done', 'failed', 'cancelled', 'stopped')
AND queued_tasks.date_done < now() - CASE WHEN (queued_tasks.state = 'done') THEN CAST(%(done)s AS DOUBLE
    PRECISION) WHEN (queued_tasks.state = 'failed') THEN CAST(%(failed)s AS DOUBLE PRECISION) WHEN
    (queued_tasks.state = 'cancelled') THEN CAST(%(cancelled)s AS DOUBLE PRECISION) WHEN (queued_tasks.state =
    'stopped') THEN CAST(%(stopped)s AS DOUBLE PRECISION) END * interval '1 second'
ORDER BY queued_tasks.id FOR UPDATE SKIP LOCKED;

-- lock_due_schedule
SELECT queued_task_schedules.name, queued_task_schedules.function, CAST(queued_task_schedules.args AS TEXT) AS
    args, CAST(queued_task_schedules.kwargs AS TEXT) AS kwargs, queued_task_schedules.cron,
    queued_task_schedules.timezone, queued_task_schedules.misfire, queued_task_schedules.overlap,
    CAST(queued_task_schedules.options AS TEXT) AS options, queued_task_schedules.is_paused,
    queued_task_schedules.date_last_tick, queued_task_schedules.date_next,
    CAST(queued_task_schedules.last_task AS TEXT) AS last_task, queued_task_schedules.definition,
    clock_timestamp() AS now
FROM queued_task_schedules
WHERE queued_task_schedules.is_paused = false
AND queued_task_schedules.name != ALL (CAST(%(besides)s AS TEXT[]))
AND (queued_task_schedules.date_next IS NULL OR queued_task_schedules.date_next <= clock_timestamp())
ORDER BY queued_task_schedules.date_next
LIMIT 1
FOR NO KEY UPDATE SKIP LOCKED;

-- lock_fallen
WITH RECURSIVE again(id, ancestor) AS (
    SELECT unnest(CAST(%(ids)s AS UUID[])) AS id, unnest(CAST(%(ids)s AS UUID[])) AS ancestor UNION
    SELECT below.task AS task, again.ancestor AS ancestor
    FROM again
    JOIN LATERAL (
        SELECT queued_task_dependencies.task AS task
        FROM queued_task_dependencies
        WHERE queued_task_dependencies.parent = again.id
        LIMIT ALL OFFSET 0
    ) AS below ON true
    WHERE (
        SELECT CAST((child.meta ->> %(meta_1)s) AS VARCHAR) AS anon_1
        FROM queued_tasks AS child
        WHERE child.state IN ('cancelled')
        AND child.id = below.task
    ) = CAST(again.ancestor AS TEXT)
)
SELECT CAST(queued_tasks.id AS TEXT) AS id
FROM queued_tasks
WHERE queued_tasks.id = ANY (array((
    SELECT again.id
    FROM again
    WHERE again.id != again.ancestor
)))
AND queued_tasks.state IN ('cancelled')
ORDER BY queued_tasks.id
FOR NO KEY UPDATE;

-- lock_holders
SELECT queued_tasks.id
FROM queued_tasks
WHERE queued_tasks.unique_key = ANY (CAST(%(unique_keys)s AS TEXT[]))
AND queued_tasks.unique_key IS NOT NULL
AND queued_tasks.state IN ('waiting', 'enqueued', 'doing')
AND queued_tasks.state IN ('waiting', 'enqueued')
ORDER BY queued_tasks.unique_key COLLATE "C"
FOR NO KEY UPDATE;

-- lock_keys
SELECT wanted.key
FROM unnest(CAST(%(keys)s AS TEXT[])) AS wanted(key)
WHERE pg_try_advisory_xact_lock(1903455077, hashtext(wanted.key));

-- lock_schedule
SELECT queued_task_schedules.name, queued_task_schedules.function, CAST(queued_task_schedules.args AS TEXT) AS
    args, CAST(queued_task_schedules.kwargs AS TEXT) AS kwargs, queued_task_schedules.cron,
    queued_task_schedules.timezone, queued_task_schedules.misfire, queued_task_schedules.overlap,
    CAST(queued_task_schedules.options AS TEXT) AS options, queued_task_schedules.is_paused,
    queued_task_schedules.date_last_tick, queued_task_schedules.date_next,
    CAST(queued_task_schedules.last_task AS TEXT) AS last_task, queued_task_schedules.definition,
    clock_timestamp() AS now
FROM queued_task_schedules
WHERE queued_task_schedules.name = CAST(%(name)s AS TEXT)
FOR NO KEY UPDATE;

-- lock_silent_worker
SELECT queued_task_workers.id
FROM queued_task_workers
WHERE queued_task_workers.id = CAST(%(worker)s AS INTEGER)
AND (CAST(%(last_heartbeat)s AS TIMESTAMP WITH TIME ZONE) IS NULL OR queued_task_workers.last_heartbeat =
    CAST(%(last_heartbeat)s AS TIMESTAMP WITH TIME ZONE))
FOR NO KEY UPDATE SKIP LOCKED;

-- lock_to_order
SELECT CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.state
FROM queued_tasks
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
ORDER BY queued_tasks.id
FOR NO KEY UPDATE;

-- lock_to_order_if_free
SELECT CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.state
FROM queued_tasks
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
ORDER BY queued_tasks.id
FOR NO KEY UPDATE SKIP LOCKED;

-- lock_unwanted
SELECT CAST(queued_tasks.id AS TEXT) AS id
FROM queued_tasks
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.auto_remove
AND queued_tasks.state = 'done'
ORDER BY queued_tasks.id FOR UPDATE SKIP LOCKED;

-- logs
SELECT queued_task_logs.id, queued_task_logs.date_created, queued_task_logs.type, queued_task_logs.message,
    queued_task_logs.name, queued_task_logs.attempt
FROM queued_task_logs
WHERE queued_task_logs.queued_task_id = CAST(%(id)s AS UUID)
AND queued_task_logs.id > CAST(%(after)s AS BIGINT)
ORDER BY queued_task_logs.id;

-- look
WITH RECURSIVE found(name) AS (
    SELECT CAST((
        SELECT queued_tasks.channel
        FROM queued_tasks
        WHERE queued_tasks.state IN ('enqueued')
        AND queued_tasks.concurrency_key IS NULL
        AND queued_tasks.channel != 'default'
        ORDER BY queued_tasks.channel
        LIMIT 1
    ) AS TEXT) AS name UNION ALL
    SELECT CAST((
        SELECT queued_tasks.channel
        FROM queued_tasks
        WHERE queued_tasks.state IN ('enqueued')
        AND queued_tasks.concurrency_key IS NULL
        AND queued_tasks.channel != 'default'
        AND queued_tasks.channel > found.name
        ORDER BY queued_tasks.channel
        LIMIT 1
    ) AS TEXT) AS anon_3
    FROM found
    WHERE found.name IS NOT NULL
)
SELECT coalesce(source.name, rule.name) AS coalesce_1, source.name IS NOT NULL AS anon_1, rule.name IS NOT
    NULL AS anon_2, rule.max_running, rule.max_starts, rule.per_seconds, rule.is_paused
FROM (
    SELECT CAST('default' AS TEXT) AS name
    WHERE (
        SELECT queued_tasks.priority
        FROM queued_tasks
        WHERE queued_tasks.state IN ('enqueued')
        AND queued_tasks.concurrency_key IS NULL
        AND queued_tasks.channel = 'default'
        ORDER BY queued_tasks.priority DESC, queued_tasks.date_enqueued
        LIMIT 1
    ) IS NOT NULL
    AND (CAST(%(channels)s AS TEXT[]) IS NULL OR 'default' = ANY (CAST(%(channels)s AS TEXT[]))) UNION ALL
    SELECT found.name AS name
    FROM found
    WHERE found.name IS NOT NULL
    AND (CAST(%(channels)s AS TEXT[]) IS NULL OR found.name = ANY (CAST(%(channels)s AS TEXT[])))
) AS source FULL OUTER
JOIN (
    SELECT queued_task_channels.name AS name, queued_task_channels.max_running AS max_running,
        queued_task_channels.max_starts AS max_starts, queued_task_channels.per_seconds AS per_seconds,
        queued_task_channels.is_paused AS is_paused
    FROM queued_task_channels
    WHERE queued_task_channels.is_paused OR queued_task_channels.max_running IS NOT NULL OR
        queued_task_channels.max_starts IS NOT NULL
) AS rule ON rule.name = source.name UNION ALL
SELECT NULL AS anon_4, true AS anon_5, NULL AS anon__1, NULL AS anon__2, NULL AS anon__3, NULL AS anon__4,
    NULL AS anon__5
WHERE (
    SELECT queued_tasks.priority
    FROM queued_tasks
    WHERE queued_tasks.state IN ('enqueued')
    AND queued_tasks.concurrency_key IS NOT NULL
    ORDER BY queued_tasks.priority DESC, queued_tasks.date_enqueued
    LIMIT 1
) IS NOT NULL;

-- lose
UPDATE queued_tasks
SET state='failed', date_started=coalesce(queued_tasks.date_started, clock_timestamp() - ended.second *
    interval '1 second'), date_done=clock_timestamp(), context=coalesce(ended.context, queued_tasks.context),
    error_message=ended.error_message, error_type=ended.error_type, error_traceback=ended.error_traceback,
    lost_count=(queued_tasks.lost_count + ended.lost), is_awaited=CASE WHEN queued_tasks.is_awaited THEN
    pg_notify('queuedtask_done', CAST(queued_tasks.id AS TEXT)) IS NULL ELSE false END
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE PRECISION[]),
    array((
    SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_1
    FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
)), CAST(%(error_types)s AS TEXT[]), CAST(%(error_messages)s AS TEXT[]), CAST(%(error_tracebacks)s AS TEXT[]),
    CAST(%(losts)s AS INTEGER[])) AS ended(id, attempt, second, context, error_type, error_message,
    error_traceback, lost)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = ended.id
AND queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = ended.attempt
RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.attempt;

-- measure_basics
SELECT clock_timestamp() AS clock_timestamp_1, (
    SELECT count(*) AS count_1
    FROM queued_task_workers
    WHERE queued_task_workers.is_running
    AND date_part('epoch', clock_timestamp() - queued_task_workers.last_heartbeat) < greatest(CAST(%(lease)s
        AS DOUBLE PRECISION), queued_task_workers.lease)
) AS anon_1, EXISTS (
    SELECT queued_task_channels.name
    FROM queued_task_channels
    WHERE queued_task_channels.name = '*'
    AND queued_task_channels.is_paused
) AS anon_2, coalesce(pg_relation_size(to_regclass('queued_tasks')), 0) / CAST(current_setting('block_size')
    AS BIGINT) AS anon_3, (coalesce(pg_relation_size(to_regclass('queued_tasks_claim_default')), 0) +
    coalesce(pg_relation_size(to_regclass('queued_tasks_claim_channel')), 0) +
    coalesce(pg_relation_size(to_regclass('queued_tasks_claim_keyed')), 0) +
    coalesce(pg_relation_size(to_regclass('queued_tasks_releasable')), 0) +
    coalesce(pg_relation_size(to_regclass('queued_tasks_with_parents')), 0)) /
    CAST(current_setting('block_size') AS BIGINT) AS anon_4,
    coalesce(pg_relation_size(to_regclass('queued_tasks_failed')), 0) / CAST(current_setting('block_size') AS
    BIGINT) AS anon_5;

-- measure_durations
SELECT grouping(each.channel, each.name) AS grouping_1, coalesce(each.channel, each.name) AS coalesce_1,
    CAST(coalesce(sum(each.number), 0) AS DOUBLE PRECISION) AS coalesce_2, CAST(coalesce(sum(each.seconds), 0)
    AS DOUBLE PRECISION) AS coalesce_3
FROM (
    SELECT took.channel AS channel, took.name AS name, count(*) AS number, date_part('epoch', sum(took.time))
        AS seconds
    FROM (
        SELECT newest.channel AS channel, newest.name AS name, newest.date_done - newest.date_started AS time
        FROM (
            SELECT queued_tasks.channel AS channel, queued_tasks.name AS name, queued_tasks.state AS state,
                queued_tasks.date_started AS date_started, queued_tasks.date_done AS date_done
            FROM queued_tasks
            WHERE queued_tasks.id <= CAST(%(up_to)s AS UUID)
            ORDER BY queued_tasks.id DESC
            LIMIT 5000
        ) AS newest
        WHERE newest.state = 'done'
        AND newest.date_started IS NOT NULL
    ) AS took
    GROUP BY took.channel, took.name
) AS each
GROUP BY GROUPING SETS((), (each.channel), (each.name))
ORDER BY grouping(each.channel, each.name) = 3 DESC, CAST(coalesce(sum(each.number), 0) AS DOUBLE PRECISION)
    DESC
LIMIT 2001;

-- measure_failed
SELECT grouping(each.channel, each.name) AS grouping_1, coalesce(each.channel, each.name) AS coalesce_1,
    CAST(coalesce(sum(each.number), 0) AS DOUBLE PRECISION) AS coalesce_2
FROM (
    SELECT failed.channel AS channel, failed.name AS name, count(*) AS number
    FROM (
        SELECT queued_tasks.channel AS channel, queued_tasks.name AS name
        FROM queued_tasks
        WHERE queued_tasks.state IN ('failed')
        AND queued_tasks.date_done >= (
            SELECT date_trunc('day', now(), 'UTC') AS date_trunc_1
        )
        LIMIT 100001
    ) AS failed
    GROUP BY failed.channel, failed.name
) AS each
GROUP BY GROUPING SETS((), (each.channel), (each.name))
ORDER BY grouping(each.channel, each.name) = 3 DESC, CAST(coalesce(sum(each.number), 0) AS DOUBLE PRECISION)
    DESC
LIMIT 2001;

-- measure_front
SELECT CAST(coalesce((
    SELECT doing.id
    FROM (
        SELECT queued_tasks.id AS id
        FROM queued_tasks
        WHERE queued_tasks.state IN ('doing')
        LIMIT 1000
    ) AS doing
    ORDER BY doing.id DESC
    LIMIT 1
), (
    SELECT queued_tasks.id
    FROM queued_tasks
    WHERE queued_tasks.state IN ('enqueued')
    AND queued_tasks.concurrency_key IS NULL
    AND queued_tasks.channel = 'default'
    ORDER BY queued_tasks.priority DESC, queued_tasks.date_enqueued
    LIMIT 1
), (
    SELECT queued_tasks.id
    FROM queued_tasks
    WHERE queued_tasks.state IN ('enqueued')
    AND queued_tasks.concurrency_key IS NULL
    AND queued_tasks.channel != 'default'
    ORDER BY queued_tasks.channel, queued_tasks.priority DESC, queued_tasks.date_enqueued
    LIMIT 1
)) AS TEXT) AS coalesce_1;

-- measure_pending
SELECT grouping(each.channel, each.name) AS grouping_1, coalesce(each.channel, each.name) AS coalesce_1,
    CAST(coalesce(sum(each.number), 0) AS DOUBLE PRECISION) AS coalesce_2, max(each.oldest) AS max_1
FROM (
    SELECT CAST('default' AS TEXT) AS channel, found.name AS name, count(*) AS number, date_part('epoch',
        clock_timestamp() - min(found.date_enqueued)) AS oldest
    FROM (
        SELECT queued_tasks.name AS name, queued_tasks.channel AS channel, queued_tasks.date_enqueued AS
            date_enqueued
        FROM queued_tasks
        WHERE queued_tasks.state IN ('enqueued')
        AND queued_tasks.state IN ('enqueued')
        AND queued_tasks.concurrency_key IS NULL
        AND queued_tasks.channel = 'default'
        LIMIT 100001
    ) AS found
    GROUP BY found.name UNION ALL
    SELECT found.channel AS channel, found.name AS name, count(*) AS number, date_part('epoch',
        clock_timestamp() - min(found.date_enqueued)) AS oldest
    FROM (
        SELECT queued_tasks.name AS name, queued_tasks.channel AS channel, queued_tasks.date_enqueued AS
            date_enqueued
        FROM queued_tasks
        WHERE queued_tasks.state IN ('enqueued')
        AND queued_tasks.state IN ('enqueued')
        AND queued_tasks.concurrency_key IS NULL
        AND queued_tasks.channel != 'default'
        LIMIT 100001
    ) AS found
    GROUP BY found.channel, found.name UNION ALL
    SELECT found.channel AS channel, found.name AS name, count(*) AS number, date_part('epoch',
        clock_timestamp() - min(found.date_enqueued)) AS oldest
    FROM (
        SELECT queued_tasks.name AS name, queued_tasks.channel AS channel, queued_tasks.date_enqueued AS
            date_enqueued
        FROM queued_tasks
        WHERE queued_tasks.state IN ('enqueued')
        AND queued_tasks.state IN ('enqueued')
        AND queued_tasks.concurrency_key IS NOT NULL
        LIMIT 100001
    ) AS found
    GROUP BY found.channel, found.name UNION ALL
    SELECT found.channel AS channel, found.name AS name, count(*) AS number, date_part('epoch',
        clock_timestamp() - CAST(NULL AS TIMESTAMP WITH TIME ZONE)) AS oldest
    FROM (
        SELECT queued_tasks.name AS name, queued_tasks.channel AS channel, queued_tasks.date_enqueued AS
            date_enqueued
        FROM queued_tasks
        WHERE queued_tasks.state IN ('waiting')
        AND queued_tasks.pending_parents <= 0
        LIMIT 100001
    ) AS found
    GROUP BY found.channel, found.name UNION ALL
    SELECT found.channel AS channel, found.name AS name, count(*) AS number, date_part('epoch',
        clock_timestamp() - CAST(NULL AS TIMESTAMP WITH TIME ZONE)) AS oldest
    FROM (
        SELECT queued_tasks.name AS name, queued_tasks.channel AS channel, queued_tasks.date_enqueued AS
            date_enqueued
        FROM queued_tasks
        WHERE queued_tasks.state IN ('waiting')
        AND queued_tasks.pending_parents > 0
        LIMIT 100001
    ) AS found
    GROUP BY found.channel, found.name
) AS each
GROUP BY GROUPING SETS((), (each.channel), (each.name))
ORDER BY grouping(each.channel, each.name) = 3 DESC, CAST(coalesce(sum(each.number), 0) AS DOUBLE PRECISION)
    DESC
LIMIT 2001;

-- measure_running
SELECT grouping(each.channel, each.name) AS grouping_1, coalesce(each.channel, each.name) AS coalesce_1,
    CAST(coalesce(sum(each.number), 0) AS DOUBLE PRECISION) AS coalesce_2, CAST(coalesce(sum(each.stuck), 0)
    AS DOUBLE PRECISION) AS coalesce_3
FROM (
    SELECT running.channel AS channel, running.name AS name, count(*) AS number, count(*) FILTER (WHERE
        running.is_stuck) AS stuck
    FROM (
        SELECT doing.channel AS channel, doing.name AS name, live.id IS NULL OR date_part('epoch',
            clock_timestamp() - doing.date_started) > coalesce(doing.timeout, CAST(%(task_timeout)s AS DOUBLE
            PRECISION)) + CAST(%(grace)s AS DOUBLE PRECISION) AS is_stuck
        FROM (
            SELECT queued_tasks.channel AS channel, queued_tasks.name AS name, queued_tasks.claimed_by AS
                claimed_by, queued_tasks.date_started AS date_started, queued_tasks.timeout AS timeout
            FROM queued_tasks
            WHERE queued_tasks.state IN ('doing')
            LIMIT 100001
        ) AS doing
        LEFT OUTER JOIN (
            SELECT queued_task_workers.id AS id
            FROM queued_task_workers
            WHERE queued_task_workers.is_running
            AND date_part('epoch', clock_timestamp() - queued_task_workers.last_heartbeat) <
                greatest(CAST(%(lease)s AS DOUBLE PRECISION), queued_task_workers.lease)
        ) AS live ON live.id = doing.claimed_by
    ) AS running
    GROUP BY running.channel, running.name
) AS each
GROUP BY GROUPING SETS((), (each.channel), (each.name))
ORDER BY grouping(each.channel, each.name) = 3 DESC, CAST(coalesce(sum(each.number), 0) AS DOUBLE PRECISION) +
    CAST(coalesce(sum(each.stuck), 0) AS DOUBLE PRECISION) DESC
LIMIT 2001;

-- measure_sample
SELECT grouping(each.channel, each.name) AS grouping_1, coalesce(each.channel, each.name) AS coalesce_1,
    CAST(coalesce(sum(each.pending), 0) AS DOUBLE PRECISION) AS coalesce_2, CAST(coalesce(sum(each.running),
    0) AS DOUBLE PRECISION) AS coalesce_3, CAST(coalesce(sum(each.failed), 0) AS DOUBLE PRECISION) AS
    coalesce_4, max(each.oldest) AS max_1
FROM (
    SELECT sampled.channel AS channel, sampled.name AS name, CASE WHEN (sampled.state IN ('waiting',
        'enqueued')) THEN count(*) ELSE 0 END AS pending, CASE WHEN (sampled.state IN ('doing')) THEN count(*)
        ELSE 0 END AS running, CASE WHEN (sampled.state IN ('failed')) THEN count(*) ELSE 0 END AS failed,
        CASE WHEN (sampled.state IN ('enqueued')) THEN date_part('epoch', clock_timestamp() -
        min(sampled.date_enqueued)) END AS oldest
    FROM queued_tasks AS sampled TABLESAMPLE system(CAST(%(percent)s AS REAL)) REPEATABLE (0)
    WHERE sampled.state IN ('waiting', 'enqueued', 'doing') OR sampled.state IN ('failed')
    AND sampled.date_done >= (
        SELECT date_trunc('day', now(), 'UTC') AS date_trunc_1
    )
    GROUP BY sampled.channel, sampled.name, sampled.state
) AS each
GROUP BY GROUPING SETS((), (each.channel), (each.name))
ORDER BY grouping(each.channel, each.name) = 3 DESC, CAST(coalesce(sum(each.pending), 0) AS DOUBLE PRECISION)
    + CAST(coalesce(sum(each.running), 0) AS DOUBLE PRECISION) + CAST(coalesce(sum(each.failed), 0) AS DOUBLE
    PRECISION) DESC
LIMIT 2001;

-- measure_stuck_slots
SELECT grouping(each.channel, each.name) AS grouping_1, coalesce(each.channel, each.name) AS coalesce_1,
    CAST(coalesce(sum(each.number), 0) AS DOUBLE PRECISION) AS coalesce_2
FROM (
    SELECT slots.channel AS channel, slots.name AS name, count(*) AS number
    FROM (
        SELECT queued_tasks.channel AS channel, coalesce(queued_tasks.name, slot_1.value ->> 'name', '') AS
            name
        FROM queued_task_workers
        JOIN LATERAL jsonb_array_elements(queued_task_workers.stuck) AS slot_1 ON true
        LEFT OUTER JOIN queued_tasks ON queued_tasks.id = CAST(slot_1.value ->> 'task' AS UUID)
        WHERE queued_task_workers.is_running
        AND date_part('epoch', clock_timestamp() - queued_task_workers.last_heartbeat) <
            greatest(CAST(%(lease)s AS DOUBLE PRECISION), queued_task_workers.lease)
    ) AS slots
    GROUP BY slots.channel, slots.name
) AS each
GROUP BY GROUPING SETS((), (each.channel), (each.name))
ORDER BY grouping(each.channel, each.name) = 3 DESC, CAST(coalesce(sum(each.number), 0) AS DOUBLE PRECISION)
    DESC
LIMIT 2001;

-- move_schedule
UPDATE queued_task_schedules
SET date_last_tick=coalesce(CAST(%(date_last_tick)s AS TIMESTAMP WITH TIME ZONE),
    queued_task_schedules.date_last_tick), date_next=CAST(%(date_next)s AS TIMESTAMP WITH TIME ZONE),
    last_task=coalesce(CAST(%(last_task)s AS UUID), queued_task_schedules.last_task)
WHERE queued_task_schedules.name = CAST(%(name)s AS TEXT);

-- notify
SELECT pg_notify(CAST(%(notify_channel)s AS TEXT), '') AS pg_notify_1;

-- oldest_enqueued
SELECT CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.date_enqueued, date_part('epoch',
    clock_timestamp() - queued_tasks.date_enqueued) AS age
FROM queued_tasks
WHERE queued_tasks.state IN ('enqueued')
AND queued_tasks.concurrency_key IS NULL
AND queued_tasks.channel = 'default' OR queued_tasks.state IN ('enqueued')
AND queued_tasks.concurrency_key IS NULL
AND queued_tasks.channel != 'default' OR queued_tasks.state IN ('enqueued')
AND queued_tasks.concurrency_key IS NOT NULL
ORDER BY queued_tasks.date_enqueued
LIMIT 1;

-- oldest_pending
WITH RECURSIVE of_default(channel, priority, date_enqueued, step) AS (
    SELECT anon_1.channel AS channel, anon_1.priority AS priority, anon_1.date_enqueued AS date_enqueued, 1 AS
        step
    FROM (
        SELECT queued_tasks.channel AS channel, queued_tasks.priority AS priority, queued_tasks.date_enqueued
            AS date_enqueued
        FROM queued_tasks
        WHERE queued_tasks.state IN ('enqueued')
        AND queued_tasks.concurrency_key IS NULL
        AND queued_tasks.channel = 'default'
        ORDER BY queued_tasks.priority DESC, queued_tasks.date_enqueued
        LIMIT 1
    ) AS anon_1 UNION ALL
    SELECT following.channel AS channel, following.priority AS priority, following.date_enqueued AS
        date_enqueued, of_default.step + 1 AS anon_2
    FROM of_default
    JOIN LATERAL (
        SELECT queued_tasks.channel AS channel, queued_tasks.priority AS priority, queued_tasks.date_enqueued
            AS date_enqueued
        FROM queued_tasks
        WHERE queued_tasks.state IN ('enqueued')
        AND queued_tasks.concurrency_key IS NULL
        AND queued_tasks.channel = 'default'
        AND queued_tasks.priority < of_default.priority
        ORDER BY queued_tasks.priority DESC, queued_tasks.date_enqueued
        LIMIT 1
    ) AS following ON true
    WHERE of_default.step < 1000
), of_others(channel, priority, date_enqueued, step) AS (
    SELECT anon_3.channel AS channel, anon_3.priority AS priority, anon_3.date_enqueued AS date_enqueued, 1 AS
        step
    FROM (
        SELECT queued_tasks.channel AS channel, queued_tasks.priority AS priority, queued_tasks.date_enqueued
            AS date_enqueued
        FROM queued_tasks
        WHERE queued_tasks.state IN ('enqueued')
        AND queued_tasks.concurrency_key IS NULL
        AND queued_tasks.channel != 'default'
        ORDER BY queued_tasks.channel, queued_tasks.priority DESC, queued_tasks.date_enqueued
        LIMIT 1
    ) AS anon_3 UNION ALL
    SELECT following.channel AS channel, following.priority AS priority, following.date_enqueued AS
        date_enqueued, of_others.step + 1 AS anon_4
    FROM of_others
    JOIN LATERAL (
        SELECT anon_5.channel AS channel, anon_5.priority AS priority, anon_5.date_enqueued AS date_enqueued
        FROM ((
            SELECT queued_tasks.channel AS channel, queued_tasks.priority AS priority,
                queued_tasks.date_enqueued AS date_enqueued
            FROM queued_tasks
            WHERE queued_tasks.state IN ('enqueued')
            AND queued_tasks.concurrency_key IS NULL
            AND queued_tasks.channel != 'default'
            AND queued_tasks.priority < of_others.priority
            AND queued_tasks.channel = of_others.channel
            ORDER BY queued_tasks.priority DESC, queued_tasks.date_enqueued
            LIMIT 1
        ) UNION ALL (
            SELECT queued_tasks.channel AS channel, queued_tasks.priority AS priority,
                queued_tasks.date_enqueued AS date_enqueued
            FROM queued_tasks
            WHERE queued_tasks.state IN ('enqueued')
            AND queued_tasks.concurrency_key IS NULL
            AND queued_tasks.channel != 'default'
            AND queued_tasks.channel > of_others.channel
            ORDER BY queued_tasks.channel, queued_tasks.priority DESC, queued_tasks.date_enqueued
            LIMIT 1
        )) AS anon_5
        LIMIT 1
    ) AS following ON true
    WHERE of_others.step < 1000
), of_keyed(channel, priority, date_enqueued, step) AS (
    SELECT anon_6.channel AS channel, anon_6.priority AS priority, anon_6.date_enqueued AS date_enqueued, 1 AS
        step
    FROM (
        SELECT queued_tasks.channel AS channel, queued_tasks.priority AS priority, queued_tasks.date_enqueued
            AS date_enqueued
        FROM queued_tasks
        WHERE queued_tasks.state IN ('enqueued')
        AND queued_tasks.concurrency_key IS NOT NULL
        ORDER BY queued_tasks.priority DESC, queued_tasks.date_enqueued
        LIMIT 1
    ) AS anon_6 UNION ALL
    SELECT following.channel AS channel, following.priority AS priority, following.date_enqueued AS
        date_enqueued, of_keyed.step + 1 AS anon_7
    FROM of_keyed
    JOIN LATERAL (
        SELECT queued_tasks.channel AS channel, queued_tasks.priority AS priority, queued_tasks.date_enqueued
            AS date_enqueued
        FROM queued_tasks
        WHERE queued_tasks.state IN ('enqueued')
        AND queued_tasks.concurrency_key IS NOT NULL
        AND queued_tasks.priority < of_keyed.priority
        ORDER BY queued_tasks.priority DESC, queued_tasks.date_enqueued
        LIMIT 1
    ) AS following ON true
    WHERE of_keyed.step < 1000
)
SELECT heads.channel, date_part('epoch', clock_timestamp() - min(heads.date_enqueued)) AS date_part_1
FROM (
    SELECT of_default.channel AS channel, of_default.date_enqueued AS date_enqueued
    FROM of_default UNION ALL
    SELECT of_others.channel AS channel, of_others.date_enqueued AS date_enqueued
    FROM of_others UNION ALL
    SELECT of_keyed.channel AS channel, of_keyed.date_enqueued AS date_enqueued
    FROM of_keyed
) AS heads
GROUP BY heads.channel;

-- oldest_transaction
SELECT CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS TEXT) AS BIGINT) AS pg_snapshot_xmin_1;

-- orderable
SELECT CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.state, queued_tasks.function,
    CAST(queued_tasks.args AS TEXT) AS args, CAST(queued_tasks.kwargs AS TEXT) AS kwargs,
    queued_tasks.channel, queued_tasks.priority, CAST(queued_tasks.parents AS TEXT[]) AS parents,
    queued_tasks.date_created, queued_tasks.date_enqueued, queued_tasks.date_scheduled,
    queued_tasks.date_started, queued_tasks.date_done, queued_tasks.attempt, queued_tasks.failures,
    queued_tasks.max_retries, queued_tasks.lost_count, queued_tasks.requeues, queued_tasks.timeout,
    queued_tasks.claimed_by, queued_tasks.cancel_requested, queued_tasks.stop_requested,
    CAST(queued_tasks.context AS TEXT) AS context, CAST(queued_tasks.result AS TEXT) AS result,
    queued_tasks.error_type, queued_tasks.error_message, queued_tasks.error_traceback, CAST(queued_tasks.meta
    AS TEXT) AS meta, queued_tasks.unique_key
FROM queued_tasks
WHERE queued_tasks.state IN ('waiting', 'enqueued', 'doing')
AND queued_tasks.state = ANY (CAST(%(states)s AS TEXT[]))
AND (CAST(%(ids)s AS UUID[]) IS NULL OR queued_tasks.id = ANY (CAST(%(ids)s AS UUID[])))
AND (CAST(%(name)s AS TEXT) IS NULL OR queued_tasks.name = CAST(%(name)s AS TEXT))
AND (CAST(%(channel)s AS TEXT) IS NULL OR queued_tasks.channel = CAST(%(channel)s AS TEXT))
AND (CAST(%(since)s AS DOUBLE PRECISION) IS NULL OR queued_tasks.date_created >= now() - CAST(%(since)s AS
    DOUBLE PRECISION) * interval '1 second')
ORDER BY queued_tasks.id
LIMIT CAST(%(limit)s AS INTEGER);

-- orderable_ids
SELECT CAST(queued_tasks.id AS TEXT) AS id
FROM queued_tasks
WHERE queued_tasks.state IN ('waiting', 'enqueued', 'doing')
AND queued_tasks.state = ANY (CAST(%(states)s AS TEXT[]))
AND (CAST(%(ids)s AS UUID[]) IS NULL OR queued_tasks.id = ANY (CAST(%(ids)s AS UUID[])))
AND (CAST(%(name)s AS TEXT) IS NULL OR queued_tasks.name = CAST(%(name)s AS TEXT))
AND (CAST(%(channel)s AS TEXT) IS NULL OR queued_tasks.channel = CAST(%(channel)s AS TEXT))
AND (CAST(%(since)s AS DOUBLE PRECISION) IS NULL OR queued_tasks.date_created >= now() - CAST(%(since)s AS
    DOUBLE PRECISION) * interval '1 second')
ORDER BY queued_tasks.id
LIMIT CAST(%(limit)s AS INTEGER);

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

-- pause_channel
INSERT INTO queued_task_channels (name, is_paused)
VALUES (CAST(%(name)s AS TEXT), true)
ON CONFLICT (name) DO UPDATE
SET is_paused = true, date_updated = clock_timestamp()
RETURNING queued_task_channels.name;

-- plan_along_indexes
SELECT set_config('enable_seqscan', 'off', true) AS set_config_1, set_config('enable_bitmapscan', 'off', true)
    AS set_config_2, set_config('enable_sort', 'off', true) AS set_config_3, set_config('jit', 'off', true) AS
    set_config_4, set_config('max_parallel_workers_per_gather', '0', true) AS set_config_5;

-- read_clock
SELECT clock_timestamp() AS clock_timestamp_1;

-- rebuild_dependencies
INSERT INTO queued_task_dependencies (task, parent)
SELECT queued_tasks.id, parent.id AS id_1
FROM queued_tasks
JOIN unnest(queued_tasks.parents) AS edge(parent) ON true
JOIN queued_tasks AS parent ON parent.id = edge.parent
ON CONFLICT DO NOTHING;

-- record_starts
UPDATE queued_task_channels
SET starts=(CAST(%(before)s AS JSONB) || jsonb_build_array(jsonb_build_array(date_part('epoch',
    clock_timestamp()), CAST(%(count)s AS INTEGER))))
WHERE queued_task_channels.name = CAST(%(name)s AS TEXT);

-- recount
UPDATE queued_tasks
SET pending_parents=(
    SELECT count(*) AS count_1
    FROM queued_task_dependencies AS edge
    JOIN queued_tasks AS parent ON parent.id = edge.parent
    WHERE edge.task = queued_tasks.id
    AND (parent.state NOT IN ('done', 'failed', 'cancelled', 'stopped'))
)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.state IN ('waiting', 'enqueued');

-- recount_as_new
UPDATE queued_tasks
SET pending_parents=(
    SELECT count(*) AS count_1
    FROM queued_task_dependencies AS edge
    JOIN queued_tasks AS parent ON parent.id = edge.parent
    WHERE edge.task = queued_tasks.id
    AND ((parent.state NOT IN ('done', 'failed', 'cancelled', 'stopped')) OR parent.state != 'done' AND
        queued_tasks.on_parent_failure = 'cancel')
)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.state IN ('waiting', 'enqueued');

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

-- relations
SELECT queued_task_dependencies.task
FROM queued_task_dependencies
WHERE queued_task_dependencies.parent = ANY (CAST(%(ids)s AS UUID[])) OR queued_task_dependencies.task = ANY
    (CAST(%(ids)s AS UUID[]))
LIMIT 1;

-- release
UPDATE queued_tasks
SET state='enqueued', date_enqueued=clock_timestamp(), date_started=NULL, date_done=NULL, claimed_by=NULL
WHERE queued_tasks.id = ANY (array((
    SELECT queued_tasks.id
    FROM queued_tasks
    WHERE queued_tasks.state IN ('waiting')
    AND queued_tasks.pending_parents <= 0
    AND (queued_tasks.date_scheduled IS NULL OR queued_tasks.date_scheduled <= statement_timestamp())
    ORDER BY queued_tasks.date_scheduled
    LIMIT CAST(%(limit)s AS INTEGER)
    FOR NO KEY UPDATE SKIP LOCKED
)))
AND queued_tasks.state IN ('waiting')
RETURNING CAST(queued_tasks.id AS TEXT) AS id;

-- release_children
UPDATE queued_tasks
SET state='enqueued', date_enqueued=clock_timestamp(), date_started=NULL, date_done=NULL, claimed_by=NULL
WHERE queued_tasks.id = ANY (array((
    SELECT queued_tasks.id
    FROM queued_tasks
    WHERE queued_tasks.id = ANY (array((
        SELECT queued_task_dependencies.task
        FROM queued_task_dependencies
        WHERE queued_task_dependencies.parent = ANY (CAST(%(ids)s AS UUID[]))
    )))
    AND queued_tasks.state IN ('waiting')
    AND queued_tasks.pending_parents <= 0
    ORDER BY queued_tasks.id
    FOR NO KEY UPDATE
)))
AND (queued_tasks.date_scheduled IS NULL OR queued_tasks.date_scheduled <= statement_timestamp())
AND queued_tasks.state IN ('waiting');

-- removable
SELECT CAST(queued_tasks.id AS TEXT) AS id, cardinality(array((
    SELECT 1
    FROM queued_tasks AS child
    WHERE child.parent_task = queued_tasks.id
    AND child.id != ALL (CAST(%(locked)s AS UUID[]))
    LIMIT 1
))) > 0 AS is_parent
FROM queued_tasks
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND CAST((
    SELECT count(*) <= 200
    AND coalesce(bool_and(children.state IN ('done', 'failed', 'cancelled', 'stopped')), true) AS anon_1
    FROM (
        SELECT child.state AS state
        FROM queued_tasks AS child
        WHERE child.parent_task = queued_tasks.id
        AND child.id != ALL (CAST(%(locked)s AS UUID[])) UNION ALL
        SELECT (
            SELECT of_edge.state
            FROM queued_tasks AS of_edge
            WHERE of_edge.id = queued_task_dependencies.task
        ) AS anon_2
        FROM queued_task_dependencies
        WHERE queued_task_dependencies.parent = queued_tasks.id
        AND queued_task_dependencies.task != ALL (CAST(%(locked)s AS UUID[]))
        LIMIT 201
    ) AS children
) AS BOOLEAN);

-- removable_unwanted
SELECT CAST(queued_tasks.id AS TEXT) AS id, cardinality(array((
    SELECT 1
    FROM queued_tasks AS child
    WHERE child.parent_task = queued_tasks.id
    AND child.id != ALL (CAST(%(locked)s AS UUID[]))
    LIMIT 1
))) > 0 AS is_parent
FROM queued_tasks
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND CAST((
    SELECT count(*) <= 200
    AND coalesce(bool_and(children.state IN ('done', 'failed', 'cancelled', 'stopped')), true) AS anon_1
    FROM (
        SELECT child.state AS state
        FROM queued_tasks AS child
        WHERE child.parent_task = queued_tasks.id
        AND child.id != ALL (CAST(%(locked)s AS UUID[])) UNION ALL
        SELECT (
            SELECT of_edge.state
            FROM queued_tasks AS of_edge
            WHERE of_edge.id = queued_task_dependencies.task
        ) AS anon_2
        FROM queued_task_dependencies
        WHERE queued_task_dependencies.parent = queued_tasks.id
        AND queued_task_dependencies.task != ALL (CAST(%(locked)s AS UUID[]))
        LIMIT 201
    ) AS children
) AS BOOLEAN)
AND CAST((
    SELECT count(*) <= 10000
    AND count(*) FILTER (WHERE lines.type IN ('error', 'critical')) = 0 AS anon_3
    FROM (
        SELECT queued_task_logs.type AS type
        FROM queued_task_logs
        WHERE queued_task_logs.queued_task_id = queued_tasks.id
        LIMIT 10001
    ) AS lines
) AS BOOLEAN);

-- remove
DELETE
FROM queued_tasks
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND cardinality(array((
    SELECT 1
    FROM queued_tasks AS child
    WHERE child.parent_task = queued_tasks.id
    AND child.id != ALL (CAST(%(locked)s AS UUID[]))
    LIMIT 1
))) <= 0;

-- remove_schedule
DELETE
FROM queued_task_schedules
WHERE queued_task_schedules.name = CAST(%(name)s AS TEXT);

-- remove_workers
DELETE
FROM queued_task_workers
WHERE queued_task_workers.id = ANY (array((
    SELECT queued_task_workers.id
    FROM queued_task_workers
    WHERE NOT queued_task_workers.is_running
    AND queued_task_workers.last_heartbeat < now() - CAST(%(seconds)s AS DOUBLE PRECISION) * interval '1
        second'
    AND (queued_task_workers.id NOT IN (
        SELECT queued_tasks.claimed_by
        FROM queued_tasks
        WHERE queued_tasks.state = 'doing'
        AND queued_tasks.claimed_by IS NOT NULL
    ))
    ORDER BY queued_task_workers.id
    LIMIT CAST(%(limit)s AS INTEGER) FOR UPDATE SKIP LOCKED
)));

-- renew_edges
UPDATE queued_task_dependencies
SET added_in=CAST(CAST(pg_current_xact_id() AS TEXT) AS BIGINT)
WHERE queued_task_dependencies.task = ANY (CAST(%(ids)s AS UUID[]));

-- replace
WITH replaced AS (
    UPDATE queued_tasks
    SET name=spec.name, context=spec.context, result=NULL, error_message=NULL, function=spec.function,
        args=spec.args, kwargs=spec.kwargs, error_type=NULL, error_traceback=NULL, channel=spec.channel,
        priority=spec.priority, date_scheduled=NULL, failures=0, max_retries=spec.max_retries, lost_count=0,
        timeout=spec.timeout, concurrency_key=spec.concurrency_key, auto_remove=spec.auto_remove,
        pickled_function=decode(spec.pickled_function, 'base64'), meta=spec.meta
    FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(names)s AS TEXT[]), CAST(%(functions)s AS TEXT[]), array((
        SELECT nullif(CAST(argss_value AS JSONB), 'null'::jsonb) AS nullif_1
        FROM json_array_elements(CAST(%(argss)s AS JSON)) AS argss_value
    )), array((
        SELECT nullif(CAST(kwargss_value AS JSONB), 'null'::jsonb) AS nullif_2
        FROM json_array_elements(CAST(%(kwargss)s AS JSON)) AS kwargss_value
    )), CAST(%(channels)s AS TEXT[]), CAST(%(prioritys)s AS INTEGER[]), CAST(%(timeouts)s AS DOUBLE
        PRECISION[]), CAST(%(max_retriess)s AS INTEGER[]), array((
        SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_3
        FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
    )), array((
        SELECT nullif(CAST(metas_value AS JSONB), 'null'::jsonb) AS nullif_4
        FROM json_array_elements(CAST(%(metas)s AS JSON)) AS metas_value
    )), CAST(%(concurrency_keys)s AS TEXT[]), CAST(%(auto_removes)s AS BOOLEAN[]), CAST(%(pickled_functions)s
        AS TEXT[]), CAST(%(delays)s AS DOUBLE PRECISION[]), CAST(%(run_ats)s AS TIMESTAMP WITH TIME ZONE[]),
        CAST(%(unique_keys)s AS TEXT[]), CAST(%(on_conflicts)s AS TEXT[])) AS spec(id, name, function, args,
        kwargs, channel, priority, timeout, max_retries, context, meta, concurrency_key, auto_remove,
        pickled_function, delay, run_at, unique_key, on_conflict)
    WHERE queued_tasks.unique_key = ANY (CAST(%(unique_keys)s AS TEXT[]))
    AND queued_tasks.unique_key = spec.unique_key
    AND queued_tasks.unique_key IS NOT NULL
    AND queued_tasks.state IN ('waiting', 'enqueued', 'doing')
    AND queued_tasks.state IN ('waiting', 'enqueued')
    RETURNING queued_tasks.unique_key, CAST(queued_tasks.id AS TEXT) AS id
)
SELECT replaced.unique_key, replaced.id, CASE WHEN (replaced.unique_key IS NULL OR CAST(%(notify_channel)s AS
    TEXT) IS NULL) THEN NULL ELSE CAST(pg_notify(CAST(%(notify_channel)s AS TEXT), '') AS TEXT) END AS anon_1
FROM replaced;

-- request_cancel
UPDATE queued_tasks
SET cancel_requested=coalesce(queued_tasks.cancel_requested, clock_timestamp())
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.state IN ('doing')
RETURNING CAST(queued_tasks.id AS TEXT) AS id;

-- request_stop
UPDATE queued_tasks
SET stop_requested=coalesce(queued_tasks.stop_requested, clock_timestamp())
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.state IN ('doing')
RETURNING CAST(queued_tasks.id AS TEXT) AS id;

-- requeue
UPDATE queued_tasks
SET state='enqueued', date_enqueued=clock_timestamp(), date_started=NULL, date_done=NULL, result=NULL,
    error_message=NULL, error_type=NULL, error_traceback=NULL, date_scheduled=NULL, failures=0, lost_count=0,
    requeues=(queued_tasks.requeues + 1), claimed_by=NULL, cancel_requested=NULL, stop_requested=NULL,
    pending_parents=0, meta=CASE WHEN (jsonb_typeof(queued_tasks.meta) = 'object') THEN
    jsonb_delete(queued_tasks.meta, 'failed_ancestor') ELSE queued_tasks.meta END
WHERE queued_tasks.id = ANY (array((
    SELECT ranked.id
    FROM (
        SELECT fitting.id AS id, row_number() OVER (PARTITION BY fitting.key ORDER BY fitting.date_done DESC)
            AS place
        FROM (
            SELECT queued_tasks.id AS id, queued_tasks.date_done AS date_done,
                coalesce(queued_tasks.unique_key, CAST(queued_tasks.id AS TEXT)) AS key
            FROM queued_tasks
            WHERE queued_tasks.state = ANY (CAST(%(states)s AS TEXT[]))
            AND (CAST(%(ids)s AS UUID[]) IS NULL OR queued_tasks.id = ANY (CAST(%(ids)s AS UUID[])))
            AND (CAST(%(name)s AS TEXT) IS NULL OR queued_tasks.name = CAST(%(name)s AS TEXT))
            AND (CAST(%(channel)s AS TEXT) IS NULL OR queued_tasks.channel = CAST(%(channel)s AS TEXT))
            AND (CAST(%(since)s AS DOUBLE PRECISION) IS NULL OR queued_tasks.date_done >= now() -
                CAST(%(since)s AS DOUBLE PRECISION) * interval '1 second')
            AND (CAST(%(max_requeues)s AS INTEGER) IS NULL OR queued_tasks.requeues < CAST(%(max_requeues)s AS
                INTEGER))
            AND NOT (queued_tasks.unique_key IS NOT NULL AND (EXISTS (
                SELECT 1
                FROM queued_tasks AS holder
                WHERE holder.unique_key = queued_tasks.unique_key
                AND holder.unique_key IS NOT NULL
                AND holder.state IN ('waiting', 'enqueued', 'doing')
            )))
            ORDER BY queued_tasks.date_done
            LIMIT CAST(%(limit)s AS INTEGER) FOR UPDATE SKIP LOCKED
        ) AS fitting
    ) AS ranked
    WHERE ranked.place = 1
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
    queued_tasks.claimed_by, queued_tasks.cancel_requested, queued_tasks.stop_requested,
    CAST(queued_tasks.context AS TEXT) AS context, CAST(queued_tasks.result AS TEXT) AS result,
    queued_tasks.error_type, queued_tasks.error_message, queued_tasks.error_traceback, CAST(queued_tasks.meta
    AS TEXT) AS meta, queued_tasks.unique_key
FROM queued_tasks
WHERE queued_tasks.id = ANY (array((
    SELECT ranked.id
    FROM (
        SELECT fitting.id AS id, row_number() OVER (PARTITION BY fitting.key ORDER BY fitting.date_done DESC)
            AS place
        FROM (
            SELECT queued_tasks.id AS id, queued_tasks.date_done AS date_done,
                coalesce(queued_tasks.unique_key, CAST(queued_tasks.id AS TEXT)) AS key
            FROM queued_tasks
            WHERE queued_tasks.state = ANY (CAST(%(states)s AS TEXT[]))
            AND (CAST(%(ids)s AS UUID[]) IS NULL OR queued_tasks.id = ANY (CAST(%(ids)s AS UUID[])))
            AND (CAST(%(name)s AS TEXT) IS NULL OR queued_tasks.name = CAST(%(name)s AS TEXT))
            AND (CAST(%(channel)s AS TEXT) IS NULL OR queued_tasks.channel = CAST(%(channel)s AS TEXT))
            AND (CAST(%(since)s AS DOUBLE PRECISION) IS NULL OR queued_tasks.date_done >= now() -
                CAST(%(since)s AS DOUBLE PRECISION) * interval '1 second')
            AND (CAST(%(max_requeues)s AS INTEGER) IS NULL OR queued_tasks.requeues < CAST(%(max_requeues)s AS
                INTEGER))
            AND NOT (queued_tasks.unique_key IS NOT NULL AND (EXISTS (
                SELECT 1
                FROM queued_tasks AS holder
                WHERE holder.unique_key = queued_tasks.unique_key
                AND holder.unique_key IS NOT NULL
                AND holder.state IN ('waiting', 'enqueued', 'doing')
            )))
            ORDER BY queued_tasks.date_done
            LIMIT CAST(%(limit)s AS INTEGER)
        ) AS fitting
    ) AS ranked
    WHERE ranked.place = 1
)))
ORDER BY queued_tasks.date_done;

-- reschedule
WITH replaced AS (
    UPDATE queued_tasks
    SET name=spec.name, state='waiting', date_started=NULL, date_done=NULL, context=spec.context, result=NULL,
        error_message=NULL, function=spec.function, args=spec.args, kwargs=spec.kwargs, error_type=NULL,
        error_traceback=NULL, channel=spec.channel, priority=spec.priority,
        date_scheduled=coalesce(spec.run_at, CASE WHEN (spec.on_conflict = 'debounce') THEN clock_timestamp()
        ELSE queued_tasks.date_created END + spec.delay * interval '1 second'), failures=0,
        max_retries=spec.max_retries, lost_count=0, timeout=spec.timeout, claimed_by=NULL,
        concurrency_key=spec.concurrency_key, auto_remove=spec.auto_remove,
        pickled_function=decode(spec.pickled_function, 'base64'), meta=spec.meta
    FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(names)s AS TEXT[]), CAST(%(functions)s AS TEXT[]), array((
        SELECT nullif(CAST(argss_value AS JSONB), 'null'::jsonb) AS nullif_1
        FROM json_array_elements(CAST(%(argss)s AS JSON)) AS argss_value
    )), array((
        SELECT nullif(CAST(kwargss_value AS JSONB), 'null'::jsonb) AS nullif_2
        FROM json_array_elements(CAST(%(kwargss)s AS JSON)) AS kwargss_value
    )), CAST(%(channels)s AS TEXT[]), CAST(%(prioritys)s AS INTEGER[]), CAST(%(timeouts)s AS DOUBLE
        PRECISION[]), CAST(%(max_retriess)s AS INTEGER[]), array((
        SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_3
        FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
    )), array((
        SELECT nullif(CAST(metas_value AS JSONB), 'null'::jsonb) AS nullif_4
        FROM json_array_elements(CAST(%(metas)s AS JSON)) AS metas_value
    )), CAST(%(concurrency_keys)s AS TEXT[]), CAST(%(auto_removes)s AS BOOLEAN[]), CAST(%(pickled_functions)s
        AS TEXT[]), CAST(%(delays)s AS DOUBLE PRECISION[]), CAST(%(run_ats)s AS TIMESTAMP WITH TIME ZONE[]),
        CAST(%(unique_keys)s AS TEXT[]), CAST(%(on_conflicts)s AS TEXT[])) AS spec(id, name, function, args,
        kwargs, channel, priority, timeout, max_retries, context, meta, concurrency_key, auto_remove,
        pickled_function, delay, run_at, unique_key, on_conflict)
    WHERE queued_tasks.unique_key = ANY (CAST(%(unique_keys)s AS TEXT[]))
    AND queued_tasks.unique_key = spec.unique_key
    AND queued_tasks.unique_key IS NOT NULL
    AND queued_tasks.state IN ('waiting', 'enqueued', 'doing')
    AND queued_tasks.state IN ('waiting', 'enqueued')
    RETURNING queued_tasks.unique_key, CAST(queued_tasks.id AS TEXT) AS id
)
SELECT replaced.unique_key, replaced.id, CASE WHEN (replaced.unique_key IS NULL OR CAST(%(notify_channel)s AS
    TEXT) IS NULL) THEN NULL ELSE CAST(pg_notify(CAST(%(notify_channel)s AS TEXT), '') AS TEXT) END AS anon_1
FROM replaced;

-- rescue
UPDATE queued_tasks
SET state='enqueued', date_enqueued=clock_timestamp(), date_started=NULL, date_done=NULL,
    context=coalesce(ended.context, queued_tasks.context), lost_count=(queued_tasks.lost_count + ended.lost),
    claimed_by=NULL
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE PRECISION[]),
    array((
    SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_1
    FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
)), CAST(%(losts)s AS INTEGER[])) AS ended(id, attempt, second, context, lost)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = ended.id
AND queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = ended.attempt
RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.attempt, queued_tasks.cancel_requested IS NOT NULL
    OR queued_tasks.stop_requested IS NOT NULL AS is_ordered;

-- resume_channel
UPDATE queued_task_channels
SET max_running=nullif(queued_task_channels.max_running, 0), max_starts=CASE WHEN
    (queued_task_channels.max_starts = 0) THEN NULL ELSE queued_task_channels.max_starts END, per_seconds=CASE
    WHEN (queued_task_channels.max_starts = 0) THEN NULL ELSE queued_task_channels.per_seconds END,
    is_paused=false, date_updated=clock_timestamp()
WHERE queued_task_channels.name = CAST(%(name)s AS TEXT);

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
    array((
    SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_1
    FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
)), CAST(%(error_types)s AS TEXT[]), CAST(%(error_messages)s AS TEXT[]), CAST(%(error_tracebacks)s AS TEXT[]),
    CAST(%(delays)s AS DOUBLE PRECISION[]), CAST(%(losts)s AS INTEGER[])) AS ended(id, attempt, second,
    context, error_type, error_message, error_traceback, delay, lost)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = ended.id
AND queued_tasks.state IN ('doing')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = ended.attempt
RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.attempt, queued_tasks.cancel_requested IS NOT NULL
    OR queued_tasks.stop_requested IS NOT NULL AS is_ordered;

-- revive
WITH RECURSIVE again(id, ancestor) AS (
    SELECT unnest(CAST(%(ids)s AS UUID[])) AS id, unnest(CAST(%(ids)s AS UUID[])) AS ancestor UNION
    SELECT below.task AS task, again.ancestor AS ancestor
    FROM again
    JOIN LATERAL (
        SELECT queued_task_dependencies.task AS task
        FROM queued_task_dependencies
        WHERE queued_task_dependencies.parent = again.id
        LIMIT ALL OFFSET 0
    ) AS below ON true
    WHERE (
        SELECT CAST((child.meta ->> %(meta_1)s) AS VARCHAR) AS anon_1
        FROM queued_tasks AS child
        WHERE child.state IN ('cancelled')
        AND child.id = below.task
    ) = CAST(again.ancestor AS TEXT)
)
UPDATE queued_tasks
SET state='waiting', date_started=NULL, date_done=NULL, error_message=NULL, error_type=NULL, claimed_by=NULL,
    meta=CASE WHEN (jsonb_typeof(queued_tasks.meta) = 'object') THEN jsonb_delete(queued_tasks.meta,
    'failed_ancestor') ELSE queued_tasks.meta END
WHERE queued_tasks.id = ANY (array((
    SELECT queued_tasks.id
    FROM queued_tasks
    WHERE queued_tasks.id = ANY (array((
        SELECT again.id
        FROM again
        WHERE again.id != again.ancestor
    )))
    AND queued_tasks.state IN ('cancelled')
    AND (queued_tasks.unique_key IS NULL OR NOT (queued_tasks.unique_key IS NOT NULL AND (EXISTS (
        SELECT 1
        FROM queued_tasks AS holder
        WHERE holder.unique_key = queued_tasks.unique_key
        AND holder.unique_key IS NOT NULL
        AND holder.state IN ('waiting', 'enqueued', 'doing')
    ))) AND queued_tasks.id = (
        SELECT twin.id
        FROM queued_tasks AS twin
        WHERE twin.id IN (
            SELECT again.id
            FROM again
        )
        AND twin.unique_key = queued_tasks.unique_key
        AND twin.state IN ('cancelled')
        ORDER BY twin.id DESC
        LIMIT 1
    ))
    ORDER BY queued_tasks.id
    FOR NO KEY UPDATE
)))
AND queued_tasks.state IN ('cancelled')
RETURNING CAST(queued_tasks.id AS TEXT) AS id;

-- rival
SELECT queued_tasks.unique_key, CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.state
FROM queued_tasks
JOIN queued_tasks AS ended ON ended.unique_key = queued_tasks.unique_key
WHERE ended.id = CAST(%(id)s AS UUID)
AND queued_tasks.unique_key IS NOT NULL
AND queued_tasks.state IN ('waiting', 'enqueued', 'doing')
AND queued_tasks.id != ended.id;

-- running
SELECT CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.claimed_by, queued_tasks.attempt,
    queued_tasks.date_started, queued_tasks.timeout, date_part('epoch', clock_timestamp() -
    queued_tasks.date_started) AS age, CAST(queued_tasks.context[%(context_1)s] AS TEXT) AS progress
FROM queued_tasks
WHERE queued_tasks.state IN ('doing')
AND queued_tasks.date_started IS NOT NULL
ORDER BY queued_tasks.claimed_by, queued_tasks.date_started;

-- seconds_running
SELECT date_part('epoch', clock_timestamp() - queued_tasks.date_enqueued) AS date_part_1
FROM queued_tasks
WHERE queued_tasks.id = CAST(%(id)s AS UUID)
AND (queued_tasks.state NOT IN ('done', 'failed', 'cancelled', 'stopped'));

-- seconds_to_next_due
SELECT date_part('epoch', min(queued_tasks.date_scheduled) - clock_timestamp()) AS date_part_1
FROM queued_tasks
WHERE queued_tasks.state IN ('waiting')
AND queued_tasks.pending_parents <= 0;

-- seconds_to_next_tick
SELECT date_part('epoch', min(coalesce(queued_task_schedules.date_next, now())) - clock_timestamp()) AS
    date_part_1
FROM queued_task_schedules
WHERE queued_task_schedules.is_paused = false
AND queued_task_schedules.name != ALL (CAST(%(besides)s AS TEXT[]));

-- seed_channels
INSERT INTO queued_task_channels (name, max_running, max_starts, per_seconds)
SELECT given.name, given.max_running, given.max_start, given.per_second
FROM unnest(CAST(%(names)s AS TEXT[]), CAST(%(max_runnings)s AS INTEGER[]), CAST(%(max_starts)s AS INTEGER[]),
    CAST(%(per_seconds)s AS DOUBLE PRECISION[])) AS given(name, max_running, max_start, per_second)
ON CONFLICT (name) DO UPDATE
SET max_running = excluded.max_running, max_starts = excluded.max_starts, per_seconds = excluded.per_seconds
WHERE queued_task_channels.is_paused
AND queued_task_channels.max_running IS NULL
AND queued_task_channels.max_starts IS NULL;

-- server_version
SELECT current_setting('server_version') AS current_setting_1, clock_timestamp() AS clock_timestamp_1;

-- standing_orders
SELECT CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.attempt, CASE WHEN (queued_tasks.stop_requested IS
    NOT NULL) THEN 'stop' ELSE 'cancel' END AS anon_1
FROM queued_tasks
WHERE queued_tasks.state IN ('doing')
AND (queued_tasks.cancel_requested IS NOT NULL OR queued_tasks.stop_requested IS NOT NULL)
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER);

-- stats
SELECT sample.name, count(*) FILTER (WHERE sample.state = 'waiting') AS waiting, count(*) FILTER (WHERE
    sample.state = 'enqueued') AS enqueued, count(*) FILTER (WHERE sample.state = 'doing') AS doing, count(*)
    FILTER (WHERE sample.state = 'done') AS done, count(*) FILTER (WHERE sample.state = 'failed') AS failed,
    count(*) FILTER (WHERE sample.state = 'cancelled') AS cancelled, count(*) FILTER (WHERE sample.state =
    'stopped') AS stopped, sum(sample.failures) AS failures, avg(date_part('epoch', sample.date_done -
    sample.date_started)) AS seconds_average, percentile_cont(0.95) WITHIN GROUP (ORDER BY date_part('epoch',
    sample.date_done - sample.date_started)) AS seconds_p95, count(*) FILTER (WHERE sample.date_done >
    clock_timestamp() - interval '1 hour') AS ended_last_hour
FROM (
    SELECT queued_tasks.name AS name, queued_tasks.state AS state, queued_tasks.failures AS failures,
        queued_tasks.date_started AS date_started, queued_tasks.date_done AS date_done
    FROM queued_tasks
    ORDER BY queued_tasks.id DESC
    LIMIT CAST(%(sample)s AS INTEGER)
) AS sample
GROUP BY sample.name
ORDER BY count(*) DESC, sample.name;

-- stop_pending
UPDATE queued_tasks
SET state='stopped', date_done=clock_timestamp(), error_message='the task was stopped',
    error_type='TaskStopped', error_traceback=NULL, is_awaited=CASE WHEN queued_tasks.is_awaited THEN
    pg_notify('queuedtask_done', CAST(queued_tasks.id AS TEXT)) IS NULL ELSE false END
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.state IN ('waiting', 'enqueued')
RETURNING CAST(queued_tasks.id AS TEXT) AS id;

-- strays
SELECT CAST(stray.task AS TEXT) AS task
FROM (
    SELECT edge.task AS task
    FROM queued_task_dependencies AS edge
    JOIN queued_tasks AS parent ON parent.id = edge.parent
    JOIN queued_tasks AS child ON child.id = edge.task
    WHERE child.state IN ('waiting')
    AND child.pending_parents > 0
    GROUP BY edge.task, child.pending_parents, child.on_parent_failure HAVING count(*) FILTER (WHERE
        (parent.state NOT IN ('done', 'failed', 'cancelled', 'stopped'))) < child.pending_parents OR
        child.on_parent_failure = 'cancel'
    AND bool_or(parent.state IN ('failed', 'cancelled', 'stopped'))
    LIMIT CAST(%(limit)s AS INTEGER)
) AS stray;

-- take_down
WITH RECURSIVE falling(id, ancestor) AS (
    SELECT edge.task AS id, coalesce((
        SELECT ancestor.id
        FROM queued_tasks AS parent
        JOIN queued_tasks AS ancestor ON ancestor.id = CASE WHEN (CAST((parent.meta ->> %(meta_1)s) AS
            VARCHAR) ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$') THEN CAST(CAST((parent.meta ->>
            %(meta_1)s) AS VARCHAR) AS UUID) END
        WHERE parent.id = edge.parent
        AND parent.state IN ('cancelled')
        AND ancestor.state IN ('failed', 'cancelled', 'stopped')
    ), edge.parent) AS ancestor
    FROM queued_task_dependencies AS edge
    WHERE edge.parent = ANY (CAST(%(ids)s AS UUID[]))
    AND (
        SELECT child.on_parent_failure
        FROM queued_tasks AS child
        WHERE child.state IN ('waiting')
        AND child.pending_parents > 0
        AND child.id = edge.task
    ) = 'cancel' UNION
    SELECT below.task AS task, falling.ancestor AS ancestor
    FROM falling
    JOIN LATERAL (
        SELECT queued_task_dependencies.task AS task
        FROM queued_task_dependencies
        WHERE queued_task_dependencies.parent = falling.id
        LIMIT ALL OFFSET 0
    ) AS below ON true
    WHERE (
        SELECT child.on_parent_failure
        FROM queued_tasks AS child
        WHERE child.state IN ('waiting')
        AND child.pending_parents > 0
        AND child.id = below.task
    ) = 'cancel'
), one AS (
    SELECT falling.id AS id, CAST(min(CAST(falling.ancestor AS TEXT)) AS UUID) AS ancestor
    FROM falling
    GROUP BY falling.id
)
UPDATE queued_tasks
SET state='cancelled', date_done=clock_timestamp(), error_message=format('%%s (%%s) ended as %%s',
    coalesce(nullif(parent.name, ''), parent.function), parent.id, parent.state), error_type='ParentFailed',
    error_traceback=NULL, meta=jsonb_concat(CASE WHEN (jsonb_typeof(queued_tasks.meta) = 'object') THEN
    queued_tasks.meta ELSE CAST('{}' AS JSONB) END, jsonb_build_object('failed_ancestor', parent.id)),
    is_awaited=CASE WHEN queued_tasks.is_awaited THEN pg_notify('queuedtask_done', CAST(queued_tasks.id AS
    TEXT)) IS NULL ELSE false END
FROM one, queued_tasks AS parent
WHERE queued_tasks.id = one.id
AND parent.id = one.ancestor
AND queued_tasks.id = ANY (array((
    SELECT queued_tasks.id
    FROM queued_tasks
    WHERE queued_tasks.id = ANY (array((
        SELECT one.id
        FROM one
    )))
    AND queued_tasks.state IN ('waiting')
    AND queued_tasks.pending_parents > 0
    ORDER BY queued_tasks.id
    FOR NO KEY UPDATE
)))
AND queued_tasks.state IN ('waiting')
AND queued_tasks.pending_parents > 0
AND queued_tasks.state IN ('waiting', 'enqueued')
RETURNING CAST(queued_tasks.id AS TEXT) AS id;

-- take_turn
SELECT pg_advisory_xact_lock(8175552253633327719) AS pg_advisory_xact_lock_1;

-- task
SELECT CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.name, queued_tasks.state, queued_tasks.function,
    CAST(queued_tasks.args AS TEXT) AS args, CAST(queued_tasks.kwargs AS TEXT) AS kwargs,
    queued_tasks.channel, queued_tasks.priority, CAST(queued_tasks.parents AS TEXT[]) AS parents,
    queued_tasks.date_created, queued_tasks.date_enqueued, queued_tasks.date_scheduled,
    queued_tasks.date_started, queued_tasks.date_done, queued_tasks.attempt, queued_tasks.failures,
    queued_tasks.max_retries, queued_tasks.lost_count, queued_tasks.requeues, queued_tasks.timeout,
    queued_tasks.claimed_by, queued_tasks.cancel_requested, queued_tasks.stop_requested,
    CAST(queued_tasks.context AS TEXT) AS context, CAST(queued_tasks.result AS TEXT) AS result,
    queued_tasks.error_type, queued_tasks.error_message, queued_tasks.error_traceback, CAST(queued_tasks.meta
    AS TEXT) AS meta, queued_tasks.unique_key
FROM queued_tasks
WHERE queued_tasks.id = CAST(%(id)s AS UUID);

-- travel_channels
UPDATE queued_task_channels
SET starts='[]'
WHERE queued_task_channels.per_seconds <= CAST(%(seconds)s AS DOUBLE PRECISION);

-- travel_queued_task_attempts
UPDATE queued_task_attempts
SET date_started=(queued_task_attempts.date_started - CAST(%(seconds)s AS DOUBLE PRECISION) * interval '1
    second'), date_done=(queued_task_attempts.date_done - CAST(%(seconds)s AS DOUBLE PRECISION) * interval '1
    second');

-- travel_queued_task_logs
UPDATE queued_task_logs
SET date_created=(queued_task_logs.date_created - CAST(%(seconds)s AS DOUBLE PRECISION) * interval '1 second');

-- travel_queued_task_schedules
UPDATE queued_task_schedules
SET date_last_tick=(queued_task_schedules.date_last_tick - CAST(%(seconds)s AS DOUBLE PRECISION) * interval '1
    second'), date_next=(queued_task_schedules.date_next - CAST(%(seconds)s AS DOUBLE PRECISION) * interval '1
    second');

-- travel_queued_tasks
UPDATE queued_tasks
SET date_enqueued=(queued_tasks.date_enqueued - CAST(%(seconds)s AS DOUBLE PRECISION) * interval '1 second'),
    date_started=(queued_tasks.date_started - CAST(%(seconds)s AS DOUBLE PRECISION) * interval '1 second'),
    date_done=(queued_tasks.date_done - CAST(%(seconds)s AS DOUBLE PRECISION) * interval '1 second'),
    date_created=(queued_tasks.date_created - CAST(%(seconds)s AS DOUBLE PRECISION) * interval '1 second'),
    date_scheduled=(queued_tasks.date_scheduled - CAST(%(seconds)s AS DOUBLE PRECISION) * interval '1
    second'), cancel_requested=(queued_tasks.cancel_requested - CAST(%(seconds)s AS DOUBLE PRECISION) *
    interval '1 second'), stop_requested=(queued_tasks.stop_requested - CAST(%(seconds)s AS DOUBLE PRECISION)
    * interval '1 second');

-- try_turn
SELECT pg_try_advisory_xact_lock(8175552253633327719) AS pg_try_advisory_xact_lock_1;

-- unwanted
SELECT CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.date_done
FROM queued_tasks
WHERE queued_tasks.auto_remove
AND queued_tasks.state = 'done'
AND (queued_tasks.date_done, queued_tasks.id) > (coalesce(CAST(%(date_done)s AS TIMESTAMP WITH TIME ZONE),
    CAST('-infinity' AS TIMESTAMP WITH TIME ZONE)), coalesce(CAST(%(id)s AS UUID),
    CAST('00000000-0000-0000-0000-000000000000' AS UUID)))
ORDER BY queued_tasks.date_done, queued_tasks.id
LIMIT CAST(%(limit)s AS INTEGER);

-- workers
SELECT queued_task_workers.id, queued_task_workers.server_name, queued_task_workers.max_workers,
    queued_task_workers.active_workers, queued_task_workers.idle_workers, queued_task_workers.is_running,
    queued_task_workers.last_heartbeat, queued_task_workers.pid, queued_task_workers.supervisor_pid,
    queued_task_workers.date_started, queued_task_workers.version, queued_task_workers.lease,
    CAST(queued_task_workers.stuck AS TEXT) AS stuck, queued_task_workers.refused, date_part('epoch',
    clock_timestamp() - queued_task_workers.last_heartbeat) AS silence
FROM queued_task_workers
WHERE queued_task_workers.is_running OR CAST(%(all)s AS INTEGER) = %(param_1)s
ORDER BY queued_task_workers.id;

-- write_progress
UPDATE queued_tasks
SET date_started=coalesce(queued_tasks.date_started, clock_timestamp() - running.second * interval '1
    second'), context=coalesce(running.context, queued_tasks.context)
FROM unnest(CAST(%(ids)s AS UUID[]), CAST(%(attempts)s AS INTEGER[]), CAST(%(seconds)s AS DOUBLE PRECISION[]),
    array((
    SELECT nullif(CAST(contexts_value AS JSONB), 'null'::jsonb) AS nullif_1
    FROM json_array_elements(CAST(%(contexts)s AS JSON)) AS contexts_value
))) AS running(id, attempt, second, context)
WHERE queued_tasks.id = ANY (CAST(%(ids)s AS UUID[]))
AND queued_tasks.id = running.id
AND queued_tasks.state IN ('doing', 'done')
AND queued_tasks.claimed_by = CAST(%(worker)s AS INTEGER)
AND queued_tasks.attempt = running.attempt
RETURNING CAST(queued_tasks.id AS TEXT) AS id, queued_tasks.attempt;

-- young_strays
SELECT CAST(stray.task AS TEXT) AS task
FROM (
    SELECT edge.task AS task
    FROM queued_task_dependencies AS edge
    JOIN queued_tasks AS parent ON parent.id = edge.parent
    JOIN queued_tasks AS child ON child.id = edge.task
    WHERE child.state IN ('waiting')
    AND child.pending_parents > 0
    AND edge.added_in >= CAST(%(since)s AS BIGINT)
    GROUP BY edge.task, child.pending_parents, child.on_parent_failure HAVING count(*) FILTER (WHERE
        (parent.state NOT IN ('done', 'failed', 'cancelled', 'stopped'))) < child.pending_parents OR
        child.on_parent_failure = 'cancel'
    AND bool_or(parent.state IN ('failed', 'cancelled', 'stopped'))
    LIMIT CAST(%(limit)s AS INTEGER)
) AS stray;
