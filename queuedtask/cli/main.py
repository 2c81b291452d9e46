"""The command line's entry: parse, import what the command needs, run it, and turn errors into exit codes."""

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from queuedtask.cli.parser import UsageError, build_parser
from queuedtask.errors import QueuedTaskError

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
PIPE_CLOSED = 141  # 128 + SIGPIPE
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None, *, app: str | None = None) -> int:
    """Run one command and return its exit code. What nobody expected is raised, with its traceback.

    ``app`` is the application where the command line names none; a framework's command knows it.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed, which is no reason to fail
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (it stays open)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A task's text must not break a command because the terminal knows fewer characters.
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = build_parser().parse_args(argv)
        arguments.argv = list(sys.argv[1:] if argv is None else argv)
        if app is not None and getattr(arguments, "app", app) is None:
            arguments.app = app
        module, name = arguments.run.split(":")
        code = getattr(import_module(f"queuedtask.cli.{module}"), name)(arguments)
        sys.stdout.flush()
        return int(code or OK)
    except SystemExit as ended:  # argparse, after it has said why
        return ended.code if isinstance(ended.code, int) else FAILED
    except UsageError as error:
        return _refuse(error, USAGE)
    except QueuedTaskError as error:
        return _refuse(error, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has had enough.
        _write_no_more()
        return PIPE_CLOSED
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _write_no_more()
        return _refuse(f"the output cannot be written: {error.strerror}", FAILED)


def _write_no_more() -> None:
    # Python would flush it once more at exit, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(error: Exception | str, code: int) -> int:
    print(f"queuedtask: error: {error}", file=sys.stderr)
    return code
