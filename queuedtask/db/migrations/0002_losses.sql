-- What is known of a process that died, and what a worker says of itself besides its slots.

-- How the process of a lost attempt ended (a signal's name or an exit code), and the most memory that it had.
ALTER TABLE queued_task_attempts ADD COLUMN IF NOT EXISTS exit_signal text;
ALTER TABLE queued_task_attempts ADD COLUMN IF NOT EXISTS memory_bytes bigint;

-- Its own lease, for those who watch it; the stuck slots; how many of its writes came too late.
ALTER TABLE queued_task_workers ADD COLUMN IF NOT EXISTS lease double precision;
ALTER TABLE queued_task_workers ADD COLUMN IF NOT EXISTS stuck jsonb NOT NULL DEFAULT '[]';
ALTER TABLE queued_task_workers ADD COLUMN IF NOT EXISTS refused integer NOT NULL DEFAULT 0;

-- For those who watch the workers; the table keeps a row for each start.
CREATE INDEX IF NOT EXISTS queued_task_workers_running ON queued_task_workers (id) WHERE is_running;
