"""``manage.py queuedtask …``: our command line, with the project's queue."""

import argparse
import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from django.conf import ENVIRONMENT_VARIABLE, settings
from django.core.management.base import BaseCommand, CommandError, CommandParser, handle_default_options
from django.db import connections

from queuedtask.cli.main import main
from queuedtask.contrib.django.conf import APPLICATION

_WITH_WORKERS: Final = ("worker", "serve")


class Command(BaseCommand):
    """Hand the arguments to ``queuedtask``, whose help, output and exit codes are left as they are."""

    help = "Run queuedtask's commands for this project: worker, status, tasks, retry, …"
    requires_system_checks = []

    def run_from_argv(self, argv: list[str]) -> NoReturn:
        """Run a command of ours. One that has workers goes on as a process that has not loaded the project."""
        parser = CommandParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--settings")
        parser.add_argument("--pythonpath")
        of_django, arguments = parser.parse_known_args(argv[2:])
        handle_default_options(of_django)
        if arguments[:1] and arguments[0] in _WITH_WORKERS:
            _become(arguments)
        try:
            sys.exit(main(arguments, app=APPLICATION))
        finally:
            connections.close_all()

    def print_help(self, prog_name: str, subcommand: str) -> None:
        """Print our help, for ``manage.py help queuedtask``."""
        main(["--help"])

    def add_arguments(self, parser: CommandParser) -> None:
        """Take everything, for ``call_command``."""
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run a command of ours for ``call_command``, which goes on afterwards. Raises CommandError."""
        arguments = options["arguments"]
        if arguments[:1] and arguments[0] in _WITH_WORKERS:
            raise CommandError(f"{arguments[0]} needs a process of its own: start it by manage.py")
        if code := main(arguments, app=APPLICATION):
            raise CommandError(f"queuedtask {' '.join(arguments)}: exit code {code}", returncode=code)


def _become(arguments: Sequence[str]) -> NoReturn:
    """Replace this process by a clean one: the supervisor starts, watches and ends processes, and runs no user code."""
    module = settings.SETTINGS_MODULE
    if module is None:
        raise CommandError(f"a worker finds the settings by {ENVIRONMENT_VARIABLE}, and these have no module")
    environment = {**os.environ, ENVIRONMENT_VARIABLE: module}
    if paths := _paths_of_the_project():
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    command, *rest = arguments
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", "queuedtask", command, "--app", APPLICATION, *rest], environment)


def _paths_of_the_project() -> list[str]:
    """Return where this process finds modules, apart from what any Python finds: manage.py's directory, for one."""
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return [
        str(Path(path or ".").absolute())
        for path in sys.path
        if not any(Path(path) == place or place in Path(path).parents for place in installed)
        and not path.endswith(".zip")
    ]
