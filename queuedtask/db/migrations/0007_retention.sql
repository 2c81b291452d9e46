-- For maintenance: the successes of auto_remove, by when they were done. Who does not use that pays nothing for it.
CREATE INDEX IF NOT EXISTS queued_tasks_auto_remove ON queued_tasks (date_done, id) WHERE auto_remove AND state = 'done';
