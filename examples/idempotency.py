"""Running twice without harm: what a task does outside is done under the task's id."""

import sqlite3

from queuedtask import Queue, current_task

queue = Queue()


def charge(path, customer, cents):
    """Charge a customer once, however often this runs; any store that can refuse a second key will do."""
    with sqlite3.connect(path) as ledger:
        ledger.execute("CREATE TABLE IF NOT EXISTS charges (id TEXT PRIMARY KEY, customer TEXT, cents INT)")
        done = ledger.execute(
            "INSERT INTO charges VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING",
            (current_task().id, customer, cents),
        )
    ledger.close()
    return "charged" if done.rowcount else "had been charged already"
