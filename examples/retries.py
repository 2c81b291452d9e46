"""Failing on purpose, and what becomes of it: the back-off, another delay, giving up, being called off."""

from queuedtask import Cancel, Queue, Retry, current_task

queue = Queue()


class Busy(Exception):
    pass


def call_the_bank(order_id):
    if order_id == 0:
        raise Busy("the line is engaged")
    return "paid"


@queue.task(max_retries=5, timeout=30)
def pay(order_id):
    if order_id < 0:
        raise Cancel("there is no such order")
    try:
        return call_the_bank(order_id)
    except Busy as busy:
        # Uses one of the five retries, and waits a minute instead of the back-off's time.
        raise Retry(f"attempt {current_task().attempt}: {busy}", delay=60) from busy


def add_some():
    return pay.delay(7), pay.delay(0), queue.options(priority=10, delay=5).add_task(pay, -1)
