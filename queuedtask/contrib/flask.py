"""Flask: a queue that takes its settings from the application, and tasks that run inside the application's context.

Needs the extra ``flask``. ``queue`` in here is the queue of the application that ``FLASK_APP`` names, for workers:
``queuedtask worker -a queuedtask.contrib.flask:queue``, which is what ``flask queuedtask worker`` runs.
"""

import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Final, Protocol, cast
from weakref import WeakKeyDictionary, WeakSet

import click
from flask import Flask, current_app, g, has_app_context
from flask.cli import NoAppException, ScriptInfo, with_appcontext

from queuedtask.adding import Batch, Detour
from queuedtask.cli.main import main
from queuedtask.config import Config
from queuedtask.errors import ConfigError, QueuedTaskError
from queuedtask.model.schedule import Declarations
from queuedtask.model.task import TaskSpec
from queuedtask.refs import TaskRef
from queuedtask.run.hooks import H, Hooks, TaskView
from queuedtask.taskqueue import Queue

logger = logging.getLogger("queuedtask.flask")

NAME: Final = "queuedtask"
"""Under which ``app.extensions`` has an application's queue, and ``flask`` our commands."""
APPLICATION: Final = "queuedtask.contrib.flask:queue"
PROCESSES: Final = frozenset({"worker", "start", "serve"})
"""Commands that go on as a clean process: this one has loaded the application."""
_ADDED: Final = "_queuedtask_added"


class NoApplication(QueuedTaskError, RuntimeError):
    """Say that there is no Flask application here, or more than one that could be meant."""


class _NothingHere(NoApplication, AttributeError):
    """The same for an attribute, so that whoever only asks whether there is one is not stopped by it."""


class HasSession(Protocol):
    """What is needed of Flask-SQLAlchemy's ``SQLAlchemy``."""

    @property
    def session(self) -> Any: ...


class QueuedTask(Queue):
    """The extension: ``queue = QueuedTask(app)``, or ``queue = QueuedTask()`` and later ``queue.init_app(app)``.

    It is a :class:`queuedtask.Queue`: that of the current application, so that one object serves several. Outside any
    application's context it is that of the application which this process works for, or of the only one there is.
    ``@queue.task``, ``@queue.cron`` and the hooks need no application yet, and count for all of them.

    ``db`` is Flask-SQLAlchemy's ``SQLAlchemy``. With it, tasks that are added in an application's context are added in
    the transaction of ``db.session``: they are there when that is committed, and never otherwise.
    """

    hooks: "_SharedHooks"
    # What an instance has by itself; all else that a Queue has is looked up in the application's one.
    _moved: tuple[ExitStack, str] | None = None
    home: "FlaskQueue | None" = None
    """The queue of the application that this process works for, if it is a worker's."""

    def __init__(self, app: Flask | None = None, *, db: HasSession | None = None) -> None:
        self._db = db
        self._queues: WeakSet[FlaskQueue] = WeakSet()
        self._detour: Detour | None = None
        self._defaults = Config()
        self._known = WeakKeyDictionary()
        self.declarations = Declarations()
        self.hooks = _SharedHooks()
        self.hooks.add_own("around_run", self._in_context)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, *, db: HasSession | None = None) -> None:
        """Give an application its queue, with the settings that ``app.config`` has now.

        They are those of the environment, which goes first: ``app.config["QUEUE_MAX_WORKERS"] = 4``. The database is
        that of ``QUEUE_DATABASE_URL``, else of ``SQLALCHEMY_DATABASE_URI``. Call it after ``db.init_app(app)``.

        Raises RuntimeError for an application that has a queue already, ConfigError for a setting that cannot be.
        """
        if NAME in app.extensions:
            raise RuntimeError(f"the application {app.name!r} has a QueuedTask already")
        queue = FlaskQueue(self, app, self._db if db is None else db, _config_of(app, self._defaults))
        app.extensions[NAME] = queue
        app.cli.add_command(command)
        self._queues.add(queue)
        if self._moved is not None:
            moved, url = self._moved
            moved.enter_context(queue._moved_to(url))

    @property
    def queue(self) -> "FlaskQueue":
        """The current application's queue. Raises NoApplication."""
        if has_app_context():
            found = _this_app().extensions.get(NAME)
            if isinstance(found, FlaskQueue) and found.extension is self:
                return found
            raise NoApplication(f"the current application {_this_app().name!r} has not been given to init_app()")
        if self.home is not None:
            return self.home
        known = list(self._queues)
        if len(known) > 1:
            raise NoApplication(
                "this QueuedTask has several applications: say which by `with app.app_context():`, "
                f"or use app.extensions[{NAME!r}]"
            )
        if not known:
            raise NoApplication(
                "no application has been given to init_app() in this process; a worker gets it by "
                f"`flask queuedtask worker`, or with FLASK_APP and -a {APPLICATION}"
            )
        return known[0]

    def __getattr__(self, name: str) -> Any:
        """Return what belongs to the application: its configuration, its connections."""
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return getattr(self.queue, name)
        except NoApplication as error:
            if name == "config":
                return self._defaults  # for what is declared; and what is set there, applications get
            raise _NothingHere(str(error)) from None

    def __repr__(self) -> str:
        return f"<QueuedTask for {len(self._queues)} applications>"

    def _default_connection(self) -> object:
        return self.queue._default_connection()

    def _add(self, spec: TaskSpec, connection: object) -> TaskRef:
        return self.queue._add(spec, connection)

    def _itself(self) -> Queue:
        return self.queue

    @contextmanager
    def _moved_to(self, database_url: str) -> Iterator[None]:
        """Have all applications work on another database, those that are given in the block as well, and forget these.

        So a test that makes an application has one, whatever other tests have made.
        """
        before = self._moved, list(self._queues)
        try:
            with ExitStack() as moved:
                for queue in before[1]:
                    moved.enter_context(queue._moved_to(database_url))
                self._moved = moved, database_url
                yield
        finally:
            self._moved, self._queues = before[0], WeakSet(before[1])

    def _in_context(self, task: TaskView) -> Iterator[None]:
        # For a worker that was given this object itself.
        with self.queue.app.app_context():
            yield


