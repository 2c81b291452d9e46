"""A task whose writes and whose completion are one commit: its effects are there exactly once, whatever dies when."""

from sqlalchemy import text

from queuedtask import Queue, current_task

queue = Queue()


def transfer(sender, receiver, cents):
    with current_task().transaction() as connection:
        move = text("UPDATE accounts SET cents = cents + :cents WHERE owner = :owner RETURNING cents")
        left = connection.execute(move, {"owner": sender, "cents": -cents}).scalar_one()
        if left < 0:
            raise ValueError("not enough money")  # nothing is written, and the task fails
        connection.execute(move, {"owner": receiver, "cents": cents})
        current_task().set_result(left)
