"""Local functions from ``add_task`` to their end: run where the key is, refused unrun wherever anything is amiss."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from helpers import execute, raw_connection, wait_until
from queuedtask import InvalidTask, Queue, TaskRef, current_task, set_context
from queuedtask.model import pickles

sys.path.insert(0, str(Path(__file__).parent))
from inside import attempts, ended, fresh_event, working

__all__ = ["fresh_event"]  # a fixture

KEY = "correct horse battery staple"


@pytest.fixture
def keyed(queue: Queue) -> Queue:
    queue.config.secret_key = (KEY,)
    return queue


def columns(database_url: str, ref: TaskRef, *names: str) -> tuple[Any, ...]:
    (row,) = execute(database_url, f"SELECT {', '.join(names)} FROM queued_tasks WHERE id = %s", (ref.id,))
    return row


def test_lambdas_closures_and_nested_coroutines_run_with_their_arguments(keyed: Queue, database_url: str) -> None:
    factor = 3

    async def later(n: int) -> int:
        await asyncio.sleep(0)
        return n * factor

    with working(keyed):
        assert ended(keyed.add_task(lambda a, b: a + b * factor, 1, b=2)).result == 7
        ref = ended(keyed.add_task(later, 2))
    assert ref.result == 6
    name = f"{__name__}:test_lambdas_closures_and_nested_coroutines_run_with_their_arguments.<locals>.later"
    assert columns(database_url, ref, "function", "name", "args::text") == (name, name.replace(":", "."), "[2]")


def test_they_go_into_batches_and_on_every_kind_of_connection(keyed: Queue, database_url: str) -> None:
    number = 0
    refs = []
    with keyed.batch() as batch:
        refs += [batch.add_task(lambda n: n + number, 1), batch.add_task("worker_jobs:add", 1, 1)]
    url = keyed.database.engine.url
    for driver in ("psycopg2", "psycopg", "pg8000"):
        query = url.query if driver != "pg8000" else {}
        arguments = {"unix_sock": f"{url.query['host']}/.s.PGSQL.{url.query['port']}"} if "host" in url.query else {}
        engine = create_engine(
            url.set(drivername=f"postgresql+{driver}", query=query), connect_args={} if query else arguments
        )
        with Session(engine) as session:
            refs.append(keyed.options(connection=session).add_task(lambda n: n + number, 3))
            with keyed.batch(connection=session) as batch:
                refs.append(batch.add_task(lambda n: n + number, 4))
            session.commit()
        engine.dispose()
    connection = raw_connection(database_url)
    refs.append(keyed.options(connection=connection).add_task(lambda n: n + number, 5))
    connection.close()
    with working(keyed):
        assert [ended(ref).result for ref in refs] == [1, 2, 3, 4, 3, 4, 3, 4, 5]


def test_what_a_function_declares_goes_along_and_its_delay_stays_behind(keyed: Queue) -> None:
    @keyed.task(max_retries=0, name="declared")
    def fails(how: str) -> None:
        if how == "delay":
            fails.delay("again")
        raise LookupError(how)

    with working(keyed):
        row = ended(fails.delay("first"), "failed").row()
        assert (row.name, row.error_type, row.failures) == ("declared", "LookupError", 1)
        row = ended(fails.delay("delay"), "failed").row()
    assert (row.error_type, row.error_message) == (
        "InvalidTask",
        "delay: this function came as a pickle, without its queue: call add_task on a queue",
    )


def test_inside_it_is_a_task_like_any_other(keyed: Queue) -> None:
    def tell() -> int:
        set_context("told", True)
        return current_task().attempt

    with working(keyed):
        ref = ended(keyed.add_task(tell))
    assert (ref.result, ref.context) == (1, {"told": True})


def test_it_waits_for_a_parent_and_may_be_one(keyed: Queue) -> None:
    parent = keyed.add_task(lambda: 2)
    child = keyed.add_task(lambda: [ref.result for ref in current_task().parents], parent=parent)
    with working(keyed):
        assert ended(child).result == [2]


def test_it_is_run_again_by_a_retry_and_by_a_person(keyed: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("queuedtask.model.backoff.LIMIT", 0.05)

    def twice() -> int:
        if current_task().attempt == 1:
            raise ValueError
        return current_task().attempt

    with working(keyed):
        ref = ended(keyed.add_task(twice))
        assert ref.result == 2
        ref.retry()
        wait_until(lambda: ref.result == 3)


# -- At the caller -------------------------------------------------------------------------------------------


def test_what_cannot_go_is_refused_before_anything_is_written(queue: Queue) -> None:
    lock = threading.Lock()
    with pytest.raises(InvalidTask, match=r"set QUEUE_SECRET_KEY, here and in the workers"):
        queue.add_task(lambda: 1)
    queue.config.secret_key = (KEY,)
    with pytest.raises(InvalidTask, match="lock"):
        queue.add_task(lambda: [lock])
    with pytest.raises(InvalidTask, match="a Queue is not sent along"):
        queue.add_task(lambda: [queue])
    with pytest.raises(InvalidTask, match="generator function"):
        queue.add_task(lambda: (yield))
    big = "x" * 2_000_000
    with pytest.raises(InvalidTask, match="QUEUE_MAX_PAYLOAD allows 1,048,576"):
        queue.add_task(lambda: big)
    with pytest.raises(InvalidTask, match=r"args\[0\]"):
        queue.add_task(lambda n: n, object())
    assert queue.find() == []


def test_a_schedule_needs_a_function_that_can_be_imported(keyed: Queue) -> None:
    with pytest.raises(InvalidTask, match="local function, and no worker can import it"):
        keyed.options().spec_of(lambda_of("f"), (), {})
    with pytest.raises(InvalidTask, match="local function"):
        keyed.cron("@daily")(lambda_of("f"))


def lambda_of(result: str) -> Callable[[], str]:
    def local() -> str:
        return result

    return local


# -- What is refused in the worker ---------------------------------------------------------------------------


def swap_in(database_url: str, ref: TaskRef, pickled: bytes) -> None:
    execute(database_url, "UPDATE queued_tasks SET pickled_function = %s WHERE id = %s", (pickled, ref.id))


def raw(database_url: str, ref: TaskRef) -> bytes:
    return bytes(columns(database_url, ref, "pickled_function")[0])


def forge(url: str, ref: TaskRef, other: TaskRef) -> None:
    good = bytearray(raw(url, ref))
    good[-1] ^= 1
    swap_in(url, ref, bytes(good))


def replay(url: str, ref: TaskRef, other: TaskRef) -> None:
    execute(url, "UPDATE queued_tasks SET function = %s WHERE id = %s", (columns(url, other, "function")[0], ref.id))
    swap_in(url, ref, raw(url, other))


def rename(url: str, ref: TaskRef, other: TaskRef) -> None:
    execute(url, "UPDATE queued_tasks SET function = 'shop:harmless' WHERE id = %s", (ref.id,))


def sign_with_another_key(url: str, ref: TaskRef, other: TaskRef) -> None:
    content, name = raw(url, ref)[33:], columns(url, ref, "function")[0]
    swap_in(url, ref, pickles.sign(content, ("guessed",), task_id=ref.id, function=name))


def strip(url: str, ref: TaskRef, other: TaskRef) -> None:
    swap_in(url, ref, raw(url, ref)[35:])


def cut(url: str, ref: TaskRef, other: TaskRef) -> None:
    swap_in(url, ref, raw(url, ref)[:-1])


def cut_short(url: str, ref: TaskRef, other: TaskRef) -> None:
    swap_in(url, ref, raw(url, ref)[:20])


def empty(url: str, ref: TaskRef, other: TaskRef) -> None:
    swap_in(url, ref, b"")


def change_the_format(url: str, ref: TaskRef, other: TaskRef) -> None:
    swap_in(url, ref, b"\x02" + raw(url, ref)[1:])


TAMPERING = [forge, replay, rename, sign_with_another_key, strip, cut, cut_short, empty, change_the_format]


@pytest.mark.parametrize(
    ("tamper", "is_isolated"), [*((each, False) for each in TAMPERING), (forge, True), (replay, True)]
)
def test_a_pickle_that_is_not_as_it_was_signed_is_refused_at_once_and_not_run(
    keyed: Queue, database_url: str, tmp_path: Path, tamper: Callable[..., None], is_isolated: bool
) -> None:
    proof = tmp_path / "ran"
    good, bad = (keyed.options(delay=3600).add_task(lambda path: Path(path).touch(), str(proof)) for _ in range(2))
    tamper(database_url, bad, good)
    release(database_url, bad, lost_count=int(is_isolated))
    with working(keyed):
        row = ended(bad, "failed", timeout=30).row()
        assert not proof.exists()
        release(database_url, good, lost_count=int(is_isolated))
        ended(good, timeout=30)
    assert proof.exists()
    assert (row.error_type, row.failures) == ("InvalidSignature", 1)
    assert attempts(keyed, bad) == [(1, "refused", "InvalidSignature")]


def release(database_url: str, ref: TaskRef, *, lost_count: int = 0) -> None:
    execute(
        database_url,
        "UPDATE queued_tasks SET state = 'enqueued', date_scheduled = NULL, lost_count = %s WHERE id = %s "
        "RETURNING pg_notify('queue_new_task', '')",
        (lost_count, ref.id),
    )


def test_where_the_pickle_was_taken_out_the_name_is_not_imported(keyed: Queue, database_url: str) -> None:
    ref = keyed.options(delay=3600, max_retries=0).add_task(lambda: 1)
    execute(database_url, "UPDATE queued_tasks SET pickled_function = NULL WHERE id = %s", (ref.id,))
    release(database_url, ref)
    with working(keyed):
        assert ended(ref, "failed").row().error_type == "UnknownFunction"


@pytest.mark.parametrize("keys", [(), ("another",)])
def test_a_worker_without_the_key_refuses_it_and_with_the_key_it_can_be_sent_round_again(
    keyed: Queue, tmp_path: Path, keys: tuple[str, ...]
) -> None:
    proof = tmp_path / "ran"
    ref = keyed.add_task(lambda path: Path(path).touch(), str(proof))
    with working(keyed, secret_key=keys):
        row = ended(ref, "failed").row()
        assert (row.error_type, row.attempt) == ("InvalidSignature", 1)
        assert not proof.exists()
        keyed.config.secret_key = ("newest", KEY)
        ref.retry()
        wait_until(lambda: ref.state == "done")
    assert proof.exists()


def test_keys_are_rotated_without_losing_what_was_added_before(keyed: Queue) -> None:
    old = keyed.add_task(lambda: "old")
    keyed.config.secret_key = ("new", KEY)
    new = keyed.add_task(lambda: "new")
    with working(keyed):
        assert (ended(old).result, ended(new).result) == ("old", "new")
    keyed.config.secret_key = ("new",)
    old.retry()
    new.retry()
    with working(keyed):
        assert ended(new).result == "new"
        assert ended(old, "failed").row().error_type == "InvalidSignature"


def test_a_pickle_of_ours_that_cannot_be_loaded_here_uses_its_retries(
    keyed: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("queuedtask.model.backoff.LIMIT", 0.05)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "only_here.py").write_text("def helper(): return 'helped'")
    import only_here  # type: ignore[import-not-found]

    ref = keyed.options(max_retries=1).add_task(lambda: [only_here.helper()])
    del sys.modules["only_here"]
    (tmp_path / "only_here.py").unlink()
    with working(keyed):
        row = ended(ref, "failed").row()
    assert (row.error_type, row.failures) == ("UnknownFunction", 2)
    assert "needs the module only_here" in (row.error_message or "")


# -- In processes --------------------------------------------------------------------------------------------


def test_it_runs_in_an_isolated_process_which_gets_the_keys_by_wire_alone(keyed: Queue, database_url: str) -> None:
    ref = keyed.options(delay=3600).add_task(
        lambda: {"pid": os.getpid(), "argv": " ".join(sys.orig_argv), "environment": str(dict(os.environ))}
    )
    release(database_url, ref, lost_count=1)
    with working(keyed):
        told = ended(ref, timeout=30).result
        assert Path(f"/proc/{told['pid']}/cmdline").read_text().count("queuedtask")
        shown = Path(f"/proc/{told['pid']}/cmdline").read_text() + Path(f"/proc/{told['pid']}/environ").read_text()
    assert told["pid"] != os.getpid()
    assert KEY not in shown + told["argv"] + told["environment"]


SCRIPT = """
import os
from queuedtask import Queue, current_task

