"""Tasks whose functions say when they are tried again and where they run."""

import builtins
import os
import time
from collections.abc import Callable

from queuedtask import Cancel, Queue, Retry, current_task

queue = Queue("postgresql://nowhere")  # for its decorator alone


def fail(what: str) -> None:
    if what == "spin":
        while True:
            pass
    raise {"Retry": Retry, "Cancel": Cancel}.get(what) or getattr(builtins, what)


@queue.task(retry_on=KeyError)
def retries_on_key_errors(what: str) -> None:
    fail(what)


@queue.task(retry_on=(LookupError, OSError))
def retries_on_lookup_errors(what: str) -> None:
    fail(what)


@queue.task(give_up_on=LookupError)
def gives_up_on_lookup_errors(what: str) -> None:
    fail(what)


@queue.task(retry_on=LookupError, give_up_on=KeyError)
def gives_up_on_some_lookup_errors(what: str) -> None:
    fail(what)


@queue.task(give_up_on=BaseException)
def gives_up_on_everything(what: str) -> None:
    fail(what)


@queue.task(backoff=lambda failures: 100 * failures)
def waits_a_hundred_per_failure(what: str) -> None:
    fail(what)


def nonsense(backoff: Callable[[int], object]) -> Callable[..., None]:
    def function() -> None:
        raise KeyError

    name = f"nonsense_{len(NONSENSE)}"
    function.__name__ = function.__qualname__ = name
    globals()[name] = queue.task(backoff=backoff)(function)  # type: ignore[arg-type]
    NONSENSE.append(function)
    return function


NONSENSE: list[Callable[..., None]] = []


def leave(failures: int) -> float:
    raise SystemExit


for each in (
    lambda failures: 1 / 0,
    lambda failures: "soon",
    lambda failures: -1,
    lambda failures: float("nan"),
    lambda failures: True,
    lambda failures: None,
    lambda: 5,
    leave,
):
    nonsense(each)  # type: ignore[arg-type]


def retry_in(seconds: float) -> None:
    raise Retry(delay=seconds)


def where() -> dict[str, int]:
    return {"process": os.getpid(), "attempt": current_task().attempt}


@queue.task(isolation="process")
def alone() -> dict[str, int]:
    return where()


@queue.task(isolation="process")
def dies_alone() -> None:
    os.kill(os.getpid(), 9)


@queue.task(isolation="process")
def spins_alone() -> None:
    while True:
        pass


def sleep_and_return(seconds: float) -> None:
    time.sleep(seconds)
