"""Options that tasks and functions can have: when, how often, how many beside each other, and what they know."""

from datetime import UTC, datetime, timedelta

from queuedtask import Queue, get_context

queue = Queue()


class BadAddress(Exception):
    """There is nobody to deliver to."""


@queue.task(max_retries=5, give_up_on=BadAddress, timeout=30)
def deliver(order_id):
    if order_id < 0:
        raise BadAddress(order_id)  # fails at once: it would not get better
    return f"order {order_id} for {get_context('tenant')}"


def add_some():
    now = queue.options(context={"tenant": "north"}, meta={"source": "web"}).add_task(deliver, 7)
    tonight = queue.options(run_at=datetime.now(UTC) + timedelta(hours=8), priority=5).add_task(deliver, 8)
    three_at_a_time = queue.options(concurrency_key="van", concurrency=3).add_task(deliver, 9)
    return now, tonight, three_at_a_time, queue.add_task(deliver, -1)
