"""WSGI middleware that ties tasks to the request during which they are added. For any framework; needs no extra.

What is set during a request is the thread's for as long as the request's own code runs in it: while the application is
called, while its body is iterated, while that is closed. In between, and afterwards, the thread has what it had before,
so nothing can be left behind by a body that is never closed.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from queuedtask.run.attempt import REQUEST_ID, captured_context, current_attempt, swap_context
from queuedtask.run.context import Context

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HEADER: Final = "X-Request-ID"
ENVIRON_KEY: Final = "queuedtask.request_id"
_KEY: Final = "HTTP_X_REQUEST_ID"
_ACCEPTABLE: Final = re.compile(r"[!-~]{1,128}")


class TaskContextMiddleware:
    """Give every task that is added during a request the request's id, and what ``extract`` picks, as context.

    The id comes from the header ``X-Request-ID``, if it has 1 to 128 printable ASCII characters without blanks, and is
    a new one otherwise. The response has it in the same header, ``environ`` as ``queuedtask.request_id``, each task in
    its context as ``request_id``, and so do the tasks that it adds in turn; the log records of their runs begin with
    it. ``extract(environ)`` returns a mapping of further names, or dotted paths, to values that JSON can hold; what it
    raises, the server gets.

    A request that is made inside a task, by a test client for example, leaves the task's context alone: what it adds
    belongs to the task.
    """

    def __init__(
        self, app: "WSGIApplication", extract: "Callable[[WSGIEnvironment], Mapping[str, object]] | None" = None
    ) -> None:
        self._app = app
        self._extract = extract

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Serve a request."""
        request_id = environ[ENVIRON_KEY] = _request_id(environ)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            if not any(name.lower() == HEADER.lower() for name, _ in headers):
                headers = [*headers, (HEADER, request_id)]
            return start_response(status, headers) if exc_info is None else start_response(status, headers, exc_info)

        if current_attempt() is not None:
            return self._app(environ, start)
        # Beside what another middleware around this one has set.
        context = Context(captured_context())
        for path, value in {**(self._extract(environ) if self._extract else {}), REQUEST_ID: request_id}.items():
            context.set(path, value)
        request = _Request(context)
        with request.entered():
            body = self._app(environ, start)
        # Nothing of the application's runs while the server takes these: a list is there, a file is sent.
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(body, list | tuple) or (isinstance(wrapper, type) and isinstance(body, wrapper)):
            return body
        return _Body(body, request)


def _request_id(environ: "WSGIEnvironment") -> str:
    if (of_another_middleware := environ.get(ENVIRON_KEY)) is not None:
        return str(of_another_middleware)
    given = environ.get(_KEY, "")
    return given if _ACCEPTABLE.fullmatch(given) else str(uuid4())


class _Request:
    """A request's context, which a thread gets for a while."""

    def __init__(self, context: Context) -> None:
        self.context: Context | None = context

    @contextmanager
    def entered(self) -> Iterator[None]:
        before = swap_context(self.context)
        try:
            yield
        finally:
            # None, or another one, where clear_context() was called.
            self.context = swap_context(before)


class _Body:
    """A response's body; its code runs in the request's context."""

    def __init__(self, body: Iterable[bytes], request: _Request) -> None:
        self._body = body
        self._request = request
        self._iterator: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._request.entered():
            if self._iterator is None:
                self._iterator = iter(self._body)
            return next(self._iterator)

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            with self._request.entered():
                close()
