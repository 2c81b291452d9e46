"""Statements: named, compiled once, executed on a cursor; and their texts, kept in a file that a reviewer reads."""

import contextlib
import importlib
import json
import os
import re
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2.extras
import pytest
from sqlalchemy import ARRAY, TIMESTAMP, Boolean, Double, Integer, Text, Uuid, column, func, literal_column, select
from sqlalchemy.dialects.postgresql import JSONB

import queuedtask.db
from helpers import raw_connection
from queuedtask.db import statement
from queuedtask.db.statement import Statement, all_statements, parameter, rows

GOLDEN = Path(__file__).parents[2] / "docs" / "reference" / "statements.sql"
UPDATE = "QUEUEDTASK_TEST_UPDATE_GOLDEN"

# All modules that may make statements: nothing else of the package knows SQL.
for _module in Path(queuedtask.db.__file__).parent.glob("*.py"):
    importlib.import_module(f"queuedtask.db.{_module.stem}")
OURS = {each.name: each.sql for each in all_statements()}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test make statements that nobody sees afterwards."""
    monkeypatch.setattr(statement, "_registry", dict(statement._registry))


@pytest.fixture
def cursor(empty_database_url: str) -> Iterator[Any]:
    with contextlib.closing(raw_connection(empty_database_url)) as connection, connection.cursor() as cursor:
        yield cursor


# --------------------------------------------------------------------------------------------------- the golden file


def test_the_statements_are_those_of_the_golden_file() -> None:
    if os.environ.get(UPDATE):
        GOLDEN.write_text(golden(OURS), encoding="utf-8")
    text = GOLDEN.read_text(encoding="utf-8")
    kept = {name: " ".join(sql.split()) for name, sql in re.findall(r"(?ms)^-- (\w+)\n(.*?);\n", text)}
    ours = {name: " ".join(shaped(sql).split()) for name, sql in OURS.items()}
    assert kept == ours, f"a statement has changed; if that is meant: {UPDATE}=1 pytest {Path(__file__).name}"


def test_the_golden_file_is_written_in_the_form_that_is_compared() -> None:
    text = golden({"b": "SELECT 1\nFROM t", "a": "UPDATE t SET x=1"})
    assert text.index("-- a\nUPDATE t\nSET x=1;\n") < text.index("-- b\nSELECT 1\nFROM t;\n")


def test_a_statement_is_laid_out_by_its_clauses() -> None:
    sql = (
        "WITH x AS (UPDATE t SET a=(b + 1), c=NULL WHERE t.id = ANY (array((SELECT t.id FROM t WHERE f(a, (b)) AND c "
        "ORDER BY t.a LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED))) AND (d OR e) RETURNING t.id) SELECT x.id FROM x"
    )
    assert shaped(sql) == textwrap.dedent(
        """\
        WITH x AS (
            UPDATE t
            SET a=(b + 1), c=NULL
            WHERE t.id = ANY (array((
                SELECT t.id
                FROM t
                WHERE f(a, (b))
                AND c
                ORDER BY t.a
                LIMIT 1
                FOR NO KEY UPDATE SKIP LOCKED
            )))
            AND (d OR e)
            RETURNING t.id
        )
        SELECT x.id
        FROM x"""
    )


def golden(statements: dict[str, str]) -> str:
    """Return the text of the golden file."""
    parts = [
        "-- Every statement of queuedtask, by name. Written by a test, from the code:",
        f"-- {UPDATE}=1 pytest tests/db/test_statement.py",
        *(f"\n-- {name}\n{shaped(sql)};" for name, sql in sorted(statements.items())),
    ]
    return "\n".join(parts) + "\n"


_CLAUSES = (
    r"SELECT|FROM|(?:LEFT OUTER )?JOIN|WHERE|AND|GROUP BY|ORDER BY|LIMIT|FOR NO KEY|RETURNING|SET|VALUES|ON CONFLICT"
)
_PARTS = re.compile(rf"'[^']*'|\(|\)|\b(?:{_CLAUSES})\b|\s+|[^\s()']+")


def shaped(sql: str) -> str:
    """Lay out a statement: each clause on its line, sub-selects indented. What stands in other parentheses is left."""
    lines, depth, opened = [""], 0, []
    parts = _PARTS.findall(" ".join(sql.split()))

    def begin_line() -> None:
        lines[-1] = lines[-1].rstrip()
        lines.append("    " * depth)

    for number, part in enumerate(parts):
        is_query = part == "(" and parts[number + 1] in ("SELECT", "UPDATE", "INSERT", "DELETE")
        if part == ")" and opened.pop():
            depth -= 1
            begin_line()
        elif re.fullmatch(_CLAUSES, part) and not (opened and not opened[-1]) and lines[-1].strip():
            begin_line()
        lines[-1] += part if lines[-1].strip() else part.lstrip()
        if part == "(":
            opened.append(is_query)
        if is_query:
            depth += 1
            begin_line()
        if part == ")" and "".join(parts[number + 1 : number + 3]).strip() in ("SELECT", "INSERT", "UPDATE", "DELETE"):
            begin_line()
    wrapped = []
    for line in filter(str.strip, lines):
        indent = " " * (len(line) - len(line.lstrip()))
        wrapped += textwrap.wrap(
            line.strip(),
            110,
            initial_indent=indent,
            subsequent_indent=indent + "    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(wrapped)


# ------------------------------------------------------------------------------------------------------- the statements


@pytest.mark.parametrize("name", OURS)
def test_every_parameter_that_we_give_has_its_type_in_the_statement(name: str) -> None:
    bare = re.findall(r"(?<!CAST\()%\((?!\w+_\d+\))\w+\)s", OURS[name])
    assert bare == []


def test_postgresql_knows_every_table_column_and_type_of_every_statement(database_url: str) -> None:
    with contextlib.closing(raw_connection(database_url)) as connection, connection.cursor() as cursor:
        for sql in OURS.values():
            cursor.execute("EXPLAIN " + sql, dict.fromkeys(re.findall(r"%\((\w+)\)s", sql)))


@pytest.mark.usefixtures("registry")
def test_a_statement_runs_on_a_cursor_and_returns_it(cursor: Any) -> None:
    add = Statement("t_add", select(parameter("a", Integer) + literal_column("1")))
    assert add(cursor, a=41) is cursor
    assert cursor.fetchone() == (42,)


@pytest.mark.usefixtures("registry")
def test_a_parameter_that_is_not_given_is_null_and_one_too_many_is_passed_over(cursor: Any) -> None:
    maybe = Statement("t_maybe", select(func.coalesce(parameter("a", Text), literal_column("'nothing'"))))
    assert maybe(cursor).fetchone() == ("nothing",)
    assert maybe(cursor, a="x%s'", b=1).fetchone() == ("x%s'",)


@pytest.mark.usefixtures("registry")
def test_a_statement_is_compiled_once() -> None:
    made = Statement("t_once", select(parameter("a", Integer)))
    assert made.sql is made.sql
    assert made.sql.startswith("SELECT CAST(%(a)s AS INTEGER)")


@pytest.mark.usefixtures("registry")
def test_two_statements_cannot_have_one_name() -> None:
    Statement("t_twice", select(literal_column("1")))
    with pytest.raises(ValueError, match="t_twice"):
        Statement("t_twice", select(literal_column("2")))


@pytest.mark.usefixtures("registry")
def test_statements_are_listed_by_name() -> None:
    Statement("t_b", select(literal_column("1")))
    Statement("t_a", select(literal_column("1")))
    names = [each.name for each in all_statements()]
    assert names == sorted(names)
    assert {"t_a", "t_b"} <= set(names)


@pytest.mark.usefixtures("registry")
def test_rows_are_as_many_as_their_arrays_are_long_and_json_goes_in_as_text(cursor: Any) -> None:
    line = rows("line", column("number", Integer), column("document", JSONB), position="n")
    made = Statement("t_rows", select(line.c.n, line.c.number, line.c.document).order_by(line.c.n))
    psycopg2.extras.register_default_jsonb(cursor, globally=False, loads=json.loads)
    found = made(cursor, numbers=[7, None], documents=['{"a": [1]}', None]).fetchall()
    assert found == [(1, 7, {"a": [1]}), (2, None, None)]
    assert made(cursor, numbers=[], documents=[]).fetchall() == []


@pytest.mark.usefixtures("registry")
def test_an_array_is_one_parameter(cursor: Any) -> None:
    made = Statement("t_array", select(func.cardinality(parameter("all", ARRAY(Text)))))
    assert made(cursor, all=["a", "b'", None]).fetchone() == (3,)
    assert made(cursor, all=[]).fetchone() == (0,)


HOSTILE = ["", "NULL", "null", " a ", "a,b", "{a}", 'say "so"', "back\\slash", "\\", "'", "%s", "ü\n\t\u2028", "{}"]


@pytest.mark.usefixtures("registry")
def test_the_values_of_a_list_come_through_unchanged(cursor: Any) -> None:
    psycopg2.extras.register_default_jsonb(cursor, globally=False, loads=json.loads)
    columns = {
        "text": Text,
        "document": JSONB,
        "id": Uuid,
        "flag": Boolean,
        "ratio": Double,
        "time": TIMESTAMP(timezone=True),
    }
    line = rows("line", *(column(name, type_) for name, type_ in columns.items()), position="n")
    made = Statement("t_list", select(*(line.c[name] for name in columns)).order_by(line.c.n))
    for text in HOSTILE:
        now, id_ = datetime.now(UTC), str(uuid4())
        value = [text, {text: None}]
        given = {
            "texts": text,
            "documents": json.dumps(value),
            "ids": id_,
            "flags": True,
            "ratios": 1e-300,
            "times": now,
        }
        # Besides a row of nothing, so that every list has its NULL.
        found = made(cursor, **{name: [each, None] for name, each in given.items()}).fetchall()
        assert found == [(text, value, id_, True, 1e-300, now), (None,) * 6]
    everything = Statement("t_texts", select(parameter("texts", ARRAY(Text))))
    assert everything(cursor, texts=HOSTILE).fetchone() == (HOSTILE,)


@pytest.mark.usefixtures("registry")
def test_a_list_that_is_not_given_is_null_and_not_empty(cursor: Any) -> None:
    made = Statement("t_none", select(parameter("all", ARRAY(Text)).is_(None)))
    assert made(cursor).fetchone() == (True,)
    assert made(cursor, all=[]).fetchone() == (False,)
