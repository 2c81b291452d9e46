"""Functions by their import path, ``module:qualname``: the path of a function, and the function of a path.

A task's row holds the path alone, so a function qualifies when a worker, in another process, finds the very
same one under it. Whoever adds a task by a path in a string need not be able to import it.
"""

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import BuiltinFunctionType, CoroutineType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any, Final

from queuedtask.errors import InvalidTask, UnknownFunction

MAX_NAME: Final = 255
"""Characters in a task's name."""

MAIN: Final = ("__main__", "__mp_main__")
"""What the script of this process is called, here and in children that multiprocessing spawned."""


# -- From a function to its path -----------------------------------------------------------------------------


def path_of(function: object) -> str:
    """Return the path under which a worker finds this function: ``shop.tasks:send``.

    Raises UnknownFunction for a function that no path leads to, InvalidTask for what is not a function. The
    module must have bound the name already: a decorator that asks has to wait until the first task is added.
    """
    if isinstance(function, staticmethod):
        function = function.__func__
    module, name = check_declared(function)
    _check_reached(function, module, name)
    if module in MAIN:
        module = _name_of_script(function, module, name)
    return f"{module}:{name}"


def check_declared(function: object) -> tuple[str, str]:
    """Return the module and the qualified name of a function that its module may not have bound yet.

    For decorators. Raises as :func:`path_of` does, as far as that can be told already.
    """
    module, name = _names(function)
    shown = f"{module}.{name}"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidTask(
            f"{shown} is a generator function, and calling it runs none of its code: pass a function that consumes it"
        )
    if "<lambda>" in name:
        raise UnknownFunction(f"{shown} is a lambda, and no worker can import it: write a def at module level")
    if "<locals>" in name:
        raise UnknownFunction(
            f"{shown} is a local function, and no worker can import it: move it to module level (when it "
            "comes from a decorator, put functools.wraps on the decorator's inner function)"
        )
    return module, name


@functools.singledispatch
def as_function(found: Any) -> Any:
    """Return what is called for what a path leads to: that itself, unless a library's type is registered here.

    A type that wraps functions and cannot be called, such as Django's Task, is given a function that returns a function
    for one: made with functools.wraps, so that it counts as the one inside.
    """
    return found


