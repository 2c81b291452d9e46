"""An application with schedules for each second, run by the workers that ``trees.py`` starts."""

from queuedtask import Queue

queue = Queue()


@queue.cron("* * * * * *", name="side by side", misfire="all", overlap="allow")
@queue.cron("* * * * * *", name="one by one", misfire="all")
@queue.cron("*/2 * * * * *", name="in Paris", timezone="Europe/Paris", misfire="all", overlap="allow")
def tick() -> None: ...
