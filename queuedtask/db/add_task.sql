-- Adding tasks from SQL and from triggers. Optional: "queuedtask db functions" installs it, into the schema of the
-- tables. What stands between at-signs is filled in then.

CREATE OR REPLACE FUNCTION @schema@.queuedtask_add_task(
    function text,
    args jsonb DEFAULT NULL,
    kwargs jsonb DEFAULT NULL,
    name text DEFAULT NULL,
    channel text DEFAULT NULL,
    priority integer DEFAULT NULL,
    delay interval DEFAULT NULL,
    run_at timestamptz DEFAULT NULL,
    timeout interval DEFAULT NULL,
    max_retries integer DEFAULT NULL,
    backoff jsonb DEFAULT NULL,
    unique_key text DEFAULT NULL,
    on_conflict text DEFAULT NULL,
    parent uuid DEFAULT NULL,
    parents uuid[] DEFAULT NULL,
    on_parent_failure text DEFAULT NULL,
    concurrency_key text DEFAULT NULL,
    concurrency integer DEFAULT NULL,
    fifo boolean DEFAULT NULL,
    isolation text DEFAULT NULL,
    auto_remove boolean DEFAULT NULL,
    context jsonb DEFAULT NULL,
    meta jsonb DEFAULT NULL
) RETURNS uuid
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY INVOKER
-- Fixed, so that it means these tables and PostgreSQL's own functions whoever calls it, and a trigger of whichever table.
SET search_path = pg_catalog, @schema@, pg_temp
AS $queuedtask$
#variable_conflict use_column
DECLARE
    longest CONSTANT double precision := 100 * 366 * 86400.0;
    the_function CONSTANT text := function;
    the_args CONSTANT jsonb := coalesce(args, '[]');
    the_kwargs CONSTANT jsonb := coalesce(kwargs, '{}');
    the_name CONSTANT text := coalesce(name, CASE
        WHEN length(function) <= 255 THEN replace(function, ':', '.')
        ELSE left(replace(function, ':', '.'), 127) || '…' || right(replace(function, ':', '.'), 127) END);
    the_channel CONSTANT text := coalesce(channel, 'default');
    the_priority CONSTANT integer := coalesce(priority, 0);
    the_delay CONSTANT double precision := extract(epoch FROM delay);
    the_time CONSTANT timestamptz := coalesce(run_at, clock_timestamp() + delay);
    the_timeout CONSTANT double precision := extract(epoch FROM timeout);
    the_retries CONSTANT integer := max_retries;
    the_backoff CONSTANT jsonb := backoff;
    the_key CONSTANT text := unique_key;
    the_conflict CONSTANT text := coalesce(on_conflict, 'return');
    the_failure CONSTANT text := coalesce(on_parent_failure, 'cancel');
    the_concurrency_key CONSTANT text := concurrency_key;
    the_removal CONSTANT boolean := coalesce(auto_remove, false);
    the_context CONSTANT jsonb := context;
    the_meta jsonb := meta;
    the_parents uuid[];
    the_id uuid;
    known integer := 0;
    pending integer := 0;
    wrong text;
