"""Local functions as signed pickles: lambdas, closures, nested functions, and what a script or a prompt defines.

No import reaches these, so their code itself travels, as a pickle of cloudpickle's. Loading a pickle runs whatever it
says; so each is signed by who adds the task and verified by who runs it, before anything of it is loaded. The bytes in
``pickled_function`` are

====================  ==============================================================================================
1 byte                the version of this format
32 bytes              HMAC-SHA-256 over all that follows, the version, the task's id and its ``function``
2 bytes               the Python that made the pickle, whose byte code no other version runs: major, minor
the rest              the pickle
====================  ==============================================================================================

A copy of a good pickle in another row is therefore refused, as is one under another name. This is the one module that
loads pickles.
"""

import base64
import hashlib
import hmac
import importlib.util
import io
import pickle
import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import FunctionType
from typing import Any, Final
from uuid import UUID

from queuedtask.config import Config
from queuedtask.errors import InvalidSignature, InvalidTask, UnknownFunction
from queuedtask.model import codec, functions

FORMAT: Final = b"\x01"
LEFT_OUT: Final = "__queuedtask_left_out__"
"""An attribute of functions that must not travel, such as ``delay``, which holds a Queue."""

_DOMAIN: Final = b"queuedtask: pickled function\0"
_DIGEST: Final = hashlib.sha256().digest_size
_PYTHON: Final = bytes(sys.version_info[:2])
_INSTALL: Final = "pip install 'queuedtask[pickle]'"


# -- Signatures ----------------------------------------------------------------------------------------------


def sign(content: bytes, keys: Sequence[str], *, task_id: str, function: str) -> bytes:
    """Return the content with its signature in front, made with the first key."""
    return FORMAT + _signature(keys[0], content, task_id, function) + content


def verify(signed: bytes, keys: Sequence[str], *, task_id: str, function: str) -> bytes:
    """Return the content when any of the keys has signed it for this task. Raises InvalidSignature."""
    if not keys:
        raise InvalidSignature(
            f"{function} came as a pickle, and this worker has no QUEUE_SECRET_KEY to verify it with: it was not loaded"
        )
    version, signature, content = signed[:1], signed[1 : 1 + _DIGEST], signed[1 + _DIGEST :]
    if version != FORMAT:
        raise InvalidSignature(f"the pickle of {function} has a format that this release does not know: not loaded")
    if not any(hmac.compare_digest(signature, _signature(key, content, task_id, function)) for key in keys):
        raise InvalidSignature(
            f"the pickle of {function} was not signed for this task with a key of this worker's: it was not loaded "
            "(QUEUE_SECRET_KEY must be the same where tasks are added and where they run)"
        )
    return content


def _signature(key: str, content: bytes, task_id: str, function: str) -> bytes:
    name = function.encode()
    message = (_DOMAIN, FORMAT, UUID(task_id).bytes, len(name).to_bytes(8, "big"), name, content)
    return hmac.digest(key.encode(), b"".join(message), "sha256")


# -- From a function to its pickle ---------------------------------------------------------------------------


def admit(function: object, error: UnknownFunction, keys: Sequence[str]) -> str:
    """Return what stands in ``function`` for a function that no path leads to, if it can go as a pickle.

    Raises InvalidTask, with the path's own error and what would enable it, if it cannot.
    """
    name = functions.local_name(function)
    if name is None:
        raise error
    if not keys:
        raise UnknownFunction(
            f"{error}; or set QUEUE_SECRET_KEY, here and in the workers, to send it as a signed pickle ({_INSTALL})"
        ) from None
    if importlib.util.find_spec("cloudpickle") is None:
        raise InvalidTask(f"{error}; to send it as a signed pickle, {_INSTALL}, here and in the workers") from None
    return codec.clean_text(name)


def pack(
    function: object,
    keys: Sequence[str],
    *,
    task_id: str,
    name: str,
    arguments: tuple[str, str] = ("[]", "{}"),
    max_payload: int,
) -> str:
    """Return the signed pickle of a function, in base64. Raises InvalidTask with the reason if there can be none.

    The task's arguments count as well towards the payload that is allowed.
    """
    buffer = io.BytesIO()
    try:
        # What a spawned child of multiprocessing calls its main module is importable in that child alone.
        if (main := sys.modules.get("__mp_main__")) is not None:
            _cloudpickle().register_pickle_by_value(main)
        _pickler()(buffer).dump(function)
    except Exception as error:  # objects that it refers to run code of their own
        raise InvalidTask(
            f"{name} cannot be pickled, with all that it refers to: {functions.summary(error)}; pass what it needs as "
            "an argument, or make it inside the function"
        ) from error
    pickled = buffer.getvalue()
    size = len(pickled) + sum(len(text.encode()) for text in arguments)
    if size > max_payload:
        raise InvalidTask(
            f"{name} takes {len(pickled):,} bytes as a pickle, {size:,} with its arguments, and QUEUE_MAX_PAYLOAD "
            f"allows {max_payload:,}: store what is large and load it in the function, or raise the setting"
        )
    return base64.b64encode(sign(_PYTHON + pickled, keys, task_id=task_id, function=name)).decode()


@cache
def _pickler() -> Any:
    class Pickler(_cloudpickle().Pickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, Config):
                raise pickle.PicklingError("a Config may hold secrets, and is not sent along")
            if type(value) is FunctionType and LEFT_OUT in vars(value):
                return _left_out, (value.__name__,)
            return super().reducer_override(value)

    return Pickler


def _left_out(name: str) -> Callable[..., object]:
    """Return what stands in a worker for a function that was not sent along."""

    def left_out(*args: object, **kwargs: object) -> object:
        raise InvalidTask(f"{name}: this function came as a pickle, without its queue: call add_task on a queue")

    return left_out


# -- From a pickle to its function ---------------------------------------------------------------------------


def unpack(text: str, keys: Sequence[str], *, task_id: str, name: str) -> Callable[..., Any]:
    """Return the function of a pickle in base64, once its signature has been verified.

    Raises InvalidSignature, before anything is loaded, and UnknownFunction for a pickle that is ours but cannot be
    loaded here.
    """
    content = verify(base64.b64decode(text), keys, task_id=task_id, function=name)
    if content[:2] != _PYTHON:
        made, here = (".".join(map(str, version)) for version in (content[:2], _PYTHON))
        raise UnknownFunction(f"{name} was pickled by Python {made}, and this worker's is {here}: use the same version")
    try:
        function = pickle.loads(content[2:])
    except ModuleNotFoundError as error:
        hint = f": {_INSTALL}" if str(error.name).split(".")[0] == "cloudpickle" else ""
        raise UnknownFunction(
            f"{name} needs the module {error.name}, which is not on this worker's path{hint}"
        ) from error
    except (Exception, SystemExit) as error:
        raise UnknownFunction(f"{name} could not be loaded from its pickle: {functions.summary(error)}") from error
    if not callable(function):
        raise UnknownFunction(f"the pickle of {name} holds no function")
    return function  # type: ignore[no-any-return]


def _cloudpickle() -> Any:
    import cloudpickle  # type: ignore[import-untyped]

    return cloudpickle
