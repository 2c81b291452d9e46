"""Paths of functions: what has one, what a refusal says, and what a worker finds under it."""

import asyncio
import functools
import importlib
import math
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from queuedtask.errors import InvalidTask, UnknownFunction
from queuedtask.model import functions
from queuedtask.model.functions import check_path, default_name, path_of, resolve, unwrap_partial
from queuedtask.model.rules import Rules

TASKS = """
    import functools

    def send(order): return ("sent", order)

    async def fetch(): return "fetched"

    def local():
        def inner(): pass
        return inner

    def numbers(): yield 1

    async def agen(): yield 1

    shortcut = lambda: None

    class Mailer:
        @staticmethod
        def send(): return "mailed"

        @classmethod
        def create(cls): return cls.__name__

        def deliver(self): pass

        def __call__(self): return "called"

        class Inner:
            @staticmethod
            def ping(): return "pong"

    class Special(Mailer): pass

    def traced(function):
        @functools.wraps(function)
        def wrapper(*args): return ("traced", function(*args))
        return wrapper

    def careless(function):
        def wrapper(*args): return function(*args)
        return wrapper

    @traced
    @traced
    def decorated(): return 1

    @careless
    def hidden(): return 1

    @functools.lru_cache
    def cached(): return 2

    def twice(): return 1
    first = twice
    def twice(): return 2

    def renamed(): return 3
    other = renamed
    del renamed

    mailer = Mailer()
    number = 7
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Give a function that writes modules into a folder on the path; they are forgotten at the end."""
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)

    def write(**modules):
        for name, source in modules.items():
            path = tmp_path / Path(*name.split("__", 1)).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent != tmp_path:
                (path.parent / "__init__.py").touch()
            path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return tmp_path

    yield write
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture
def tasks(package):
    package(shop__tasks=TASKS)
    import shop.tasks

    return shop.tasks


# -- From a function to its path -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("send", "shop.tasks:send"),
        ("fetch", "shop.tasks:fetch"),
        ("Mailer.send", "shop.tasks:Mailer.send"),
        ("Mailer.create", "shop.tasks:Mailer.create"),
        ("Special.create", "shop.tasks:Special.create"),
        ("Mailer.Inner.ping", "shop.tasks:Mailer.Inner.ping"),
        ("decorated", "shop.tasks:decorated"),
        ("cached", "shop.tasks:cached"),
    ],
)
def test_a_function_has_the_path_that_leads_back_to_it(tasks, name, path):
    function = functools.reduce(getattr, name.split("."), tasks)
    assert path_of(function) == path
    assert resolve(path) == function


@pytest.mark.parametrize("function", [math.sqrt, time.sleep, len, os.getpid, dict.fromkeys, os.path.join])
def test_functions_of_the_standard_library_have_a_path(function):
    assert resolve(path_of(function)) == function


def test_a_function_behind_its_own_decorator_has_the_decorators_path(tasks):
    inner = tasks.decorated.__wrapped__.__wrapped__
    assert path_of(inner) == "shop.tasks:decorated"
    assert resolve("shop.tasks:decorated") is tasks.decorated


def test_a_staticmethod_object_counts_as_its_function(tasks):
    assert path_of(vars(tasks.Mailer)["send"]) == "shop.tasks:Mailer.send"


