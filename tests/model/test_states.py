"""Every pair of a state and an edge, run against the real tables: an edge moves what it may, and nothing else."""

import ast
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Uuid

import queuedtask
from helpers import fresh_database, raw_connection
from queuedtask.db import moves, store
from queuedtask.db.embedded import EmbeddedServer
from queuedtask.db.schema import tasks
from queuedtask.db.statement import Statement, all_statements, parameter, rows
from queuedtask.model import states
from queuedtask.model.states import Edge

ME, OTHER = 7, 8
ATTEMPT = 3
PACKAGE = Path(queuedtask.__file__).parent

EVERY_PAIR = [pytest.param(e, s, id=f"{e.name}-{s}") for e in states.EDGES for s in states.STATES]
FENCED = [pytest.param(e, id=e.name) for e in states.EDGES if e.fenced]

# The picture of the life cycle, written down a second time.
DRAWN = {
    "release": (["waiting"], "enqueued"),
    "claim": (["enqueued"], "doing"),
    "finish": (["doing"], "done"),
    "fail": (["doing"], "failed"),
    "retry": (["doing"], "waiting"),
    "call_off": (["doing"], "cancelled"),
    "halt": (["doing"], "stopped"),
    "hand_back": (["doing"], "enqueued"),
    "disown": (["doing"], "enqueued"),
    "rescue": (["doing"], "enqueued"),
    "lose": (["doing"], "failed"),
    "cancel": (["waiting", "enqueued"], "cancelled"),
    "stop": (["waiting", "enqueued"], "stopped"),
    "hold": (["enqueued"], "waiting"),
    "requeue": (["done", "failed", "cancelled", "stopped"], "enqueued"),
    "reschedule": (["waiting", "enqueued"], "waiting"),
    "revive": (["cancelled"], "waiting"),
}


@pytest.fixture(scope="module")
def shared_connection(server: EmbeddedServer, template: str) -> Iterator[Any]:
    with (
        fresh_database(server, template) as url,
        contextlib.closing(raw_connection(url, autocommit=False)) as connection,
    ):
        yield connection


@pytest.fixture
def cursor(shared_connection: Any) -> Iterator[Any]:
    """Give a cursor in a transaction that is rolled back."""
    with shared_connection.cursor() as cursor:
        yield cursor
    shared_connection.rollback()


def put(cursor: Any, state: str) -> str:
    """Insert a task that looks as if it had come to this state on the usual way; return its id."""
    is_final = state in ("done", "failed", "cancelled", "stopped")
    has_run = is_final or state == "doing"
    cursor.execute(
        "INSERT INTO queued_tasks (function, state, claimed_by, attempt, date_enqueued, date_started, date_done,"
        " date_scheduled, context, failures)"
        " VALUES ('a:b', %s, %s, %s, now() - interval '1 h', CASE WHEN %s THEN now() - interval '1 min' END,"
        " CASE WHEN %s THEN now() - interval '1 s' END, now() - interval '2 h', '{\"a\": 1}', 1) RETURNING id",
        (state, ME if has_run else None, ATTEMPT, has_run, is_final),
    )
    return str(cursor.fetchone()[0])


def snapshot(cursor: Any, task_id: str) -> dict[str, Any]:
    cursor.execute("SELECT * FROM queued_tasks WHERE id = %s", (task_id,))
    return dict(zip([column.name for column in cursor.description], cursor.fetchone(), strict=True))


def take(cursor: Any, edge: Edge, task_id: str, *, worker: int = ME, attempt: int = ATTEMPT) -> int:
    """Run the bare statement that ``move`` makes from an edge; return how many rows it moved."""
    if edge.fenced:
        ended = rows("ended", *store._ENDED)
        move = moves.move(edge, tasks.c.id == ended.c.id, ended=ended)
    else:
        move = moves.move(edge, tasks.c.id == parameter("id", Uuid))
    given = {"ids": [task_id], "attempts": [attempt], "seconds": [None], "contexts": [None]}
    Statement("move", move, is_listed=False)(cursor, id=task_id, worker=worker, **given)
    return int(cursor.rowcount)


def test_the_edges_are_those_of_the_picture() -> None:
    assert {edge.name: (list(edge.sources), edge.target) for edge in states.EDGES} == DRAWN


def test_a_worker_s_ends_of_its_own_attempt_are_fenced_and_no_other_edges() -> None:
    fenced = {edge.name for edge in states.EDGES if edge.fenced}
    assert fenced == {"finish", "fail", "retry", "call_off", "halt", "hand_back", "rescue", "lose"}


