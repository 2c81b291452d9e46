-- Waiting for the end of a task, and calling off one that runs.

-- Somebody waits for its end: the statement that moves it to a final state says so on a channel, and takes this down.
ALTER TABLE queued_tasks ADD COLUMN IF NOT EXISTS is_awaited boolean NOT NULL DEFAULT false;

-- For the workers, who ask often whether anybody has called off what they run. It is empty nearly always.
CREATE INDEX IF NOT EXISTS queued_tasks_ordered ON queued_tasks (claimed_by)
    WHERE state = 'doing' AND (cancel_requested IS NOT NULL OR stop_requested IS NOT NULL);