@pytest.mark.parametrize(
    ("expression", "error", "words"),
    [
        ("shortcut", UnknownFunction, "lambda.*write a def"),
        ("local()", UnknownFunction, "local function.*module level"),
        ("hidden", UnknownFunction, "functools.wraps"),
        ("mailer.deliver", UnknownFunction, "bound to a Mailer object.*takes the object's key"),
        ("[].append", UnknownFunction, "bound to a list object"),
        ("first", UnknownFunction, "leads to something else.*defined twice"),
        ("other", UnknownFunction, "has no renamed"),
        ("numbers", InvalidTask, "generator function"),
        ("agen", InvalidTask, "generator function"),
        ("mailer", InvalidTask, "callable object of type Mailer.*module:name"),
        ("Mailer", InvalidTask, "is a class"),
        ("numbers()", InvalidTask, r"has been called already.*add_task\(numbers, "),
        ("agen()", InvalidTask, r"add_task\(agen, "),
        ("send(1)", InvalidTask, "tuple is not a function.*not what a call of it returns"),
        ("None", InvalidTask, "NoneType is not a function"),
        ("functools.partial(send)", InvalidTask, "callable object of type partial"),
    ],
)
def test_what_no_worker_can_find_is_refused_with_what_to_do(tasks, expression, error, words):
    function = eval(expression, vars(tasks))
    with pytest.raises(error, match=words):
        path_of(function)


def test_a_coroutine_is_refused_with_the_right_call(tasks):
    coroutine = tasks.fetch()
    with pytest.raises(InvalidTask, match=r"add_task\(fetch, \.\.\.\)"):
        path_of(coroutine)
    assert asyncio.run(coroutine) == "fetched"


def test_a_refusal_is_an_import_error_when_no_path_leads_to_the_function():
    with pytest.raises(ImportError):
        path_of(lambda: None)


def test_a_function_of_a_module_that_is_gone_is_refused(tasks):
    send = tasks.send
    del sys.modules["shop.tasks"]
    with pytest.raises(UnknownFunction, match="in no module"):
        path_of(send)


def test_a_function_without_a_module_is_refused():
    names = {}
    exec("def send(): pass", {"__builtins__": __builtins__, "__name__": None}, names)
    with pytest.raises(InvalidTask, match="does not say where"):
        path_of(names["send"])


def test_partials_merge_their_arguments_as_a_call_would(tasks):
    def show(*args, **kwargs):
        return args, kwargs

    class Own(functools.partial):
        pass

    partial = functools.partial(Own(functools.partial(show, 1, a=1, b=1), 2, b=2, c=2), 3, c=3)
    function, args, kwargs = unwrap_partial(partial, (4,), {"d": 4, "a": 5})
    assert function is show
    assert (args, dict(kwargs)) == partial(4, d=4, a=5)
    assert unwrap_partial(show, (1,), {"a": 1}) == (show, (1,), {"a": 1})


def test_a_default_name_is_the_path_with_a_dot_and_fits_its_column():
    assert default_name("shop.tasks:Mailer.send") == "shop.tasks.Mailer.send"
    assert default_name("m:" + "f" * 253) == "m." + "f" * 253
    name = default_name("module." * 40 + "m:" + "f" * 100)
    assert len(name) == 255
    assert name.startswith("module.module.")
    assert "…" in name
    assert name.endswith("m." + "f" * 100)


# -- The script of a process ---------------------------------------------------------------------------------

SCRIPT = """
    import sys
    from queuedtask.errors import UnknownFunction
    from queuedtask.model.functions import path_of, resolve

    class Nested:
        @classmethod
        def create(cls): pass

    def send(): pass

    if __name__ == "__main__":
        try:
            print(path_of(send), path_of(Nested.create))
        except UnknownFunction as error:
            print("refused:", error)
"""

ROOT = str(Path(functions.__file__).parents[2])


def run(*arguments, folder, stdin=None, path=ROOT):
    """Run Python as a user would, and return what it printed."""
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        input=stdin,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@pytest.fixture
def project(package):
    return package(script=SCRIPT, shop__jobs=SCRIPT, shop____main__=SCRIPT)


def test_a_script_is_known_by_its_modules_name(project, tmp_path_factory):
    assert run("script.py", folder=project) == "script:send script:Nested.create"
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert run(project / "script.py", folder=elsewhere) == "script:send script:Nested.create"


def test_a_module_run_with_m_is_known_by_its_full_name(project):
    assert run("-m", "shop.jobs", folder=project).startswith("shop.jobs:send ")
    assert run("-m", "shop", folder=project).startswith("shop.__main__:send ")


