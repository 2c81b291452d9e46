-- Schedules: when each is due next, and the ticks that have become tasks.

-- A digest of what the code declared when it was last written; edits by people do not change it.
ALTER TABLE queued_task_schedules ADD COLUMN IF NOT EXISTS definition text;
-- The first tick that has not been dealt with; without one it begins with the next tick from now.
ALTER TABLE queued_task_schedules ADD COLUMN IF NOT EXISTS date_next timestamptz;
-- The task of the last tick. No foreign key: its row may be removed.
ALTER TABLE queued_task_schedules ADD COLUMN IF NOT EXISTS last_task uuid;

-- Each tick once, whoever fires it. Not a column of queued_tasks: this outlives the task's row.
CREATE TABLE IF NOT EXISTS queued_task_ticks (
    schedule varchar(255) NOT NULL,
    tick timestamptz NOT NULL,
    task uuid NOT NULL,
    PRIMARY KEY (schedule, tick)
);

-- For cleaning up.
CREATE INDEX IF NOT EXISTS queued_task_ticks_by_age ON queued_task_ticks (tick);
