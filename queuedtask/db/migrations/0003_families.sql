-- Parents and children.

-- The transaction that added an edge: whoever looks for children that were added while a parent finished has to look at
-- young edges only.
ALTER TABLE queued_task_dependencies
    ADD COLUMN IF NOT EXISTS added_in bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint;
CREATE INDEX IF NOT EXISTS queued_task_dependencies_added ON queued_task_dependencies (added_in);

-- Without those that wait for a parent: there may be a hundred thousand of them in front of one that is due.
DROP INDEX IF EXISTS queued_tasks_due;
CREATE INDEX IF NOT EXISTS queued_tasks_releasable ON queued_tasks (date_scheduled)
    WHERE state = 'waiting' AND pending_parents <= 0;
CREATE INDEX IF NOT EXISTS queued_tasks_with_parents ON queued_tasks (id)
    WHERE state = 'waiting' AND pending_parents > 0;