BEGIN
    IF the_function IS NULL OR the_function !~
        '^([A-Za-z_]|[^\x01-\x7f])([A-Za-z0-9_]|[^\x01-\x7f])*(\.([A-Za-z_]|[^\x01-\x7f])([A-Za-z0-9_]|[^\x01-\x7f])*)*:([A-Za-z_]|[^\x01-\x7f])([A-Za-z0-9_]|[^\x01-\x7f])*(\.([A-Za-z_]|[^\x01-\x7f])([A-Za-z0-9_]|[^\x01-\x7f])*)*$'
    THEN
        wrong := format('function => %L: must be the path of a function, like ''shop.tasks:send''', the_function);
    ELSIF split_part(the_function, ':', 1) IN ('__main__', '__mp_main__') THEN
        wrong := format('function => %L: every process has its own %s, write the module''s real name',
            the_function, split_part(the_function, ':', 1));
    ELSIF jsonb_typeof(the_args) <> 'array' THEN
        wrong := format('args => %L: must be an array, the positional arguments: ''[1, "two"]''', left(the_args::text, 100));
    ELSIF jsonb_typeof(the_kwargs) <> 'object' THEN
        wrong := format('kwargs => %L: must be an object, the keyword arguments: ''{"a": 1}''',
            left(the_kwargs::text, 100));
    ELSIF octet_length(the_args::text) + octet_length(the_kwargs::text) > @max_payload@ THEN
        wrong := format('args and kwargs have %s bytes: at most QUEUE_MAX_PAYLOAD = @max_payload@ are allowed',
            octet_length(the_args::text) + octet_length(the_kwargs::text));
    ELSIF length(the_name) NOT BETWEEN 1 AND 255 THEN
        wrong := format('name => %L: must have 1 to 255 characters', left(the_name, 300));
    ELSIF length(the_channel) NOT BETWEEN 1 AND 64 OR the_channel = '*' THEN
        wrong := format('channel => %L: must have 1 to 64 characters, and not be ''*''', left(the_channel, 100));
    ELSIF delay IS NOT NULL AND run_at IS NOT NULL THEN
        wrong := 'delay and run_at: give one of them, not both';
    ELSIF NOT (coalesce(the_delay, 0) BETWEEN 0 AND longest) THEN
        wrong := format('delay => %L: must be 0 or more, at most 100 years', delay);
    ELSIF NOT (coalesce(run_at, now()) >= '1970-01-01 00:00+00' AND coalesce(run_at, now()) < '9000-01-01 00:00+00') THEN
        wrong := format('run_at => %L: must lie in the years 1970 to 8999', run_at);
    ELSIF NOT (coalesce(the_timeout, 1) > 0 AND coalesce(the_timeout, 1) <= longest) THEN
        wrong := format('timeout => %L: must be more than 0, at most 100 years', timeout);
    ELSIF the_retries < 0 THEN
        wrong := format('max_retries => %s: must be 0 or more', the_retries);
    ELSIF NOT (CASE jsonb_typeof(the_backoff)
        WHEN 'string' THEN the_backoff #>> '{}' IN ('exponential', 'linear')
        WHEN 'array' THEN jsonb_array_length(the_backoff) BETWEEN 1 AND 100 AND NOT EXISTS (
            SELECT FROM jsonb_array_elements(the_backoff) AS each (value)
            WHERE CASE WHEN jsonb_typeof(each.value) = 'number'
                THEN NOT (each.value #>> '{}')::numeric BETWEEN 0 AND longest::numeric ELSE true END)
        ELSE the_backoff IS NULL END)
    THEN
        wrong := format('backoff => %L: must be ''"exponential"'', ''"linear"'' or an array of 1 to 100 numbers of seconds',
            left(the_backoff::text, 100));
    ELSIF length(the_key) NOT BETWEEN 1 AND 255 THEN
        wrong := format('unique_key => %L: must have 1 to 255 characters', left(the_key, 300));
    ELSIF the_conflict NOT IN ('return', 'raise') THEN
        wrong := format('on_conflict => %L: must be ''return'' or ''raise''; the others are for Python alone', the_conflict);
    ELSIF on_conflict IS NOT NULL AND the_key IS NULL THEN
        wrong := 'on_conflict: needs a unique_key';
    ELSIF the_failure NOT IN ('cancel', 'run') THEN
        wrong := format('on_parent_failure => %L: must be ''cancel'' or ''run''', the_failure);
    ELSIF length(the_concurrency_key) NOT BETWEEN 1 AND 255 THEN
        wrong := format('concurrency_key => %L: must have 1 to 255 characters', left(the_concurrency_key, 300));
    ELSIF the_concurrency_key IS NULL AND (concurrency IS NOT NULL OR fifo) THEN
        wrong := 'concurrency and fifo: need a concurrency_key';
    ELSIF concurrency < 1 THEN
        wrong := format('concurrency => %s: must be 1 or more', concurrency);
    ELSIF fifo AND concurrency <> 1 THEN
        wrong := format('concurrency => %s: with fifo it is 1: one after another', concurrency);
    ELSIF fifo AND the_priority <> 0 THEN
        wrong := format('priority => %s: not with fifo, whose order is that of adding', the_priority);
    ELSIF isolation NOT IN ('thread', 'process') THEN
        wrong := format('isolation => %L: must be ''thread'' or ''process''', isolation);
    ELSIF jsonb_typeof(the_context) <> 'object' THEN
        wrong := format('context => %L: must be an object', left(the_context::text, 100));
    ELSIF jsonb_typeof(the_meta) <> 'object' THEN
        wrong := format('meta => %L: must be an object', left(the_meta::text, 100));
    ELSIF the_meta ?| @reserved@ THEN
        wrong := format('meta => %L: these keys are reserved: %s', left(the_meta::text, 100),
            array_to_string(@reserved@, ', '));
    ELSIF octet_length(the_context::text) > @max_payload@ OR octet_length(the_meta::text) > @max_payload@ THEN
        wrong := 'context and meta: each may have QUEUE_MAX_PAYLOAD = @max_payload@ bytes';
    ELSIF array_position(parents, NULL) IS NOT NULL THEN
        wrong := 'parents: one of them is NULL';
    END IF;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = 'queuedtask_add_task: ' || wrong, ERRCODE = 'invalid_parameter_value';
    END IF;

    -- What has no column of its own.
    the_meta := nullif(coalesce(the_meta, '{}') || jsonb_strip_nulls(jsonb_build_object(
        'isolation', isolation, 'backoff', the_backoff, 'concurrency', concurrency,
        'fifo', CASE WHEN fifo THEN true END)), '{}');

    the_parents := ARRAY(
        SELECT each.id FROM unnest(parent || coalesce(parents, '{}')) WITH ORDINALITY AS each (id, place)
        WHERE each.id IS NOT NULL GROUP BY each.id ORDER BY min(each.place));
    IF cardinality(the_parents) > 0 THEN
        -- KEY SHARE keeps a parent from being deleted, and shows the newest state of its row, without waiting for a worker.
        SELECT count(*), count(*) FILTER (
            WHERE locked.state <> 'done'
            AND (the_failure = 'cancel' OR locked.state NOT IN ('failed', 'cancelled', 'stopped')))
        INTO known, pending
        FROM (
            SELECT task.id, task.state FROM queued_tasks AS task WHERE task.id = ANY (the_parents)
            ORDER BY task.id FOR KEY SHARE
        ) AS locked;
        IF known < cardinality(the_parents) THEN
            SELECT string_agg(each.id::text, ', ') INTO wrong FROM unnest(the_parents) AS each (id)
            WHERE NOT EXISTS (SELECT FROM queued_tasks AS task WHERE task.id = each.id);
            RAISE EXCEPTION USING ERRCODE = 'foreign_key_violation', MESSAGE = format(
                'queuedtask_add_task: parent => %s: there is no such task (any more), or its transaction is not committed',
                coalesce(wrong, 'one of them'));
        END IF;
    END IF;

    LOOP
        INSERT INTO queued_tasks AS task (
            id, name, function, args, kwargs, channel, priority, date_scheduled, timeout, max_retries, unique_key,
            parent_task, parents, pending_parents, on_parent_failure, concurrency_key, auto_remove, context, meta, state)
        VALUES (
            -- A UUID of version 7: it begins with the time, so that ids grow as those made in Python do.
            encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
                PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid,
            the_name, the_function, the_args, the_kwargs, the_channel, the_priority, the_time, the_timeout, the_retries,
            the_key, the_parents[1], the_parents, pending, the_failure, the_concurrency_key, the_removal, the_context,
            the_meta,
            CASE WHEN pending > 0 OR the_time > clock_timestamp() THEN 'waiting' ELSE 'enqueued' END)
        ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL AND state IN ('waiting', 'enqueued', 'doing') DO NOTHING
        RETURNING task.id INTO the_id;
        EXIT WHEN the_id IS NOT NULL;
        SELECT task.id, task.state INTO the_id, wrong FROM queued_tasks AS task
        WHERE task.unique_key = the_key AND task.state IN ('waiting', 'enqueued', 'doing');
        IF the_id IS NOT NULL AND the_conflict = 'raise' THEN
            RAISE EXCEPTION USING ERRCODE = 'unique_violation', MESSAGE = format(
                'queuedtask_add_task: unique_key => %L is held by task %s, which is %s', the_key, the_id, wrong);
        ELSIF the_id IS NOT NULL THEN
            RETURN the_id;
        END IF;
        -- Whoever had the key has just ended.
    END LOOP;

    INSERT INTO queued_task_dependencies (task, parent) SELECT the_id, each.id FROM unnest(the_parents) AS each (id);
    PERFORM pg_notify(@notify_channel@, '') WHERE @notify_channel@ IS NOT NULL;
    RETURN the_id;
END
$queuedtask$;