def check_call(function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    """Raise InvalidTask when a function cannot be called with these arguments, as far as it says what it takes."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = getattr(function, "__qualname__", repr(function))
        raise InvalidTask(
            f"{name}{signature} cannot be called with args={args!r}, kwargs={kwargs!r}: {error}"
        ) from None


def local_name(function: object) -> str | None:
    """Return what to call a function that can go as a pickle, such as ``__main__:main.<locals>.<lambda>``.

    None for one that is bound to an object, and for one that belongs into a module and is not found there.
    """
    if isinstance(function, staticmethod):
        function = function.__func__
    if not isinstance(function, FunctionType):
        return None
    module, name = _names(function)
    is_local = "<lambda>" in name or "<locals>" in name or module in MAIN
    return f"{module}:{name}" if is_local else None


def unwrap_partial(
    function: Any, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> tuple[Any, tuple[object, ...], Mapping[str, object]]:
    """Return a partial's own function, with its arguments merged as a call of the partial would."""
    while isinstance(function, functools.partial):
        args = (*function.args, *args)
        kwargs = {**function.keywords, **kwargs}
        function = function.func
    return function, args, kwargs


def default_name(path: str) -> str:
    """Return the name of a task that was given none: ``shop.tasks.send``, at most 255 characters of it."""
    name = path.replace(":", ".")
    if len(name) <= MAX_NAME:
        return name
    half = (MAX_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _names(function: object) -> tuple[str, str]:
    """Return the module and the qualified name that a function claims to have; refuse what has none."""
    if isinstance(function, (FunctionType, MethodType, BuiltinFunctionType)):
        owner = getattr(function, "__self__", None)
        if isinstance(owner, type):
            # A class method. Its path goes by the class it is bound to, which may have inherited it.
            return owner.__module__, f"{owner.__qualname__}.{function.__name__}"
        if owner is not None and not isinstance(owner, ModuleType):
            raise UnknownFunction(
                f"{function.__qualname__} is bound to a {type(owner).__qualname__} object, which the worker "
                "does not have: write a function (or a staticmethod) that takes the object's key and loads it"
            )
    elif isinstance(function, type):
        raise InvalidTask(f"{function.__qualname__} is a class: pass a function that makes the object and uses it")
    elif isinstance(function, (CoroutineType, GeneratorType)) or inspect.isasyncgen(function):
        called = function.__qualname__.rpartition(".")[2]
        raise InvalidTask(
            f"{called}(...) has been called already: pass the function and its arguments, add_task({called}, ...)"
        )
    elif not callable(function):
        raise InvalidTask(
            f"an object of type {type(function).__qualname__} is not a function: pass the function and its "
            "arguments, add_task(function, ...), not what a call of it returns"
        )
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        raise InvalidTask(
            f"a callable object of type {type(function).__qualname__} does not say where to import it from: "
            'pass a function, or its path as a string, "module:name"'
        )
    return module, name


def _check_reached(function: object, module: str, name: str) -> None:
    """Refuse a function when its own path leads elsewhere; a decorated one may stand in front of it."""
    found: Any = sys.modules.get(module)
    if found is None:
        raise UnknownFunction(
            f"{module}.{name} is in no module that Python has imported, and no worker could import it: "
            "move it into a module"
        )
    try:
        for part in name.split("."):
            found = getattr(found, part)
        found = as_function(found)
    except AttributeError:
        raise UnknownFunction(
            f"{module} has no {name} (any more, or not yet): define the function at module level, under the "
            "name that it was given by def"
        ) from None
    seen: set[int] = set()
    # Every access makes a new bound method; equal ones have the same function and class.
    bound = isinstance(function, (MethodType, BuiltinFunctionType))
    while found is not function and not (bound and found == function):
        seen.add(id(found))
        found = getattr(found, "__wrapped__", None)
        if found is None or id(found) in seen:
            raise UnknownFunction(
                f"{module}.{name} leads to something else than this function, and the worker would run that: "
                "give it a name of its own (this one was defined twice, reloaded, or taken by a decorator "
                "without functools.wraps)"
            )


# -- The script of this process ------------------------------------------------------------------------------


def _name_of_script(function: Any, module: str, name: str) -> str:
    # What was typed at the prompt of python -i or of a notebook is in no file, though __main__ may have one.
    code = getattr(inspect.unwrap(function), "__code__", None)
    typed = code is not None and code.co_filename.startswith("<")
    real = None if typed else _real_name(sys.modules[module])
    if real is None:
        raise UnknownFunction(
            f"{name} is defined in {module}, which no worker can import by another name: move it into a "
            "module, and import it from there"
        )
    return real


def _real_name(main: ModuleType) -> str | None:
    """Return the name under which the script of this process can be imported, None when it cannot."""
    file = getattr(main, "__file__", None)
    spec = getattr(main, "__spec__", None)
    # Debuggers and profilers run a script in a __main__ whose spec is their own, or names nothing.
    if spec is not None and spec.name not in MAIN and (file is None or spec.origin in (None, file)):
        return str(spec.name)
    return None if file is None else _module_of_file(file, tuple(sys.path))


@functools.lru_cache(maxsize=16)
def _module_of_file(name: str, search: tuple[str, ...]) -> str | None:
    file = Path(name).resolve()
    if file.suffix != ".py" or not file.stem.isidentifier():
        return None
    roots = {Path(entry).resolve() for entry in search}
    # A script within a package: the name with the package in front holds where the bare one may not, since
    # only Python, for this one process, puts the script's own folder on the path.
    names = []
    dotted, folder = file.stem, file.parent
    while folder.name.isidentifier() and (folder / "__init__.py").is_file():
        dotted, folder = f"{folder.name}.{dotted}", folder.parent
        if folder in roots:
            names.append(dotted)
    if file.parent in roots:
        names.append(file.stem)
    return next((each for each in names if _is_module(each, file)), None)


def _is_module(name: str, file: Path) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except Exception:  # it imports the packages above, which may raise anything
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == file


# -- From a path to its function -----------------------------------------------------------------------------


def check_path(path: str) -> str:
    """Return the path when it has the right form; raise InvalidTask, with the right form, when not."""
    if not isinstance(path, str):
        raise InvalidTask(f'a path is a string like "shop.tasks:send", not {type(path).__qualname__}')
    module, colon, name = path.partition(":")
    if colon and _is_dotted(module) and _is_dotted(name):
        if module in MAIN:
            raise InvalidTask(f"{path!r}: every process has its own {module}, write the module's real name")
        return path
    hint = 'write "module:name", like "shop.tasks:send"'
    if "<" in name:
        hint = "no worker can import a lambda or a local function; write a def at module level"
    elif not colon and "." in path and _is_dotted(path):
        hint = 'write "{}:{}"'.format(*path.rsplit(".", 1))
    raise InvalidTask(f"{path!r} is not the path of a function: {hint}")


def resolve(path: str) -> Callable[..., Any]:
    """Import the function of a path.

    Raises UnknownFunction saying which part of the path failed, from the module's own error when it has one.
    """
    try:
        module_name, name = check_path(path).split(":")
    except InvalidTask as error:
        raise UnknownFunction(str(error)) from None
    found: Any = _import(module_name, path)
    at = module_name
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise UnknownFunction(f"{path}: {at} has no {part}{_near(part, found)}") from None
        except Exception as error:
            raise UnknownFunction(f"{path}: {at}.{part} raised {summary(error)}") from error
        at = f"{at}.{part}"
    found = as_function(found)
    if not callable(found):
        raise UnknownFunction(f"{path}: {at} cannot be called, it is an object of type {type(found).__qualname__}")
    return found  # type: ignore[no-any-return]


def _import(name: str, path: str) -> ModuleType:
    if name not in sys.modules:
        main = sys.modules.get("__main__")
        if main is not None and _real_name(main) == name:
            # A script that works off its own tasks: a second import would run it again from the top.
            return main
    try:
        # Always through importlib, which waits for another thread that is just importing the module.
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            raise UnknownFunction(
                f"{path}: there is no module {missing} on this worker's path; is it installed, and was the "
                "worker started in the right directory?"
            ) from error
        raise UnknownFunction(f"{path}: the module {name} raised {summary(error)} when imported") from error
    except (Exception, SystemExit) as error:
        raise UnknownFunction(f"{path}: the module {name} raised {summary(error)} when imported") from error


def _is_dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _near(name: str, owner: object) -> str:
    try:
        near = get_close_matches(name, [each for each in dir(owner) if not each.startswith("__")], 1)
    except Exception:  # dir() may run code of the owner
        return ""
    return f"; did you mean {near[0]}?" if near else ""


def summary(error: BaseException) -> str:
    """Return an error in one line."""
    try:
        text = str(error)
    except Exception:  # str() runs code of the error
        text = ""
    return f"{type(error).__qualname__}: {text}" if text else type(error).__qualname__
