-- Recent tasks
SELECT id, name, state, date_enqueued, date_started, date_done, parent_task
FROM queued_tasks ORDER BY date_enqueued DESC LIMIT 20;

-- How many are in which state
SELECT state, count(*) FROM queued_tasks GROUP BY state ORDER BY state;

-- What failed in the last hour, and why
SELECT id, name, date_done, error_message
FROM queued_tasks
WHERE state = 'failed' AND date_done > NOW() - INTERVAL '1 hour'
ORDER BY date_done DESC;

-- What the tasks of one name logged
SELECT t.name, l.type, l.message, l.date_created
FROM queued_task_logs l JOIN queued_tasks t ON t.id = l.queued_task_id
WHERE t.name = 'shop.send_receipt'
ORDER BY l.date_created DESC LIMIT 100;

-- The workers that run
SELECT id, server_name, max_workers, active_workers, idle_workers, last_heartbeat
FROM queued_task_workers WHERE is_running = true;

-- The workers' LISTEN connections
SELECT pid, application_name, query FROM pg_stat_activity WHERE query LIKE '%LISTEN%' AND pid <> pg_backend_pid();

-- A task and everything below it
WITH RECURSIVE family AS (
    SELECT id, name, state, parent_task, 0 AS depth FROM queued_tasks WHERE parent_task IS NULL
    UNION ALL
    SELECT t.id, t.name, t.state, t.parent_task, f.depth + 1
    FROM queued_tasks t JOIN family f ON t.parent_task = f.id
)
SELECT * FROM family ORDER BY depth, name LIMIT 100;
