"""Failing, and what becomes of it: the back-off, another delay, giving up, being called off, dying alone."""

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
    return pay.delay(7), pay.delay(0), queue.options(priority=10, delay=60).add_task(pay, -1)


@queue.task(max_retries=10, backoff=[60, 300, 3600], retry_on=(ConnectionError, TimeoutError))
def fetch_rates(url):
    """A line that is down is worth another try, first after a minute; an address without a rule is not."""
    if not url.startswith("https://"):
        raise ValueError(f"{url}: not over an open line")
    raise ConnectionError(url)


@queue.task(backoff=lambda failures: 30 * failures, isolation="process")
def convert(path):
    """Calls a library that crashes on some files: in a process of its own it takes no other task along."""
    return f"{path}.pdf"
