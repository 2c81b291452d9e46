"""Not too many at a time: a channel with a limit, and one task after another for each customer."""

from queuedtask import Queue

queue = Queue()


@queue.task(channel="mail")
def send(address):
    """Run with others of its channel, at most as many as the channel's limit."""
    return f"sent to {address}"


def book(customer, amount):
    """Run alone among the tasks of this customer, after all that were added before it."""
    return f"{customer}: {amount}"


def add_some():
    """Add tasks; ``QUEUE_CHANNELS=mail:2`` in the worker's environment gives the channel its limit."""
    mails = [send.delay(f"customer-{n}@example.com") for n in range(5)]
    bookings = [
        queue.options(concurrency_key=f"customer-{customer}", fifo=True).add_task(book, customer, amount)
        for customer in (7, 8)
        for amount in (10, -5, 20)
    ]
    return mails, bookings


def stop_mails_for_a_while():
    """Leave the channel's tasks alone until ``queue.resume("mail")``."""
    queue.pause("mail")
