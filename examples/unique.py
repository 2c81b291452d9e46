"""At most one of a kind: the same report not twice, one rebuild after many changes, a mail after the last save."""

from queuedtask import DuplicateTask, Queue

queue = Queue()


def make_report(month):
    return f"report-{month}.pdf"


@queue.task(unique_key="index", on_conflict="replace")
def rebuild_index(reason):
    """Runs once for all calls since its last start: a call while it runs makes it run once more."""
    return f"rebuilt: {reason}"


def notify_followers(document, text):
    return f"{document}: {text}"


def request_report(month):
    ref = queue.options(unique_key=f"report-{month}").add_task(make_report, month)
    return ref, "on its way" if ref.created else "had been asked for already"


def close_month(month):
    try:
        return queue.options(unique_key=f"close-{month}", on_conflict="raise").add_task(make_report, month)
    except DuplicateTask as duplicate:
        raise ValueError(f"{month} is being closed by task {duplicate.task_id}") from None


def save(document, text):
    rebuild_index.delay(f"{document} was saved")
    # Half a minute after the last save, with the last text.
    quiet = queue.options(unique_key=f"followers-{document}", on_conflict="debounce", delay=30)
    return quiet.add_task(notify_followers, document, text)
