"""Tasks that wait for others: an import in parts, a report on all of them, and a clean-up in any case."""

from queuedtask import Queue, current_task

queue = Queue()


def fetch(part):
    if part == "broken":
        raise ValueError("there is no such part")
    return len(part)


def report():
    return sum(parent.result for parent in current_task().parents)


def clean_up():
    return "cleaned up"


def order_import(parts):
    with queue.batch() as batch:
        fetched = [batch.options(max_retries=0).add_task(fetch, part) for part in parts]
        summed = batch.add_task(report, parent=fetched)  # when all of them are done
        always = batch.options(on_parent_failure="run").add_task(clean_up, parent=[*fetched, summed])
    return fetched, summed, always
