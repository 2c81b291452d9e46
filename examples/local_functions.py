"""Functions that no import reaches: with QUEUE_SECRET_KEY set, they go as signed pickles."""

from queuedtask import Queue

queue = Queue()


def add_reports(country, rate):
    """Add a closure, and a lambda; the worker needs this file for neither."""

    def report(cents):
        return f"{country}: {cents * rate / 100:.2f}"

    return queue.add_task(report, 1000), queue.add_task(lambda day: day.upper(), "monday")
