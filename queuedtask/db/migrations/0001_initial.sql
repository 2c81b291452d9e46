-- The tables of queuedtask. Every statement can run again: a database restored from a dump of some of the tables is
-- completed by the same file.

CREATE TABLE IF NOT EXISTS queued_tasks (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(255) NOT NULL DEFAULT '',
    state varchar(50) NOT NULL DEFAULT 'enqueued',
    parent_task uuid REFERENCES queued_tasks (id) ON DELETE SET NULL,
    parents uuid[] NOT NULL DEFAULT '{}',
    date_enqueued timestamptz NOT NULL DEFAULT clock_timestamp(),
    date_started timestamptz,
    date_done timestamptz,
    context jsonb,
    result jsonb,
    error_message text,
    function text NOT NULL DEFAULT '',
    args jsonb NOT NULL DEFAULT '[]',
    kwargs jsonb NOT NULL DEFAULT '{}',
    error_type text,
    error_traceback text,
    channel varchar(64) NOT NULL DEFAULT 'default',
    priority integer NOT NULL DEFAULT 0,
    date_created timestamptz NOT NULL DEFAULT clock_timestamp(),
    date_scheduled timestamptz,
    attempt integer NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0,
    max_retries integer,
    lost_count integer NOT NULL DEFAULT 0,
    requeues integer NOT NULL DEFAULT 0,
    timeout double precision,
    claimed_by integer,
    cancel_requested timestamptz,
    stop_requested timestamptz,
    pending_parents integer NOT NULL DEFAULT 0,
    on_parent_failure text NOT NULL DEFAULT 'cancel',
    unique_key text,
    concurrency_key text,
    auto_remove boolean NOT NULL DEFAULT false,
    pickled_function bytea,
    meta jsonb,
    CONSTRAINT queued_tasks_state_known
        CHECK (state IN ('waiting', 'enqueued', 'doing', 'done', 'failed', 'cancelled', 'stopped')),
    CONSTRAINT queued_tasks_final_has_date_done
        CHECK ((state IN ('done', 'failed', 'cancelled', 'stopped')) = (date_done IS NOT NULL))
);

-- In the claim's own order: at a backlog of 300,000 a claim takes 0.7 ms with it and 146 ms without.
CREATE INDEX IF NOT EXISTS queued_tasks_claim ON queued_tasks (priority DESC, date_enqueued) WHERE state = 'enqueued';
-- What is due next, and what a worker runs now.
CREATE INDEX IF NOT EXISTS queued_tasks_due ON queued_tasks (date_scheduled) WHERE state = 'waiting';
CREATE INDEX IF NOT EXISTS queued_tasks_doing ON queued_tasks (claimed_by) WHERE state = 'doing';
-- For "retry": the failed ones, by when they failed.
CREATE INDEX IF NOT EXISTS queued_tasks_failed ON queued_tasks (date_done) WHERE state = 'failed';
-- For ON DELETE SET NULL: without it every deleted task would read the whole table.
CREATE INDEX IF NOT EXISTS queued_tasks_children ON queued_tasks (parent_task) WHERE parent_task IS NOT NULL;

CREATE TABLE IF NOT EXISTS queued_task_logs (
    id bigserial PRIMARY KEY,
    queued_task_id uuid REFERENCES queued_tasks (id) ON DELETE CASCADE,
    type varchar(50) NOT NULL DEFAULT 'info',
    message text NOT NULL DEFAULT '',
    date_created timestamptz NOT NULL DEFAULT clock_timestamp(),
    name text,
    attempt integer
);

CREATE INDEX IF NOT EXISTS queued_task_logs_of_task ON queued_task_logs (queued_task_id, id);

CREATE TABLE IF NOT EXISTS queued_task_workers (
    id serial PRIMARY KEY,
    server_name varchar(255) NOT NULL DEFAULT '',
    max_workers integer NOT NULL DEFAULT 0,
    active_workers integer NOT NULL DEFAULT 0,
    idle_workers integer NOT NULL DEFAULT 0,
    is_running boolean NOT NULL DEFAULT true,
    last_heartbeat timestamptz NOT NULL DEFAULT clock_timestamp(),
    pid integer,
    supervisor_pid integer,
    date_started timestamptz NOT NULL DEFAULT clock_timestamp(),
    version text
);

CREATE TABLE IF NOT EXISTS queued_task_dependencies (
    task uuid NOT NULL REFERENCES queued_tasks (id) ON DELETE CASCADE,
    parent uuid NOT NULL REFERENCES queued_tasks (id) ON DELETE CASCADE,
    PRIMARY KEY (task, parent)
);

CREATE INDEX IF NOT EXISTS queued_task_dependencies_of_parent ON queued_task_dependencies (parent);

CREATE TABLE IF NOT EXISTS queued_task_attempts (
    id bigserial PRIMARY KEY,
    queued_task_id uuid NOT NULL REFERENCES queued_tasks (id) ON DELETE CASCADE,
    attempt integer NOT NULL,
    outcome varchar(50) NOT NULL,
    error_type text,
    error_message text,
    error_traceback text,
    worker integer,
    date_started timestamptz,
    date_done timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX IF NOT EXISTS queued_task_attempts_of_task ON queued_task_attempts (queued_task_id, attempt);

CREATE TABLE IF NOT EXISTS queued_task_schedules (
    name varchar(255) PRIMARY KEY,
    function text NOT NULL,
    args jsonb NOT NULL DEFAULT '[]',
    kwargs jsonb NOT NULL DEFAULT '{}',
    cron text NOT NULL,
    timezone text NOT NULL DEFAULT 'UTC',
    misfire text NOT NULL DEFAULT 'last',
    overlap text NOT NULL DEFAULT 'skip',
    options jsonb NOT NULL DEFAULT '{}',
    is_paused boolean NOT NULL DEFAULT false,
    date_last_tick timestamptz,
    date_created timestamptz NOT NULL DEFAULT clock_timestamp(),
    date_updated timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS queued_task_channels (
    name varchar(64) PRIMARY KEY,
    max_running integer,
    max_starts integer,
    per_seconds double precision,
    is_paused boolean NOT NULL DEFAULT false,
    date_updated timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS queued_task_migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    date_applied timestamptz NOT NULL DEFAULT clock_timestamp()
);
