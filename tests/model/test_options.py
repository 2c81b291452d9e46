"""Options that live in a task's meta or in a function alone: what they may be, and where they go."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuedtask.errors import Interrupted, InvalidTask, TaskTimeout
from queuedtask.model import backoff, options
from queuedtask.model.backoff import delay_after
from queuedtask.model.options import RESERVED_META, TaskOptions, as_fields, checked, declared, reserved, storable


def fields(declaration: TaskOptions, given: dict[str, Any]) -> dict[str, Any]:
    return as_fields(storable(declaration) | given, storable(declaration))


def check(**given: Any) -> dict[str, Any]:
    return checked(given, max_payload=1000)


@pytest.mark.parametrize("key", sorted(RESERVED_META))
def test_reserved_keys_are_refused_in_a_caller_s_meta(key: str) -> None:
    with pytest.raises(InvalidTask, match=f"'{key}' is reserved"):
        check(meta={key: 1})
    assert check(meta={"mine": {key: 1}}) == {"meta": f'{{"mine":{{"{key}":1}}}}'}


@pytest.mark.parametrize("value", ["x", "", 5, [], [1, "2"], [-1], [float("nan")], [True], [1] * 101, [None], {}, 1.5])
def test_a_back_off_that_is_none_is_refused_with_what_is_allowed(value: object) -> None:
    with pytest.raises(InvalidTask, match="'exponential', 'linear' or a list"):
        check(backoff=value)
    with pytest.raises(InvalidTask, match="'exponential', 'linear' or a list"):
        declared({"backoff": value})


def test_a_function_as_back_off_is_declared_and_not_given() -> None:
    with pytest.raises(InvalidTask, match=r"@queue\.task only"):
        check(backoff=lambda failures: 1)
    assert callable(declared({"backoff": lambda failures: 1}).backoff)


def test_a_back_off_is_stored_in_seconds() -> None:
    assert check(backoff=(1, timedelta(minutes=1), 2.5))["backoff"] == [1.0, 60.0, 2.5]


@pytest.mark.parametrize("value", [KeyError, (KeyError, OSError)])
def test_exceptions_are_a_class_or_a_tuple(value: Any) -> None:
    given = declared({"retry_on": value, "give_up_on": value})
    assert given.retry_on == given.give_up_on == (value if isinstance(value, tuple) else (value,))


@pytest.mark.parametrize("value", ["KeyError", (), [KeyError], KeyError("x"), int, (KeyError, 1), 0])
def test_what_are_no_exceptions_is_refused(value: object) -> None:
    for option in ("retry_on", "give_up_on"):
        with pytest.raises(InvalidTask, match=f"{option}=.*exception class or a tuple"):
            declared({option: value})


@pytest.mark.parametrize("error", [TaskTimeout, Interrupted])
def test_timeouts_are_not_among_them(error: type[BaseException]) -> None:
    with pytest.raises(InvalidTask, match="max_retries alone"):
        declared({"give_up_on": (KeyError, error)})


def test_which_of_them_wins() -> None:
    both = declared({"retry_on": LookupError, "give_up_on": KeyError})
    assert [both.gives_up_on(error) for error in (KeyError(), IndexError(), ValueError())] == [True, False, True]
    assert not TaskOptions().gives_up_on(ValueError())


@pytest.mark.parametrize("name", ["isolation", "on_conflict"])
def test_words_are_refused_that_are_none(name: str) -> None:
    with pytest.raises(InvalidTask, match=f"{name}='fiber': must be '"):
        check(**{name: "fiber"})
    with pytest.raises(InvalidTask, match=f"{name}=True"):
        check(**{name: True})


def test_what_another_process_gets_is_data_alone() -> None:
    every = declared(
        {"retry_on": KeyError, "give_up_on": KeyError, "backoff": lambda n: 1, "timeout": 5, "isolation": "process"}
    )
    assert TaskOptions(**every.portable()) == TaskOptions(timeout=5.0, isolation="process")
    assert declared({"backoff": [1]}).portable()["backoff"] == [1.0]


def test_options_without_a_column_go_into_meta_beside_what_the_caller_gave() -> None:
    given = check(meta={"mine": 1}, backoff=[5], isolation="process")
    assert fields(TaskOptions(), given) == {"meta": '{"mine":1,"isolation": "process", "backoff": [5.0]}'}
    assert fields(TaskOptions(), check(meta={}, isolation="process")) == {"meta": '{"isolation": "process"}'}
    assert fields(TaskOptions(), check(meta={"mine": 1})) == {"meta": '{"mine":1}'}
    assert fields(TaskOptions(isolation="process", backoff=lambda n: 1), {}) == {"meta": '{"isolation": "process"}'}
    assert fields(TaskOptions(isolation="process"), check(isolation="thread")) == {"meta": '{"isolation": "thread"}'}


def test_only_what_gives_its_key_up_says_so_in_meta() -> None:
    assert "meta" not in fields(TaskOptions(), check(unique_key="k", on_conflict="raise"))
    assert fields(TaskOptions(unique_key="k", on_conflict="replace"), {})["meta"] == '{"on_conflict": "replace"}'
    # Declared for those calls that have a key.
    assert fields(TaskOptions(on_conflict="replace"), {}) == {}
    with pytest.raises(InvalidTask, match="needs a unique_key"):
        fields(TaskOptions(), check(on_conflict="replace"))


@pytest.mark.parametrize(
    "meta", [None, "", "{", '{"x": 1}', '["isolation"]', '"isolation"', '{"x": {"isolation": 1}}', "[" * 9999]
)
def test_whatever_stands_in_meta_can_be_asked(meta: str | None) -> None:
    assert reserved(meta, "isolation") is None
    assert reserved((meta or "") + '{"isolation"' + "[" * 9999, "isolation") is None


@pytest.mark.parametrize("value", [None, 5, "x", [], ["x"], {"a": 1}, [-1]])
def test_a_back_off_that_somebody_wrote_by_hand_is_passed_over(value: object) -> None:
    assert backoff.stored(value) is None
    assert backoff.stored([1, 2]) == [1.0, 2.0]


def test_the_delays_of_each_back_off() -> None:
    assert [delay_after(n, "exponential") for n in range(6)] == [delay_after(n) for n in range(6)]
    assert [delay_after(n, "linear") for n in range(4)] == [5, 10, 15, 20]
    assert delay_after(10**6, "linear") == 3600
    assert [delay_after(0, "linear", jitter=jitter) for jitter in (-1, 1)] == [4, 6]
    assert [delay_after(n, [7, 8], jitter=1) for n in range(4)] == [7, 8, 8, 8]


@given(st.dictionaries(st.text(), st.integers() | st.text()), st.sampled_from(["process", "thread"]))
def test_meta_stays_a_document_whatever_is_in_it(meta: dict[str, Any], isolation: str) -> None:
    meta = {key: value for key, value in meta.items() if key not in RESERVED_META and not key.startswith("$")}
    try:
        given = checked({"meta": meta, "isolation": isolation}, max_payload=10**6)
    except InvalidTask:
        return  # what PostgreSQL cannot store
    merged = fields(TaskOptions(), given)["meta"]
    assert reserved(merged, "isolation") == isolation
    assert options.json.loads(merged) == meta | {"isolation": isolation}