queue = Queue()
FACTOR = 3

def helper(n):
    return n * FACTOR

@queue.task(max_retries=0)
def compute(n):
    return [helper(n), current_task().name, __name__]

def main():
    refs = [compute.delay(2), queue.add_task(helper, 5), queue.add_task(lambda: FACTOR)]
    print(*(ref.id for ref in refs))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("typed", [False, pytest.param(True, id="at a prompt")])
def test_functions_of_a_script_or_a_prompt_run_in_a_real_worker(
    queue: Queue, database_url: str, tmp_path: Path, typed: bool
) -> None:
    environment = {
        **os.environ,
        "QUEUE_DATABASE_URL": database_url,
        "QUEUE_SECRET_KEY": KEY,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    script = tmp_path / "no-module.py"
    script.write_text(SCRIPT)

    def run(*arguments: str, **more: Any) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, *arguments]
        ran = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False, **more
        )
        assert ran.returncode == 0, ran.stderr
        return ran

    added = run("-", input=SCRIPT) if typed else run(str(script))
    worked = run("-m", "queuedtask", "worker", "--burst", "-w", "2", "--log-level", "debug")
    assert KEY not in worked.stderr + worked.stdout
    compute, helper, last = (queue.get(task_id) for task_id in added.stdout.split())
    assert (helper.result, last.result) == (15, 3)
    assert compute.result == [6, "__main__.compute", "__main__"]
    assert columns(database_url, compute, "function") == ("__main__:compute",)
    assert columns(database_url, last, "function") == ("__main__:main.<locals>.<lambda>",)


def test_a_timeout_and_its_interrupt_reach_it(keyed: Queue) -> None:
    def spin() -> None:
        while True:
            time.sleep(0.001)

    with working(keyed):
        ref = keyed.options(timeout=0.3, max_retries=0).add_task(spin)
        assert ended(ref, "failed").row().error_type == "TaskTimeout"
