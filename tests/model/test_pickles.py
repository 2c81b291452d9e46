"""Local functions as signed pickles: what is refused before it is loaded, and what cannot be sent."""

import base64
import functools
import operator
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from queuedtask import Config
from queuedtask.errors import InvalidSignature, InvalidTask, UnknownFunction
from queuedtask.model import pickles
from queuedtask.model.functions import local_name
from queuedtask.model.pickles import admit, pack, sign, unpack, verify
from queuedtask.model.task import new_id

ID = new_id()
NAME = "shop:main.<locals>.<lambda>"
KEYS = ("first", "second")
signed = functools.partial(sign, task_id=ID, function=NAME)
verified = functools.partial(verify, task_id=ID, function=NAME)
packed = functools.partial(pack, task_id=ID, name=NAME, max_payload=100_000)
unpacked = functools.partial(unpack, task_id=ID, name=NAME)


# -- Signatures ----------------------------------------------------------------------------------------------


@given(st.binary())
def test_what_was_signed_is_verified_and_comes_back(content: bytes) -> None:
    assert verified(signed(content, KEYS), KEYS) == content


@given(st.binary(max_size=50), st.data())
def test_a_changed_bit_anywhere_is_refused(content: bytes, data: st.DataObject) -> None:
    forged = bytearray(signed(content, KEYS))
    bit = data.draw(st.integers(0, len(forged) * 8 - 1))
    forged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidSignature):
        verified(bytes(forged), KEYS)


@given(st.binary(max_size=50), st.data())
def test_what_was_cut_off_anywhere_is_refused(content: bytes, data: st.DataObject) -> None:
    whole = signed(content, KEYS)
    with pytest.raises(InvalidSignature):
        verified(whole[: data.draw(st.integers(0, len(whole) - 1))], KEYS)


@given(st.binary(max_size=100))
@example(b"\x01")
@example(b"\x01" + bytes(32))
def test_what_nobody_signed_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidSignature):
        verified(content, KEYS)


@pytest.mark.parametrize(
    "other", [{"task_id": new_id()}, {"function": "shop:main.<locals>.f"}, {"function": NAME + "\0"}]
)
def test_a_signature_holds_for_one_task_and_one_name(other: dict[str, str]) -> None:
    with pytest.raises(InvalidSignature, match="was not signed for this task"):
        verified(signed(b"code", KEYS), KEYS, **other)


def test_a_name_cannot_borrow_from_the_content() -> None:
    one = sign(b"lambda-and-code", KEYS, task_id=ID, function="shop:")
    with pytest.raises(InvalidSignature):
        verify(one[:33] + b"-and-code", KEYS, task_id=ID, function="shop:lambda")


def test_an_id_is_the_same_in_every_spelling() -> None:
    assert verify(sign(b"code", KEYS, task_id=ID.upper(), function=NAME), KEYS, task_id=ID, function=NAME) == b"code"


@pytest.mark.parametrize(
    ("signing", "verifying", "is_good"),
    [
        (("old",), ("old",), True),
        (("old",), ("new", "old"), True),
        (("new", "old"), ("old",), False),
        (("new", "old"), ("new",), True),
        (("new", "old"), ("old", "new"), True),
        (("old",), ("new",), False),
        (("clé",), ("clé",), True),
    ],
)
def test_the_first_key_signs_and_any_verifies(signing: Any, verifying: Any, is_good: bool) -> None:
    one = signed(b"code", signing)
    if is_good:
        assert verified(one, verifying) == b"code"
    else:
        with pytest.raises(InvalidSignature, match="with a key of this worker's"):
            verified(one, verifying)


def test_without_a_key_nothing_is_verified() -> None:
    with pytest.raises(InvalidSignature, match="no QUEUE_SECRET_KEY"):
        verified(signed(b"code", KEYS), ())


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(InvalidSignature, match="format that this release does not know"):
        verified(b"\x02" + signed(b"code", KEYS)[1:], KEYS)


# -- Pickles -------------------------------------------------------------------------------------------------


def test_a_closure_comes_back_with_what_it_closes_over() -> None:
    total, factor = [1, 2], 3
    assert unpacked(packed(lambda n: sum(total) * factor + n, KEYS), KEYS)(1) == 10


def test_nothing_is_loaded_before_the_signature_is_verified(tmp_path: Path) -> None:
    proof = tmp_path / "ran"

    class Exploit:
        def __reduce__(self) -> Any:
            return Path.touch, (proof,)

    payload = pickles._PYTHON + pickle.dumps(Exploit())
    forged = base64.b64encode(signed(payload, ("wrong",))).decode()
    with pytest.raises(InvalidSignature):
        unpacked(forged, KEYS)
    assert not proof.exists()
    with pytest.raises(UnknownFunction):  # the same payload is run when it is signed: the proof is one
        unpacked(base64.b64encode(signed(payload, KEYS)).decode(), KEYS)
    assert proof.exists()


def test_a_pickle_of_another_python_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_PYTHON", bytes((3, 4)))
    made = packed(lambda: 1, KEYS)
    monkeypatch.undo()
    with pytest.raises(UnknownFunction, match=r"pickled by Python 3\.4, and this worker's is 3\.\d+"):
        unpacked(made, KEYS)


