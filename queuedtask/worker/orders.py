"""What people have ordered of the tasks that this worker has claimed: to be cancelled, or to be stopped."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from queuedtask.db import control
from queuedtask.model.orders import Order
from queuedtask.model.task import Task
from queuedtask.run.attempt import Attempt
from queuedtask.worker.link import Link

logger = logging.getLogger("queuedtask.worker")

INTERVAL: Final = 0.05
"""Seconds at least between two looks: notifications may come hundreds of times a second."""
NEVER: Final = float("inf")

Key = tuple[str, int]


class Orders:
    """A duty: looks whether anybody has given an order, and passes it on to the attempts.

    ``worker`` gives the worker's id, ``claimed`` what it has claimed and not settled, ``running`` the attempts among
    that. ``withdraw`` takes back those of the given tasks that no slot has begun, and settles them as ordered.
    """

    def __init__(
        self,
        *,
        worker: Callable[[], int],
        claimed: Mapping[Key, Task],
        running: Callable[[], Sequence[Attempt]],
        withdraw: Callable[[Mapping[Key, Order]], None],
    ) -> None:
        self._worker = worker
        self._claimed = claimed
        self._running = running
        self._withdraw = withdraw
        self._looked_at = 0.0
        self.due_at = NEVER

    def heed(self) -> None:
        """An order may have been given."""
        self.due_at = min(self.due_at, self._looked_at + INTERVAL)

    def perform(self, link: Link) -> bool:
        """Look for orders and pass them on."""
        self.due_at = NEVER
        if not self._claimed:
            return False
        self._looked_at = time.monotonic()
        found = control.standing_orders(link.cursor, worker=self._worker())
        if not found:
            return False
        orders = {(each.task_id, each.attempt): each.order for each in found}
        for attempt in self._running():
            order = orders.pop(attempt.task.key, None)
            if order is not None and order is not attempt.order:
                logger.info("task %s: attempt %s is told to end: %s", *attempt.task.key, order.participle)
                attempt.obey(order)
        # What has been settled meanwhile, or is about to be, is none of ours any more: the order stands in the row.
        waiting = {key: order for key, order in orders.items() if key in self._claimed}
        if waiting:
            self._withdraw(waiting)
        if any(key in self._claimed for key in waiting):
            # A slot was taking it at this moment: next time it runs.
            self.heed()
        return False
