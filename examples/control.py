"""Waiting for a task's result, and calling tasks off."""

import time

from queuedtask import Cancel, Queue, TaskFailed, current_task

queue = Queue()


def convert(pages, seconds_per_page=0.01):
    for page in range(pages):
        if current_task().should_abort():  # somebody has cancelled it, or its time is over
            raise Cancel(f"called off at page {page}")
        time.sleep(seconds_per_page)
    return f"{pages} pages"


def convert_now(pages, patience=30.0):
    ref = queue.add_task(convert, pages)
    try:
        return ref.wait(timeout=patience)
    except TimeoutError:
        ref.cancel()  # whatever it is doing; it will not run again
        return "it takes too long"
    except TaskFailed as error:
        return f"{error.type}: {error.message}"


def call_off_what_was_added_by_mistake():
    return len(queue.cancel(name="control.convert", state=("waiting", "enqueued"), since=3600))