def sealed(payload: bytes) -> str:
    return base64.b64encode(signed(pickles._PYTHON + payload, KEYS)).decode()


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"cnot_a_module\nf\n.", "needs the module not_a_module"),
        (b"cos\nnothing_there\n.", "could not be loaded.*nothing_there"),
        (b"garbage", "could not be loaded"),
        (b"csys\nexit\n)R.", "could not be loaded.*SystemExit"),
        (pickle.dumps(7), "holds no function"),
    ],
)
def test_a_pickle_of_ours_that_cannot_be_loaded_is_an_unknown_function(payload: bytes, words: str) -> None:
    with pytest.raises(UnknownFunction, match=words):
        unpacked(sealed(payload), KEYS)


def test_without_cloudpickle_the_worker_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    made = packed(lambda: 1, KEYS)
    monkeypatch.delitem(sys.modules, "cloudpickle.cloudpickle", raising=False)
    monkeypatch.setitem(sys.modules, "cloudpickle", None)  # type: ignore[arg-type]
    with pytest.raises(UnknownFunction, match=r"pip install 'queuedtask\[pickle\]'"):
        unpacked(made, KEYS)


def with_lock() -> Callable[[], object]:
    lock = threading.Lock()
    return lambda: lock


def with_config() -> Callable[[], object]:
    config = Config(secret_key=("geheim",))
    return lambda: config


def with_generator() -> Callable[[], object]:
    numbers = (n for n in range(3))
    return lambda: next(numbers)


def with_hostile() -> Callable[[], object]:
    class Hostile:
        def __reduce__(self) -> Any:
            raise LookupError("not me")

    hostile = Hostile()
    return lambda: hostile


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_lock, "lock"),
        (with_config, "a Config may hold secrets"),
        (with_generator, "generator"),
        (with_hostile, "LookupError: not me"),
    ],
)
def test_what_cannot_be_pickled_is_refused_with_the_reason(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(InvalidTask, match=f"cannot be pickled.*{reason}.*pass what it needs as an argument"):
        packed(make(), KEYS)


def test_the_size_counts_together_with_the_arguments() -> None:
    big = "x" * 10_000
    text = packed(lambda: big, KEYS)
    size = len(base64.b64decode(text)) - 33 - 2
    packed(lambda: big, KEYS, max_payload=size + 4)
    with pytest.raises(InvalidTask, match=f"{size:,} bytes as a pickle, {size + 4:,} with.*allows {size + 3:,}"):
        packed(lambda: big, KEYS, max_payload=size + 3)
    with pytest.raises(InvalidTask, match=f"{size + 11:,} with its arguments"):
        packed(lambda: big, KEYS, arguments=('["é"]', '{"a":'), max_payload=size + 4)


# -- Which functions -----------------------------------------------------------------------------------------


def outer() -> Any:
    def nested() -> None: ...

    class Local:
        def method(self) -> None: ...

        @classmethod
        def of_class(cls) -> None: ...

    return nested, lambda: None, Local.method, Local.of_class, Local().method


shortcut = lambda: None  # noqa: E731


def test_local_functions_have_a_readable_name() -> None:
    nested, function, method, *_ = outer()
    module = outer.__module__
    assert local_name(nested) == f"{module}:outer.<locals>.nested"
    assert local_name(staticmethod(function)) == f"{module}:outer.<locals>.<lambda>"
    assert local_name(method) == f"{module}:outer.<locals>.Local.method"
    assert local_name(shortcut) == f"{module}:<lambda>"


def test_what_is_bound_or_belongs_into_a_module_goes_by_its_path_or_not_at_all() -> None:
    *_, of_class, bound = outer()
    assert [local_name(each) for each in (of_class, bound, outer, len, Path, operator.itemgetter(1), 7)] == [None] * 7


def test_the_path_s_own_error_stays_where_a_pickle_would_not_do() -> None:
    error = UnknownFunction("bound to a Shop object")
    with pytest.raises(UnknownFunction) as raised:
        admit([].append, error, KEYS)
    assert raised.value is error


def test_without_a_key_it_says_how_to_enable_it() -> None:
    error = UnknownFunction("f is a lambda: write a def at module level")
    with pytest.raises(InvalidTask, match=r"write a def.*set QUEUE_SECRET_KEY, here and in the workers.*\[pickle\]"):
        admit(shortcut, error, ())


def test_without_cloudpickle_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)  # type: ignore[arg-type]
    with pytest.raises(InvalidTask, match=r"f is a lambda; .*pip install 'queuedtask\[pickle\]'"):
        admit(shortcut, UnknownFunction("f is a lambda"), KEYS)


SPAWNED = """
import multiprocessing

def double(n):
    return 2 * helper(n)

def helper(n):
    return n + 1

def pack_there(pipe):
    from queuedtask.model.pickles import pack
    assert double.__module__ == "__mp_main__"
    pipe.send(pack(double, ("key",), task_id=ID, name="__mp_main__:double", max_payload=100_000))

ID = "00000000-0000-7000-8000-000000000000"

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=pack_there, args=(there,))
    process.start()
    there.close()
    print(here.recv())
    process.join()
"""


def test_functions_of_a_script_in_a_spawned_child_are_sent_with_all_that_they_call(tmp_path: Path) -> None:
    script = tmp_path / "script-1.py"
    script.write_text(SPAWNED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    function = unpack(ran.stdout, ("key",), task_id="00000000-0000-7000-8000-000000000000", name="__mp_main__:double")
    assert function(3) == 8
