"""Being interrupted without harm: a transaction that a timeout ends, and a step that it must not cut in two."""

from hashlib import sha256
from pathlib import Path

from sqlalchemy import text

from queuedtask import Queue, current_task

queue = Queue()

CLOSE = text(
    "INSERT INTO closed_days (day, cents) SELECT day, sum(cents) FROM orders WHERE day = :day GROUP BY day "
    "ON CONFLICT (day) DO UPDATE SET cents = excluded.cents RETURNING cents"
)


@queue.task(timeout=60)
def close_day(directory, day):
    with current_task().connection() as connection:  # one transaction; a timeout cancels its SQL and rolls it back
        cents = connection.execute(CLOSE, {"day": day}).scalar_one()
    report = f"{day}: {cents / 100:.2f}\n"
    with current_task().shield():  # a timeout comes before the first file or after the second, never between them
        Path(directory, f"{day}.txt").write_text(report)
        Path(directory, f"{day}.sha256").write_text(sha256(report.encode()).hexdigest())
    return cents
