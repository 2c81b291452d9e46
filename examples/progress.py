"""Telling how far a task is: a context that people can read in the row while it runs, and that a retry starts from."""

from queuedtask import Queue, get_context, getLogger, set_context

queue = Queue()
log = getLogger(__name__)


def import_rows(count):
    done = get_context("progress.rows", 0)  # what an earlier attempt left, if there was one
    for row in range(done, count):
        set_context("progress.rows", row + 1)  # in the row within a second; cheap to call often
        if row % 1000 == 0:
            log.info("at row %s of %s", row, count)
    return count