def _hand_on(name: str) -> None:
    """Let the application's queue do it, so that refs are its own in whatever context they are read."""

    @wraps(getattr(Queue, name))
    def method(self: QueuedTask, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.queue, name)(*args, **kwargs)

    setattr(QueuedTask, name, method)


for _name in ("batch", "start_worker", "run_schedule", "get", "find", "retry_failed", "cancel", "stop"):
    _hand_on(_name)


class FlaskQueue(Queue):
    """One application's queue: ``app.extensions["queuedtask"]``."""

    def __init__(self, extension: QueuedTask, app: Flask, db: HasSession | None, config: Config) -> None:
        super().__init__(config.database_url, config=config)
        # The environment is in there, as far as it is to count.
        self.config = self.database.config = config
        self.extension = extension
        self.app = app
        self._db = db
        self.declarations = extension.declarations
        self.around_run(self._in_context)
        extension.hooks.follow(self.hooks)
        if db is not None:
            app.teardown_appcontext(_warn_of_uncommitted)

    @contextmanager
    def batch(self, *, connection: object = None) -> Iterator[Batch]:
        """Return a context manager for adding many tasks quickly; see :meth:`queuedtask.Queue.batch`."""
        connection = self._default_connection() if connection is None else connection
        with super().batch(connection=connection) as batch:
            yield batch
        self._note_added(connection)

    def _default_connection(self) -> object:
        is_here = self._db is not None and has_app_context() and _this_app() is self.app
        return self._db.session if is_here and self._db is not None else None

    @property
    def _detour(self) -> Detour | None:
        return self._own_detour or self.extension._detour

    @_detour.setter
    def _detour(self, detour: Detour | None) -> None:
        self._own_detour = detour

    def _add(self, spec: TaskSpec, connection: object) -> TaskRef:
        task = super()._add(spec, connection)
        self._note_added(connection)
        return task

    def _note_added(self, connection: object) -> None:
        """Remember in which transaction of the session something was added."""
        if connection is not None and self._db is not None and self._detour is None:
            is_the_session = connection is self._db.session
            if is_the_session:
                session = self._db.session()
                g.setdefault(_ADDED, {})[session] = session.get_transaction()

    def _in_context(self, task: TaskView) -> Iterator[None]:
        """Run each attempt in a context of its own, as a request would."""
        with self.app.app_context():
            yield


class _SharedHooks(Hooks):
    """The extension's hooks, which each application's queue has as well, whenever they are registered."""

    def __init__(self) -> None:
        super().__init__()
        self._shared: list[tuple[str, Any]] = []
        self._followers: WeakSet[Hooks] = WeakSet()

    def add(self, kind: str, hook: H) -> H:
        """Register a hook, for all."""
        self.add_own(kind, hook)
        self._shared.append((kind, hook))
        for follower in self._followers:
            follower.add(kind, hook)
        return hook

    def add_own(self, kind: str, hook: H) -> None:
        """Register a hook for the extension alone."""
        super().add(kind, hook)

    def follow(self, hooks: Hooks) -> None:
        """Let an application's hooks have the shared ones."""
        for kind, hook in self._shared:
            hooks.add(kind, hook)
        self._followers.add(hooks)


