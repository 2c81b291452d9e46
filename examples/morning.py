"""By the clock: a report every morning in Paris, and one function at two times with different arguments."""

from queuedtask import Queue

queue = Queue()


@queue.cron("0 8 * * mon-fri", timezone="Europe/Paris", misfire="last", overlap="skip", timeout=600)
def morning_report(limit: int = 10, *, dry_run: bool = False):
    return f"the {limit} best customers" + (", not sent" if dry_run else "")


@queue.cron("*/30 * * * * *", name="sync fast", kwargs={"what": "orders"}, misfire="skip")
@queue.cron("@daily", name="sync all", kwargs={"what": "everything"}, channel="slow")
def sync(what):
    return f"{what} in sync"
