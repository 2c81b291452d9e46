-- One task that has not ended for each unique key. A replaceable one gives its key up when it is claimed.
CREATE UNIQUE INDEX IF NOT EXISTS queued_tasks_unique ON queued_tasks (unique_key)
    WHERE unique_key IS NOT NULL AND state IN ('waiting', 'enqueued', 'doing');