@pytest.mark.parametrize(("edge", "state"), EVERY_PAIR)
def test_an_edge_moves_exactly_the_states_that_it_starts_from(cursor: Any, edge: Edge, state: str) -> None:
    task_id, bystander = put(cursor, state), put(cursor, state)
    before, bystander_before = snapshot(cursor, task_id), snapshot(cursor, bystander)

    moved = take(cursor, edge, task_id)

    after = snapshot(cursor, task_id)
    sources, target = DRAWN[edge.name]
    assert snapshot(cursor, bystander) == bystander_before
    if state not in sources:
        assert (moved, after) == (0, before)
        return
    expected = before | {"state": target}
    if target in ("waiting", "enqueued"):
        expected |= {"claimed_by": None, "date_started": None, "date_done": None}
    elif target == "doing":
        expected |= {"claimed_by": ME, "date_started": None}
    if target == "enqueued":
        assert after["date_enqueued"] > before["date_enqueued"]
        expected["date_enqueued"] = after["date_enqueued"]
    if target in ("done", "failed", "cancelled", "stopped"):
        assert before["date_done"] is None
        assert after["date_done"] > before["date_enqueued"]
        expected["date_done"] = after["date_done"]
    assert (moved, after) == (1, expected)


@pytest.mark.parametrize("edge", FENCED)
@pytest.mark.parametrize("state", states.STATES)
@pytest.mark.parametrize(
    ("worker", "attempt"),
    [(OTHER, ATTEMPT), (ME, ATTEMPT - 1), (ME, ATTEMPT + 1), (OTHER, ATTEMPT - 1)],
    ids=["another worker", "an earlier attempt", "a later attempt", "both"],
)
def test_a_fenced_edge_moves_nothing_but_this_attempt_of_this_worker(
    cursor: Any, edge: Edge, state: str, worker: int, attempt: int
) -> None:
    task_id = put(cursor, state)
    before = snapshot(cursor, task_id)

    assert take(cursor, edge, task_id, worker=worker, attempt=attempt) == 0

    assert snapshot(cursor, task_id) == before


@pytest.mark.parametrize("edge", FENCED)
def test_a_fenced_edge_cannot_be_turned_into_an_update_without_its_attempt(edge: Edge) -> None:
    with pytest.raises(AssertionError, match=edge.name):
        moves.move(edge)


def test_every_statement_that_writes_a_state_is_guarded_as_one_of_the_edges() -> None:
    allowed = {(target, ", ".join(f"'{source}'" for source in sources)) for sources, target in DRAWN.values()}
    writers = [s for s in all_statements() if re.search(r"\bSET\b.*\bstate\s*=", s.sql.split(" WHERE ")[0], re.DOTALL)]
    names = {"claim", "finish", "fail", "retry", "rescue", "lose", "release", "requeue", "disown", "disown_all"}
    assert {s.name for s in writers} >= names
    for statement in writers:
        target = re.search(r"\bSET\b.*?\bstate='(\w+)'(.*?)(RETURNING|\Z)", statement.sql, re.DOTALL)
        assert target, statement.name
        guard = re.findall(r"queued_tasks\.state IN \(([^)]*)\)", target[2])
        assert guard, statement.name
        # The last one is the update's own; one in a sub-select may stand before it.
        assert (target[1], guard[-1]) in allowed, statement.name


def test_a_state_is_written_in_one_function_and_where_a_task_is_added() -> None:
    found = [
        (path.relative_to(PACKAGE).as_posix(), place)
        for path in sorted(PACKAGE.rglob("*.py"))
        for place in places_that_write_state(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == [
        *(("db/adding.py", place) for place in ("_inserting", "_added_many", "_family_added")),
        ("db/moves.py", "move"),
        ("db/unique.py", "_adding"),
    ]


def test_the_search_for_writes_of_a_state_finds_them_in_every_spelling() -> None:
    source = """
def one(): update(tasks).values(state="x")
def two(): update(tasks).values({"state": "x"})
def three(): update(tasks).values({tasks.c.state: "x"})
def four(): cursor.execute("UPDATE queued_tasks SET date_done = now(), state = 'x'")
def five(): return {"state": task.state}, find(state="x"), f"WHERE state = {state}"
"""
    assert places_that_write_state(ast.parse(source)) == ["one", "two", "three", "four"]


def places_that_write_state(module: ast.Module) -> list[str]:
    """Return the functions and module-level names, in their order, whose code writes the column."""
    return [
        getattr(top, "name", None) or ast.unparse(getattr(top, "targets", [top])[0])
        for block in module.body
        for top in (block.body if isinstance(block, ast.ClassDef) else [block])
        if any(_writes_state(node) for node in ast.walk(top))
    ]


def _writes_state(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return (
            re.search(r"(?is)\bupdate\b.*\bset\b.*\bstate\s*=|insert into queued_tasks\b.*\bstate\b", node.value)
            is not None
        )
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    if node.func.attr not in ("values", "on_conflict_do_update", "from_select"):
        return False
    if any(keyword.arg == "state" for keyword in node.keywords):
        return True
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    keys = [key for value in given for part in ast.walk(value) if isinstance(part, ast.Dict) for key in part.keys]
    names = [item for value in given if isinstance(value, ast.List) for item in value.elts]
    return any(
        (isinstance(key, ast.Constant) and key.value == "state")
        or (isinstance(key, ast.Attribute) and key.attr == "state")
        for key in [*keys, *names]
    )