def test_a_script_within_a_package_is_known_by_the_packages_name_where_that_is_on_the_path(project):
    path = f"{ROOT}{os.pathsep}{project}"
    assert run("shop/jobs.py", folder=project, path=path).startswith("shop.jobs:send ")
    assert run("shop/jobs.py", folder=project).startswith("jobs:send ")


def test_a_script_that_hides_behind_another_module_is_refused(project):
    (project / "time.py").write_text(textwrap.dedent(SCRIPT))
    assert run("time.py", folder=project).startswith("refused: send is defined in __main__")


def test_a_script_whose_name_is_no_modules_name_is_refused(project):
    (project / "my-script.py").write_text(textwrap.dedent(SCRIPT))
    assert "move it into a module" in run("my-script.py", folder=project)


def test_what_came_from_stdin_or_the_command_line_is_refused(project):
    source = textwrap.dedent(SCRIPT)
    assert "move it into a module" in run("-", folder=project, stdin=source)
    assert "move it into a module" in run("-c", source, folder=project)


def test_what_was_typed_after_a_script_is_refused(project):
    typed = "def later(): pass\n\nprint()\ntry: path_of(later)\nexcept UnknownFunction as error: print(error)\n\n"
    out = run("-i", "script.py", folder=project, stdin=typed)
    assert "later is defined in __main__" in out


def test_a_script_in_the_debugger_is_known_by_its_modules_name(project):
    out = run("-m", "pdb", "-c", "continue", "script.py", folder=project, stdin="quit\n")
    assert "script:send script:Nested.create" in out


def test_a_child_of_multiprocessing_finds_the_scripts_name(project):
    source = """
        import multiprocessing
        from queuedtask.model.functions import path_of

        def send(): pass

        def child(): print(path_of(send), send.__module__)

        if __name__ == "__main__":
            process = multiprocessing.get_context("spawn").Process(target=child)
            process.start()
            process.join()
    """
    (project / "spawning.py").write_text(textwrap.dedent(source))
    assert run("spawning.py", folder=project) == "spawning:send __mp_main__"
    assert run("-m", "spawning", folder=project) == "spawning:send __mp_main__"


# -- From a path to its function -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["shop.tasks:send", "a:b", "a.b.c:D.e.f", "modul:funkčnost", "_a:__b__"])
def test_a_well_formed_path_needs_no_module_behind_it(path):
    assert check_path(path) == path


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("shop.tasks.send", 'write "shop.tasks:send"$'),
        ("send", 'write "module:name"'),
        ("", 'write "module:name"'),
        (":send", 'write "module:name"'),
        ("shop:", 'write "module:name"'),
        ("shop:tasks:send", 'write "module:name"'),
        ("shop/tasks.py:send", 'write "module:name"'),
        ("shop.tasks:send()", 'write "module:name"'),
        (" shop:send", 'write "module:name"'),
        (".tasks:send", 'write "module:name"'),
        ("shop:a.<locals>.b", "local function"),
        ("shop:<lambda>", "lambda"),
        ("__main__:send", "real name"),
        ("shop\0:send", 'write "module:name"'),
        (7, "not int"),
        (None, "not NoneType"),
    ],
)
def test_a_malformed_path_is_refused_with_the_right_form(path, words):
    with pytest.raises(InvalidTask, match=words):
        check_path(path)


def test_resolving_gives_what_a_call_of_it_would_run(tasks):
    assert resolve("shop.tasks:send")(1) == ("sent", 1)
    assert resolve("shop.tasks:Mailer.send")() == "mailed"
    assert resolve("shop.tasks:Special.create")() == "Special"
    assert resolve("shop.tasks:mailer")() == "called"
    assert resolve("shop.tasks:decorated")() == ("traced", ("traced", 1))


