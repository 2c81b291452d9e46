"""A statement: built with SQLAlchemy Core, compiled once, executed on a DB-API cursor.

Executing on the cursor instead of on a SQLAlchemy Connection has two reasons: it is several times faster where a
worker settles thousands of tasks a second, and the same statement then runs on whatever connection a caller brings
(SQLAlchemy's, Django's, psycopg's). Values are always parameters; jsonb goes in and comes out as text.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Protocol

from sqlalchemy import (
    ARRAY,
    ColumnClause,
    ColumnElement,
    Executable,
    TableValuedAlias,
    Text,
    Uuid,
    bindparam,
    cast,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB, psycopg2
from sqlalchemy.sql.type_api import TypeEngine


class Cursor(Protocol):
    """What we use of a DB-API cursor: psycopg2's, psycopg 3's and Django's all have it."""

    @property
    def rowcount(self) -> int: ...
    def execute(self, query: Any, params: Any = None, /) -> Any: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> Sequence[Any]: ...


CursorContext = AbstractContextManager[Cursor]

_registry: dict[str, "Statement"] = {}
_dialect = psycopg2.dialect()  # type: ignore[no-untyped-call]


class Statement:
    """A named statement; calling it executes it with its parameters and returns the cursor."""

    def __init__(self, name: str, core: Executable) -> None:
        if name in _registry:
            raise ValueError(f"two statements are named {name!r}")
        self.name = name
        self.core = core
        _registry[name] = self

    @cached_property
    def _compiled(self) -> tuple[str, dict[str, Any]]:
        compiled = self.core.compile(dialect=_dialect, compile_kwargs={"render_postcompile": True})  # type: ignore[attr-defined]
        return str(compiled), dict(compiled.params)

    @property
    def sql(self) -> str:
        """Return the text as the driver gets it, with ``%(name)s`` in place of the parameters."""
        return self._compiled[0]

    def __call__(self, cursor: Cursor, **parameters: Any) -> Cursor:
        """Execute the statement. Parameters that it needs and that are not given are NULL."""
        sql, defaults = self._compiled
        given = {**defaults, **parameters}
        # A cursor that compiles for a driver of its own wants the statement instead of our text; see db/callers.
        execute_statement = getattr(cursor, "execute_statement", None)
        if execute_statement is None:
            cursor.execute(sql, given)
        else:
            execute_statement(self, {name: given[name] for name in defaults})
        return cursor


def all_statements() -> Iterator[Statement]:
    """Yield every statement that was made so far, by name."""
    for name in sorted(_registry):
        yield _registry[name]


def parameter(name: str, type_: TypeEngine[Any] | type[TypeEngine[Any]]) -> ColumnElement[Any]:
    """Return a named parameter with its type spelt out in the SQL, so that no driver has to guess it.

    JSON and ids go in as the texts that they are, whoever executes the statement.
    """
    is_text = isinstance(type_, type) and issubclass(type_, JSONB | Uuid)
    return cast(bindparam(name, type_=Text() if is_text else None), type_)


def rows(name: str, *columns: ColumnClause[Any], position: str | None = None) -> TableValuedAlias:
    """Return ``unnest(…)`` over one array parameter for each column: many rows in one statement.

    The parameter of a column is its name with an s: ``id`` is given as ``ids``. A ``position`` names one more column,
    which numbers the rows: whoever joins them to a table gets them in any order.
    """
    arrays = [cast(bindparam(f"{column.name}s"), ARRAY(column.type)) for column in columns]
    return func.unnest(*arrays).table_valued(*columns, with_ordinality=position).render_derived(name=name)
