-- Channels with limits, and tasks that exclude each other by a concurrency key.

-- A claim is made from one channel, so that the backlog of a channel that is paused or at its limit is never read by
-- those who claim from others. Every ready task stands in exactly one of these: most are in "default", whose index
-- needs no channel in front.
CREATE INDEX IF NOT EXISTS queued_tasks_claim_default ON queued_tasks (priority DESC, date_enqueued)
    WHERE state = 'enqueued' AND concurrency_key IS NULL AND channel = 'default';
CREATE INDEX IF NOT EXISTS queued_tasks_claim_channel ON queued_tasks (channel, priority DESC, date_enqueued)
    WHERE state = 'enqueued' AND concurrency_key IS NULL AND channel <> 'default';
CREATE INDEX IF NOT EXISTS queued_tasks_claim_keyed ON queued_tasks (priority DESC, date_enqueued)
    WHERE state = 'enqueued' AND concurrency_key IS NOT NULL;
DROP INDEX IF EXISTS queued_tasks_claim;

-- Of one key: how many run, which is next, and whether something stands before it.
CREATE INDEX IF NOT EXISTS queued_tasks_of_key ON queued_tasks
    (concurrency_key, state, priority DESC, date_created, id)
    WHERE concurrency_key IS NOT NULL AND state IN ('waiting', 'enqueued', 'doing');

-- What a worker runs now, and how many of them in one channel.
DROP INDEX IF EXISTS queued_tasks_doing;
CREATE INDEX queued_tasks_doing ON queued_tasks (claimed_by, channel) WHERE state = 'doing';

-- When tasks of a channel with a rate were started: [[epoch, how many], …] within the last per_seconds.
ALTER TABLE queued_task_channels ADD COLUMN IF NOT EXISTS starts jsonb NOT NULL DEFAULT '[]';
ALTER TABLE queued_task_channels DROP CONSTRAINT IF EXISTS queued_task_channels_limits;
ALTER TABLE queued_task_channels ADD CONSTRAINT queued_task_channels_limits CHECK (
    coalesce(max_running, 0) >= 0 AND coalesce(max_starts, 0) >= 0 AND coalesce(per_seconds, 1) > 0
    AND (max_starts IS NULL) = (per_seconds IS NULL)
    -- "*" stands for every channel, and can only be paused.
    AND (name <> '*' OR (max_running IS NULL AND max_starts IS NULL))
);
