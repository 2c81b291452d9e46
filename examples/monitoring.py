"""Look after a queue from your own code: is it well, what is behind, which tasks fail."""

from queuedtask import Queue, getLogger

queue = Queue()


def send_receipt(order_id):
    getLogger(__name__).info("sending", extra={"order": order_id})  # a field of its own in JSON logs
    raise ConnectionError("the mail server is away")


def alarms(max_wait=60.0, max_failed=10):
    """Return what somebody should look at now."""
    health = queue.health()
    if health["status"] == "unhealthy":
        return [health["error"]]
    found = [health["error"]] if health["reason"] else []
    metrics = queue.metrics()
    for name, channel in metrics.by_channel.items():
        if (channel.oldest_pending_seconds or 0) > max_wait:
            found.append(f"{name}: the oldest of {channel.pending_tasks} pending tasks waits too long")
    for name, tasks in metrics.by_name.items():
        if tasks.failed_tasks_today > max_failed:
            found.append(f"{name}: {tasks.failed_tasks_today} failed today")
    return found


if __name__ == "__main__":
    print(*alarms(), sep="\n")