def _warn_of_uncommitted(error: BaseException | None) -> None:
    """At the end of a context: say so when tasks are about to vanish with a session that nobody has committed."""
    for session, transaction in g.pop(_ADDED, {}).items():
        if error is None and transaction is not None and session.get_transaction() is transaction:
            logger.warning(
                "tasks were added in db.session, and it was neither committed nor rolled back: they vanish with it"
            )


def _this_app() -> Flask:
    return cast(Flask, cast(Any, current_app)._get_current_object())


# ------------------------------------------------------------------------------------------------------------- settings


def _config_of(app: Flask, defaults: Config) -> Config:
    values: dict[str, Any] = {}
    for setting in Config.settings():
        given = [app.config[name] for name in setting.environment if app.config.get(name) not in (None, "")]
        if given:
            values[setting.name] = given[0]
    if "database_url" not in values and (url := _url_of(app.config.get("SQLALCHEMY_DATABASE_URI"))):
        values["database_url"] = url
    for name, meant in Config.unknown_variables(dict.fromkeys(app.config, "")):
        logger.warning("app.config[%r] is no setting%s", name, f"; did you mean {meant}?" if meant else "")
    parsed = Config()
    try:
        parsed.set_flags(**values)
        settings = _given(defaults) | {name: getattr(parsed, name) for name in values}
        # DATABASE_URL may be meant for anything: what the application says of its own goes first.
        ignoring = ("DATABASE_URL",) if "database_url" in values else ()
        return Config.resolve(Config(**settings), ignoring=ignoring)
    except ConfigError as error:
        raise ConfigError(f"the settings of the application {app.name!r}: {error}") from None


def _given(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name, source in config.sources.items() if source != "default"}


def _url_of(uri: object) -> str | None:
    """Return the URL of Flask-SQLAlchemy's default database, for our own driver; None unless it is a PostgreSQL."""
    if isinstance(uri, Mapping):
        uri = uri.get("url")
    text = uri if isinstance(uri, str) else getattr(uri, "render_as_string", lambda **_: "")(hide_password=False)
    scheme, _, rest = text.partition("://")
    return f"postgresql://{rest}" if scheme.partition("+")[0] in ("postgresql", "postgres") else None


# ------------------------------------------------------------------------------------------------------ command line


@click.command(
    NAME,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Run tasks and control them; see `flask queuedtask --help`.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@with_appcontext
@click.pass_context
def command(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Pass everything on to ``queuedtask``, with the application's queue."""
    if arguments and arguments[0] in PROCESSES:
        _go_on_as(arguments, context.ensure_object(ScriptInfo))
    context.exit(main(arguments, app=APPLICATION))


def _go_on_as(arguments: Sequence[str], info: ScriptInfo) -> None:
    """Replace this process by a clean one, whose children find the application as ``flask`` has found it."""
    environment = {**os.environ}
    if info.app_import_path:
        environment["FLASK_APP"] = info.app_import_path
    elif info.create_app is not None and "FLASK_APP" not in environment:
        module, name = info.create_app.__module__, getattr(info.create_app, "__qualname__", "<>")
        if module == "__main__" or "<" in name:
            raise click.UsageError("a worker cannot import this application: name it, or its factory, with FLASK_APP")
        environment["FLASK_APP"] = f"{module}:{name}"
    sys.stdout.flush()
    sys.stderr.flush()
    name, *rest = arguments
    os.execve(sys.executable, [sys.executable, "-m", "queuedtask", name, "--app", APPLICATION, *rest], environment)


def __getattr__(name: str) -> object:
    if name == "queue":
        return _queue_of_the_application()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _queue_of_the_application() -> FlaskQueue:
    if has_app_context():
        return _queue_of(_this_app())
    path = os.environ.get("FLASK_APP") or None
    try:
        app = ScriptInfo(path).load_app()
    except NoAppException as error:
        raise NoApplication(error.message) from None
    except Exception:
        from queuedtask.cli.apps import ApplicationError

        traceback.print_exc()
        raise ApplicationError(f"the Flask application {path or ''} cannot be loaded") from None
    queue = _queue_of(app)
    queue.extension.home = queue
    return queue


def _queue_of(app: Flask) -> FlaskQueue:
    found = app.extensions.get(NAME)
    if not isinstance(found, FlaskQueue):
        raise NoApplication(f"the application {app.name!r} has no queue: give it to QueuedTask(app) or init_app(app)")
    return found