def test_resolving_says_which_part_of_the_path_failed(tasks, package):
    package(
        shop__needs="import a_library_that_is_missing",
        shop__breaks="raise RuntimeError('no settings')",
        shop__exits="raise SystemExit(3)",
        shop__empty="",
        shop__lazy="def __getattr__(name): raise ImportError(f'no {name} today')",
        shop__syntax="def",
    )
    for path, words in [
        ("nowhere:send", "no module nowhere"),
        ("nowhere.tasks:send", "no module nowhere "),
        ("shop.nowhere:send", "no module shop.nowhere"),
        ("shop.empty.deeper:send", "no module shop.empty.deeper"),
        ("shop.needs:send", "shop.needs raised ModuleNotFoundError: No module named 'a_library_that_is_missing'"),
        ("shop.breaks:send", "shop.breaks raised RuntimeError: no settings when imported"),
        ("shop.exits:send", "shop.exits raised SystemExit: 3"),
        ("shop.syntax:send", "shop.syntax raised SyntaxError"),
        ("shop.tasks:sendd", "shop.tasks has no sendd; did you mean send?"),
        ("shop.tasks:Mailer.sent", "shop.tasks.Mailer has no sent; did you mean send?"),
        ("shop.tasks:zzz", "shop.tasks has no zzz$"),
        ("shop.lazy:send", "shop.lazy.send raised ImportError: no send today"),
        ("shop.tasks:number", "shop.tasks.number cannot be called, it is an? .*int"),
        ("shop.tasks.send", 'write "shop.tasks:send"'),
        ("__main__:send", "real name"),
        ("", "is not the path of a function"),
    ]:
        with pytest.raises(UnknownFunction, match=words):
            resolve(path)


def test_the_error_of_a_broken_module_is_chained(package):
    package(broken="raise RuntimeError('no settings')")
    with pytest.raises(UnknownFunction) as caught:
        resolve("broken:send")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_module_that_another_thread_is_importing_is_waited_for(package, monkeypatch):
    package(slow="import builtins; builtins.importing.set(); builtins.go_on.wait(10)\ndef send(): pass")
    importing, go_on, found = threading.Event(), threading.Event(), []
    monkeypatch.setattr("builtins.importing", importing, raising=False)
    monkeypatch.setattr("builtins.go_on", go_on, raising=False)
    threads = [threading.Thread(target=lambda: found.append(resolve("slow:send"))) for _ in range(2)]
    threads[0].start()
    assert importing.wait(10)
    threads[1].start()
    threads[1].join(0.05)
    assert not found
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(found) == 2
    assert found[0] is found[1]


def test_a_script_that_works_off_its_own_tasks_is_not_run_a_second_time(project):
    source = """
        print("top")
        from queuedtask.model.functions import path_of, resolve
        def send(): pass
        assert resolve(path_of(send)) is send
    """
    (project / "selfish.py").write_text(textwrap.dedent(source))
    assert run("selfish.py", folder=project) == "top"


class Wrapped:
    """Stands for a library's type: it has a function and cannot be called."""

    def __init__(self, function):
        self.function = function


def test_a_type_that_is_registered_stands_for_a_function(package):
    package(wrapped='def send(): return "sent"\ninner = send')
    module = importlib.import_module("wrapped")
    module.send = Wrapped(module.inner)
    with pytest.raises(UnknownFunction, match="cannot be called, it is an object of type Wrapped"):
        resolve("wrapped:send")

    @functions.as_function.register
    def function_of(wrapped: Wrapped):
        @functools.wraps(wrapped.function)
        def called():
            return f"{wrapped.function()} by a wrapper"

        return called

    found = resolve("wrapped:send")
    assert (found(), found.__module__, found.__qualname__) == ("sent by a wrapper", "wrapped", "send")
    assert path_of(module.inner) == "wrapped:send"
    assert Rules(["wrapped.*"]).allow_found("wrapped:send", found)
