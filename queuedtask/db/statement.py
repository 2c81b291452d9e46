"""A statement: built with SQLAlchemy Core, compiled once, executed on a DB-API cursor.

Executing on the cursor instead of on a SQLAlchemy Connection has two reasons: it is several times faster where a
worker settles thousands of tasks a second, and the same statement then runs on whatever connection a caller brings
(SQLAlchemy's, Django's, psycopg's). Values are always parameters; jsonb goes in and comes out as text.
"""

from collections.abc import Callable, Iterator, Sequence
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
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB, psycopg2
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

    def __init__(self, name: str, core: Executable, *, is_listed: bool = True) -> None:
        """Take a statement; one that is made while others are executed, as a form of another, is not listed."""
        if is_listed and name in _registry:
            raise ValueError(f"two statements are named {name!r}")
        self.name = name
        self.core = core
        if is_listed:
            _registry[name] = self

    @cached_property
    def _compiled(self) -> tuple[str, dict[str, Any], dict[str, "Writer"]]:
        compiled = self.core.compile(dialect=_dialect, compile_kwargs={"render_postcompile": True})  # type: ignore[attr-defined]
        lists = {name: bind.type.write for name, bind in compiled.binds.items() if isinstance(bind.type, _List)}
        return str(compiled), dict(compiled.params), lists

    @property
    def sql(self) -> str:
        """Return the text as the driver gets it, with ``%(name)s`` in place of the parameters."""
        return self._compiled[0]

    def __call__(self, cursor: Cursor, **parameters: Any) -> Cursor:
        """Execute the statement. Parameters that it needs and that are not given are NULL."""
        sql, defaults, lists = self._compiled
        given = {**defaults, **parameters}
        for name, write in lists.items():
            if given[name] is not None:
                given[name] = write(given[name])
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


# A list goes as one text, whatever the driver. As a list of its own psycopg2 would write it as ARRAY[…], of which the
# server parses each element as an expression: for 1,000 ids and arguments that took 10 ms instead of 3.

Writer = Callable[[Sequence[Any]], str]


class _List(Text):
    """The type of a parameter that is a list here and a text on its way."""

    def __init__(self, write: Writer) -> None:
        super().__init__()
        self.write = write


def _array(values: Sequence[Any]) -> str:
    """Return PostgreSQL's text of an array whose elements have neither quotes nor backslashes in them."""
    return "{" + ",".join(["NULL" if value is None else f'"{value}"' for value in values]) + "}"


def _array_of_texts(values: Sequence[Any]) -> str:
    quoted = [None if value is None else value.replace("\\", r"\\").replace('"', r"\"") for value in values]
    return _array(quoted)


def _array_of_json(values: Sequence[Any]) -> str:
    return "[" + ",".join(["null" if value is None else value for value in values]) + "]"


def _list(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """Return an array parameter. A JSON null is NULL: of what we store in rows, nothing else is null as a whole."""
    if isinstance(type_, JSONB):
        # One document is parsed faster than many; json, because the elements of a jsonb are limited to 256 MB together.
        document = cast(bindparam(name, type_=_List(_array_of_json)), JSON)
        value = func.json_array_elements(document).column_valued(f"{name}_value")
        null = literal_column("'null'::jsonb", JSONB)
        return func.array(select(func.nullif(cast(value, JSONB), null)).scalar_subquery())
    write = _array_of_texts if isinstance(type_, Text) else _array
    return cast(bindparam(name, type_=_List(write)), ARRAY(type_))


def parameter(name: str, type_: TypeEngine[Any] | type[TypeEngine[Any]]) -> ColumnElement[Any]:
    """Return a named parameter with its type spelt out in the SQL, so that no driver has to guess it.

    JSON and ids go in as the texts that they are, whoever executes the statement, and lists as sequences of values.
    """
    if isinstance(type_, ARRAY):
        return _list(name, type_.item_type)
    is_text = isinstance(type_, type) and issubclass(type_, JSONB | Uuid)
    return cast(bindparam(name, type_=Text() if is_text else None), type_)


def rows(name: str, *columns: ColumnClause[Any], position: str | None = None) -> TableValuedAlias:
    """Return ``unnest(…)`` over one array parameter for each column: many rows in one statement.

    The parameter of a column is its name with an s: ``id`` is given as ``ids``. A ``position`` names one more column,
    which numbers the rows: whoever joins them to a table gets them in any order.
    """
    arrays = [_list(f"{column.name}s", column.type) for column in columns]
    return func.unnest(*arrays).table_valued(*columns, with_ordinality=position).render_derived(name=name)
