"""Tasks that ask for services; the tests put the types in."""

import asyncio
from typing import Any

from queuedtask.contrib.svcs import aget_service, get_service

Service: Any = None
Asynchronous: Any = None


def get_and_spin() -> None:
    get_service(Service)
    while True:
        pass


async def get_and_sleep_async() -> None:
    await aget_service(Asynchronous)
    await asyncio.sleep(60)
