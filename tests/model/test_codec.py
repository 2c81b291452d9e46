"""The codec: what comes back equal, what is refused and how, what becomes of a result that cannot be stored."""

import dataclasses
import enum
import json
import sys
import threading
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import execute
from queuedtask.errors import InvalidTask, NotSerializable
from queuedtask.model import codec
from queuedtask.model.codec import (
    clean_text,
    decode,
    decode_arguments,
    dumps,
    encode_arguments,
    encode_result,
    from_plain,
    to_plain,
)

LIMIT = 1 << 20
PARIS = ZoneInfo("Europe/Paris")
UNKNOWN = UUID("0190163d-8694-739b-aea5-966c26f8ad91")
Point = namedtuple("Point", "x y")


class Level(enum.IntEnum):
    HIGH = 3


class Shade(enum.StrEnum):
    RED = "red"


class Mixed(str, enum.Enum):  # noqa: UP042 - the older spelling, with a str() of its own
    BLUE = "blue"


class Colour(enum.Enum):
    RED = "red"


class SafeString(str):
    __slots__ = ()

    def __str__(self):
        return self


class Loud(str):
    """A str that does not equal its own characters."""

    __slots__ = ()

    def __eq__(self, other):
        return isinstance(other, Loud) and str.__eq__(self, other)

    __hash__ = str.__hash__


class MultiDict(dict):
    """Holds lists, shows their last members: what web frameworks give for a form."""

    def items(self):
        return [(key, values[-1]) for key, values in super().items()]


class Moment(datetime):
    """A datetime that knows nanoseconds as well."""

    nanosecond = 7

    def __eq__(self, other):
        return isinstance(other, Moment)

    __hash__ = datetime.__hash__


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no words")


class Proxy:
    """Claims to be a str, as lazy objects do."""

    @property
    def __class__(self):
        return str


@dataclasses.dataclass
class Order:
    number: int


class Model:
    """An object-relational mapper's row: reading the key would ask the database."""

    @property
    def pk(self):
        raise AssertionError("the database was asked")


def as_jsonb(text):
    """Return JSON text as jsonb hands it back: numbers as PostgreSQL's numeric writes them, keys sorted."""

    def written(value):
        if isinstance(value, Decimal):
            number = format(value, "f")
            return "0" + number.removeprefix("-0") if not value and number.startswith("-") else number
        if isinstance(value, list):
            return f"[{', '.join(map(written, value))}]"
        if isinstance(value, dict):
            pairs = sorted(value.items(), key=lambda pair: (len(pair[0].encode()), pair[0].encode()))
            return f"{{{', '.join(f'{written(key)}: {written(member)}' for key, member in pairs)}}}"
        return json.dumps(value, ensure_ascii=False)

    return written(json.loads(text, parse_float=Decimal, parse_int=Decimal))


def there_and_back(*args, **kwargs):
    args_text, kwargs_text = encode_arguments(args, kwargs, LIMIT)
    return decode_arguments(as_jsonb(args_text), as_jsonb(kwargs_text))


def back(value):
    """Return an argument as the task gets it, by way of jsonb."""
    (args, kwargs) = there_and_back(value, given=value)
    assert args[0] == kwargs["given"]
    return args[0]


def refusal(*args, **kwargs):
    with pytest.raises(NotSerializable) as caught:
        encode_arguments(args, kwargs, LIMIT)
    return str(caught.value)


def nested(depth, kind=list):
    value = kind()
    for _ in range(depth - 1):
        value = {"a": value} if kind is dict else kind([value])
    return value


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
zones = st.sampled_from([None, UTC, timezone(timedelta(hours=5, minutes=45)), PARIS, ZoneInfo("America/New_York")])
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.binary()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.uuids()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.datetimes(timezones=zones)
)
keys = texts | st.sampled_from(["$date", "$tuple", "$dict", "$float", "$", "$x"])
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


def same(left, right):
    """Tell whether two values are equal and of the same types, all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, datetime):
        return left == right and left.tzinfo == right.tzinfo and left.utcoffset() == right.utcoffset()
    return left == right


@settings(max_examples=300, deadline=None)
@given(st.lists(values, max_size=4), st.dictionaries(keys, values, max_size=3))
def test_arguments_come_back_equal_and_of_the_same_types_by_way_of_jsonb(args, kwargs):
    got = decode_arguments(*map(as_jsonb, encode_arguments(tuple(args), kwargs, LIMIT)))
    assert same(got, (tuple(args), kwargs))


@settings(max_examples=200, deadline=None)
@given(values)
def test_plain_values_are_snapshots_that_stand_for_an_equal_value_apart_from_tuples(value):
    plain = to_plain(value)
    assert as_lists(from_plain(json.loads(dumps(plain)))) == as_lists(value)
    assert as_lists(from_plain(plain)) == as_lists(value)


def as_lists(value):
    if isinstance(value, (list, tuple)):
        return [as_lists(each) for each in value]
    if isinstance(value, dict):
        return {key: as_lists(each) for key, each in value.items()}
    return value


anything = st.recursive(
    leaves | st.floats() | st.text() | st.builds(object) | st.builds(Unprintable) | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers() | st.none() | st.tuples(st.text()), inner, max_size=3)
        | st.frozensets(st.text() | st.integers(), max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(anything)
def test_any_result_at_all_becomes_text_that_postgresql_stores(value):
    text = encode_result(value, LIMIT)
    if value is None:
        assert text is None
        return
    assert "\0" not in text
    assert "\\u0000" not in text.replace("\\\\", "")
    text.encode()
    json.loads(text, parse_constant=pytest.fail)
    decode(as_jsonb(text))


# -- Arguments: what comes back ------------------------------------------------------------------------------


COME_BACK = [
    None,
    True,
    0,
    -(10**300),
    10**4300 - 1,
    0.1,
    5e-324,
    1e15,
    1e16,
    1e22,
    1e23,
    1.7976931348623157e308,
    -1e23,
    "",
    "žluťoučký 🐎",
    "\\u0000",
    "$tuple",
    [],
    {},
    (),
    [1, [2, (3, [4])]],
    {"a": {"b": (1,)}},
    {"": 1, "a b": 2},
    Decimal("1.10"),
    Decimal("-1E+4000"),
    UNKNOWN,
    b"",
    b"\0\xff",
    date(1, 1, 1),
    time(23, 59, 59, 999999),
    time(12, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    time(12, tzinfo=PARIS),
    timedelta.max,
    timedelta.min,
    timedelta(microseconds=-1),
    datetime(2026, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001 - naive ones come back naive
    datetime(2026, 1, 2, tzinfo=UTC),
    datetime(1850, 1, 1, tzinfo=PARIS),
]


@pytest.mark.parametrize("value", COME_BACK, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_equal_and_of_the_same_type(value):
    assert same(back(value), value)


def test_postgresql_itself_gives_the_arguments_back_equal(empty_database_url):
    values = (*COME_BACK, {"$date": {"$date": 1}}, nested(100), nested(100, tuple), {"bb": 1, "a": 2, "": 3})
    for value in values:
        args_text, kwargs_text = encode_arguments((value,), {"given": value}, LIMIT)
        ((args, kwargs),) = execute(
            empty_database_url, "SELECT %s::jsonb::text, %s::jsonb::text", (args_text, kwargs_text)
        )
        # The properties above rest on this likeness.
        assert json.loads(args) == json.loads(as_jsonb(args_text))
        got = decode_arguments(args, kwargs)
        assert same(got, ((value,), {"given": value}))


def test_postgresql_itself_stores_every_result(empty_database_url):
    odd = ["a\0b", "\ud800", float("nan"), 10**4300, {None: {1j}}, {"\0": Unprintable()}, nested(500), 1e23, b"\0"]
    text = encode_result(odd, LIMIT)
    ((stored_text,),) = execute(empty_database_url, "SELECT %s::jsonb::text", (text,))
    assert decode(stored_text) == decode(text)


def test_postgresql_itself_stores_every_clean_text(empty_database_url):
    text = clean_text("a\0b\udcff🐎" * 10, 100)
    assert execute(empty_database_url, "SELECT %s::text", (text,)) == [(text,)]


@pytest.mark.parametrize("tag", ["$date", "$tuple", "$dict", "$unserializable", "$", "$gt"])
def test_a_dict_that_looks_like_a_tag_comes_back_as_itself(tag):
    for content in ({tag: 1}, {tag: {tag: [{tag: "2026-01-01"}]}}, {tag: 1, "$other": 2}):
        assert back(content) == content


def test_a_keyword_that_looks_like_a_tag_comes_back_as_itself():
    assert there_and_back(**{"$date": (1,)}) == ((), {"$date": (1,)})


@pytest.mark.parametrize(
    ("value", "base"),
    [
        (Level.HIGH, 3),
        (Shade.RED, "red"),
        (Mixed.BLUE, "blue"),
        (SafeString("<b>"), "<b>"),
        (Point(1, [2]), (1, [2])),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (Counter("aab"), {"a": 2, "b": 1}),
        ({Shade.RED: 1}, {"red": 1}),
        (type("Real", (float,), {})(0.5), 0.5),
        (type("Items", (list,), {})([1]), [1]),
        (type("Day", (date,), {})(2026, 1, 2), date(2026, 1, 2)),
        (type("When", (datetime,), {})(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
        (type("Clock", (time,), {})(3, 4), time(3, 4)),
        (type("Span", (timedelta,), {})(3, 4), timedelta(3, 4)),
        (type("Money", (Decimal,), {})("1.50"), Decimal("1.50")),
        (type("Key", (UUID,), {})(int=UNKNOWN.int), UNKNOWN),
        (type("Data", (bytes,), {})(b"x"), b"x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_subclass_whose_value_survives_comes_back_as_its_base(value, base):
    assert same(back(value), base)
    assert back(value) == value


def test_a_datetime_keeps_its_zone_and_the_hour_that_the_clock_shows_twice():
    for fold in (0, 1):
        value = datetime(2026, 10, 25, 2, 30, tzinfo=PARIS, fold=fold)
        got = back(value)
        assert got == value
        assert got.tzinfo is PARIS
        assert got.fold == fold
        assert got.utcoffset() == value.utcoffset()
    text, _ = encode_arguments((datetime(2026, 10, 25, 2, 30, tzinfo=PARIS),), {}, LIMIT)
    assert text == '[{"$datetime":"2026-10-25T02:30:00+02:00[Europe/Paris]"}]'


def test_a_datetime_in_the_hour_that_the_clock_leaves_out_comes_back_as_it_was():
    for fold in (0, 1):
        value = datetime(2026, 3, 29, 2, 30, tzinfo=PARIS, fold=fold)
        assert back(value).utcoffset() == value.utcoffset()


def test_a_zone_of_ones_own_comes_back_as_its_offset():
    class Zone(tzinfo):
        def utcoffset(self, when):
            return timedelta(hours=4)

        def dst(self, when):
            return timedelta(0)

    value = datetime(2026, 7, 1, 12, tzinfo=Zone())
    assert back(value) == value
    assert back(value).tzinfo == timezone(timedelta(hours=4))


@pytest.mark.parametrize("zone", ["Mars/Olympus", "Europe", "../../etc/passwd", "", "/etc/passwd"])
def test_a_zone_that_this_machine_does_not_know_leaves_the_offset(zone):
    got = from_plain({"$datetime": f"2026-07-01T12:00:00+02:00[{zone}]"})
    assert got.tzinfo == timezone(timedelta(hours=2))
    assert got == datetime(2026, 7, 1, 10, tzinfo=UTC)


def test_an_offset_that_the_zone_no_longer_has_keeps_the_moment():
    got = from_plain({"$datetime": "2026-07-01T12:00:00+05:00[Europe/Paris]"})
    assert got == datetime(2026, 7, 1, 7, tzinfo=UTC)
    assert got.tzinfo is PARIS


def test_a_hand_written_datetime_may_leave_out_the_offset():
    assert from_plain({"$datetime": "2026-07-01T12:00[Europe/Paris]"}) == datetime(2026, 7, 1, 12, tzinfo=PARIS)


def test_nothing_and_small_calls_become_the_texts_of_the_columns_defaults():
    assert encode_arguments((), {}, LIMIT) == ("[]", "{}")
    assert encode_arguments((7,), {}, LIMIT) == ("[7]", "{}")
    assert encode_arguments((), {"a": "é"}, LIMIT) == ("[]", '{"a":"é"}')


def test_the_order_of_keys_and_the_sign_of_zero_are_all_that_jsonb_changes():
    assert back({"bb": 1, "a": -0.0}) == {"bb": 1, "a": -0.0}


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_a_hundred_levels_come_back_and_one_more_is_refused(kind):
    value = nested(100, kind)
    assert back(value) == value
    assert "nested more than 100 levels deep" in refusal(nested(101, kind))


# -- Arguments: what is refused ------------------------------------------------------------------------------


class Line:
    def __init__(self):
        self.id = 7


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1}, ["set", "sorted(...)"]),
        (frozenset(), ["frozenset", "sorted(...)"]),
        (Order(7), ["Order", "dataclasses.asdict"]),
        (Order, ["name of the class"]),
        (Model(), ["Model", "primary key (.pk)"]),
        (Line(), ["Line", "primary key (.id)"]),
        (Colour.RED, ["Colour", ".value"]),
        (bytearray(b"x"), ["bytes(...)"]),
        (memoryview(b"x"), ["bytes(...)"]),
        (Path("x"), ["str(...)"]),
        (ValueError("x"), ["str(...)"]),
        (deque([1]), ["deque"]),
        (range(3), ["list(...)"]),
        (iter([1]), ["list(...)"]),
        ({}.keys(), ["list(...)"]),
        (1j, ["complex", "plain values"]),
        (object(), ["object", "plain values"]),
        (print, ["module:name"]),
        (Unprintable(), ["Unprintable"]),
        (Proxy(), ["Proxy"]),
        (float("nan"), ["nan", "None"]),
        (float("-inf"), ["-inf", "None"]),
        (type("Real", (float,), {})("nan"), ["nan"]),
        (Decimal("NaN"), ["NaN"]),
        (Decimal("sNaN"), ["sNaN"]),
        (Decimal("Infinity"), ["Infinity"]),
        (10**4300, ["4,300 digits"]),
        (-(10**4300), ["4,300 digits"]),
        ("a\0b", ["'a\\x00b'", "NUL"]),
        ("a\ud800b", ["'a\\ud800b'", "lone surrogate"]),
        ("\ud83d\ude00", ["lone surrogate"]),
        ({1: "a"}, ["the key 1", "str(...)"]),
        ({None: "a"}, ["the key None"]),
        ({("a", 1): "a"}, ["the key ('a', 1)"]),
        ({Unprintable(): "a"}, ["the key", "repr() raised RuntimeError"]),
        ({"a\0": 1}, ["the key", "NUL"]),
        ({"\udc00": 1}, ["the key", "lone surrogate"]),
        (Loud("x"), ["Loud", "differ"]),
        ({Loud("x"): 1}, ["the key", "Loud"]),
        (MultiDict(a=["1", "2"]), ["MultiDict", "differ"]),
        (Moment(2026, 1, 2, tzinfo=UTC), ["Moment", "differ"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_not_come_back_equal_is_refused_with_what_to_do(value, words):
    message = refusal([value])
    assert message.startswith("args[0][0]: ")
    for word in words:
        assert word in message
    message.encode()
    assert "\0" not in message


def test_a_refusal_names_the_path_of_the_offender():
    assert refusal(1, {"lines": [0, 1, 2, {3}]}).startswith("args[1].lines[3]: ")
    assert refusal(order={"total": {3}}).startswith("kwargs.order.total: ")
    assert refusal(a=(1, OrderedDict(b=[{3}]))).startswith("kwargs.a[1].b[0]: ")
    assert refusal({"two words": {3}}).startswith("args[0]['two words']: ")
    assert refusal({"a": {7: 1}}).startswith("args[0].a: the key 7")
    assert refusal(**{"a\0": 1}).startswith("kwargs: the key ")


def test_a_refusal_is_both_an_invalid_task_and_a_type_error():
    with pytest.raises(InvalidTask):
        encode_arguments(({1},), {}, LIMIT)
    with pytest.raises(TypeError):
        encode_arguments(({1},), {}, LIMIT)


def test_a_structure_within_itself_is_refused_even_when_it_branches():
    cycle = []
    cycle += [cycle, cycle]
    assert "within itself" in refusal(cycle)


def test_arguments_over_the_limit_are_refused_with_their_size_in_bytes():
    text = "é" * 500
    assert encode_arguments((text,), {}, 1006)
    with pytest.raises(NotSerializable, match=r"take 1,006 bytes .* QUEUE_MAX_PAYLOAD allows 1,005"):
        encode_arguments((text,), {}, 1005)
    with pytest.raises(NotSerializable, match="take 1,012 bytes"):
        encode_arguments((text[:250],), {"b": text[:250]}, 1000)


def test_a_small_structure_that_stands_for_a_huge_one_is_refused_without_writing_it_out():
    shared = [1]
    for _ in range(60):
        shared = [shared, shared]
    with pytest.raises(NotSerializable, match="QUEUE_MAX_PAYLOAD"):
        encode_arguments((shared,), {}, 10_000)
    with pytest.raises(NotSerializable, match="QUEUE_MAX_PAYLOAD"):
        encode_arguments((), {"a": shared}, 10_000)


# -- Arguments: rows inserted by hand ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ("{}", "{}", "args cannot be read: a JSON list is expected"),
        ("null", "{}", "args cannot be read: a JSON list is expected"),
        ('"abc"', "{}", "args cannot be read: a JSON list is expected"),
        ('{"$tuple": [1]}', "{}", "args cannot be read: a JSON list is expected"),
        ("[]", "[]", "kwargs cannot be read: a JSON object is expected"),
        ("[]", "7", "kwargs cannot be read: a JSON object is expected"),
        ("[", "{}", "args cannot be read"),
        ("[]", "", "kwargs cannot be read"),
        ("[" + "1" * 4301 + "]", "{}", "args cannot be read"),
        ("[" * 100_000 + "]" * 100_000, "{}", "args cannot be read: nested too deep"),
        ("[]", '{"a":' * 100_000 + "1" + "}" * 100_000, "kwargs cannot be read: nested too deep"),
        ('["$",' + "[" * 900 + "]" * 900 + "]", "{}", "args cannot be read: nested too deep"),
        (
            '[{"$datetime": "yesterday"}]',
            "{}",
            r"args cannot be read: .*yesterday.* cannot be read: ValueError: Invalid isoformat",
        ),
        ('[{"$datetime": 7}]', "{}", "a string is expected"),
        ('[{"$date": "2026-02-30"}]', "{}", "cannot be read"),
        ('[{"$time": "25:00"}]', "{}", "cannot be read"),
        ('[{"$timedelta": "1e3"}]', "{}", "seconds with at most six decimals"),
        ('[{"$timedelta": ""}]', "{}", "seconds with at most six decimals"),
        ('[{"$timedelta": "99999999999999999999"}]', "{}", "cannot be read"),
        ('[{"$decimal": "ten"}]', "{}", "cannot be read"),
        ('[{"$uuid": "1"}]', "{}", "cannot be read"),
        ('[{"$bytes": "*"}]', "{}", "cannot be read"),
        ('[{"$float": "x"}]', "{}", "cannot be read"),
        ('[{"$tuple": 1}]', "{}", "must be a list"),
        ("[]", '{"a": {"$dict": []}}', "kwargs cannot be read: .*must be an object"),
    ],
    ids=lambda value: value[:32],
)
def test_a_row_that_cannot_be_read_says_which_part_and_why(args, kwargs, words):
    with pytest.raises(ValueError, match=words) as caught:
        decode_arguments(args, kwargs)
    assert len(str(caught.value)) < 500


def test_a_dict_that_is_no_tag_of_ours_is_left_as_it_is():
    assert decode_arguments('[{"$gt": 5}]', '{"$set": {"$date": "2026-01-02"}}') == (
        ({"$gt": 5},),
        {"$set": date(2026, 1, 2)},
    )


def test_the_numbers_that_jsonb_rewrites_are_read_as_they_stand():
    assert decode_arguments(as_jsonb("[1e400, 1e23]"), "{}") == ((10**400, 10**23), {})


def test_what_is_decoded_is_fresh_each_time():
    first, second = decode_arguments("[]", "{}"), decode_arguments("[]", "{}")
    first[1]["a"] = 1
    assert second == ((), {})


# -- Results and context -------------------------------------------------------------------------------------


def stored(value, limit=LIMIT):
    """Return a result as a reader gets it, by way of jsonb."""
    text = encode_result(value, limit)
    return decode(None if text is None else as_jsonb(text))


def test_a_result_comes_back_and_none_is_null():
    assert encode_result(None, LIMIT) is None
    assert decode(None) is None
    value = {"when": datetime(2026, 1, 2, tzinfo=PARIS), "sum": Decimal("1.10"), "big": 1e23, "$date": 1}
    assert same(stored(value), value)
    assert same(stored({"$date": 1}), {"$date": 1})


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ((1, (2,)), [1, [2]]),
        (Point(1, 2), [1, 2]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset("a"), ["a"]),
        (Level.HIGH, 3),
        ({1: "a", None: "b", "1": "c"}, {"1": "c", "None": "b"}),
        ({Shade.RED: 1, Mixed.BLUE: 2}, {"red": 1, "blue": 2}),
        ({("a", 1): 1}, {"('a', 1)": 1}),
        ("a\0b", "a\\x00b"),
        ("a\ud800b", "a\\ud800b"),
        ({"a\0b": 1}, {"a\\x00b": 1}),
    ],
    ids=ascii,
)
def test_a_result_is_stored_in_its_nearest_plain_form(value, plain):
    assert same(stored(value), plain)
    assert same(from_plain(to_plain(value)), plain)


def test_a_set_of_things_without_an_order_becomes_a_list():
    assert sorted(stored({1, "a"}), key=str) == [1, "a"]


class Bitter(dict):
    def items(self):
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("value", "shown", "kind"),
    [
        (float("nan"), "nan", "float"),
        (float("inf"), "inf", "float"),
        (Decimal("NaN"), "Decimal('NaN')", "decimal.Decimal"),
        (1j, "1j", "complex"),
        (Order(7), "Order(number=7)", f"{__name__}.Order"),
        (Colour.RED, "<Colour.RED: 'red'>", f"{__name__}.Colour"),
        (bytearray(b"\0"), "bytearray(b'\\x00')", "bytearray"),
        (Bitter(a=1), "{'a': 1}", f"{__name__}.Bitter"),
        (10**4300, "0x", "int"),
    ],
    ids=lambda value: str(type(value)),
)
def test_what_cannot_be_stored_leaves_a_marker_and_its_neighbours(value, shown, kind):
    got = stored([1, value, {"a": value}])
    assert got[0] == 1
    assert got[1] == got[2]["a"]
    assert got[1]["type"] == kind
    assert shown in got[1]["$unserializable"]
    assert len(got[1]["$unserializable"]) <= 1000


def test_an_object_whose_repr_raises_leaves_a_marker_too():
    got = stored(Unprintable())
    assert got == {
        "$unserializable": f"<{__name__}.Unprintable whose repr() raised RuntimeError>",
        "type": f"{__name__}.Unprintable",
    }
    assert stored({Unprintable(): 1}) == {got["$unserializable"]: 1}


def test_a_repr_that_cannot_be_stored_is_cleaned_and_shortened():
    class Odd:
        def __repr__(self):
            return "\0\ud800" + "x" * 5000

    text = stored(Odd())["$unserializable"]
    assert text.startswith("\\x00\\ud800xxx")
    assert "characters left out" in text
    assert len(text) <= 1000


def test_a_metaclass_that_hides_the_names_of_its_classes_does_not_stop_the_marker():
    class Hiding(type):
        @property
        def __module__(cls):
            raise RuntimeError("hidden")

    assert stored(Hiding("Hidden", (), {"__repr__": lambda self: "here"})())["type"] == "object"


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_a_result_keeps_a_hundred_levels(kind):
    assert "$unserializable" not in encode_result(nested(100, kind), LIMIT)
    assert "nested more than 100 levels deep" in encode_result(nested(101, kind), LIMIT)


def test_a_result_within_itself_ends_at_a_marker(monkeypatch):
    cycle = {}
    cycle["self"] = cycle
    assert "within itself" in encode_result(cycle, LIMIT)
    branching = []
    branching += [branching, branching]
    assert stored(branching, 5000)["type"] == "list"
    monkeypatch.setattr(codec, "MAX_VALUES", 5000)
    assert "more than 5,000 values" in to_plain(branching)["$unserializable"]


def test_a_result_over_the_limit_leaves_a_marker_with_its_size():
    assert stored("é" * 500, 1002) == "é" * 500
    got = stored("é" * 500, 1001)
    assert got == {
        "$unserializable": "1,002 bytes as JSON, and QUEUE_MAX_PAYLOAD allows 1,001",
        "type": "str",
    }


def test_a_datetime_whose_zone_raises_leaves_a_marker():
    class Broken(tzinfo):
        def utcoffset(self, when):
            raise RuntimeError("no zone")

    assert stored([datetime(2026, 1, 1, tzinfo=Broken())])[0]["type"] == "datetime.datetime"


def test_a_process_that_allows_fewer_digits_still_gets_a_marker():
    digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        assert "could not be encoded" in encode_result([10**1000], LIMIT)
    finally:
        sys.set_int_max_str_digits(digits)


def test_a_plain_value_shares_nothing_with_what_it_was_made_from():
    value = {"a": [1, {"b": 2}]}
    plain = to_plain(value)
    value["a"][1]["b"] = 3
    assert plain == {"a": [1, {"b": 2}]}
    got = from_plain(plain)
    got["a"].append(1)
    assert plain == {"a": [1, {"b": 2}]}


def test_a_dict_that_another_thread_adds_to_is_still_encoded():
    shared = {str(number): number for number in range(1000)}
    done = threading.Event()

    def add():
        number = 0
        while not done.is_set():
            number += 1
            shared[f"key {number}"] = number
            shared.pop(f"key {number - 5}", None)

    thread = threading.Thread(target=add)
    thread.start()
    try:
        for _ in range(20):
            assert "$unserializable" not in to_plain(shared)
    finally:
        done.set()
        thread.join()


def test_a_text_that_is_no_json_raises_with_what_was_read():
    with pytest.raises(ValueError, match="cannot be read"):
        decode("{")
    with pytest.raises(ValueError, match="nested too deep"):
        decode("[" * 100_000)


def test_dumps_is_compact_and_leaves_characters_alone():
    assert dumps({"a": [1, "é"]}) == '{"a":[1,"é"]}'
    with pytest.raises(ValueError):
        dumps(float("nan"))


# -- Texts ---------------------------------------------------------------------------------------------------


def test_text_keeps_what_is_storable_and_shows_what_is_not():
    assert clean_text("žluť\n\t🐎") == "žluť\n\t🐎"
    assert clean_text("a\0b\udcffc") == "a\\x00b\\udcffc"
    assert type(clean_text(SafeString("a"))) is str


def test_text_over_its_limit_loses_its_middle():
    text = "a" * 500 + "b" * 500
    short = clean_text(text, 100)
    assert 98 <= len(short) <= 100
    head, count, tail = short.replace("… ", "|").replace(" characters left out …", "|").split("|")
    assert head == "a" * len(head)
    assert tail == "b" * len(tail)
    assert int(count) + len(head) + len(tail) == 1000
    assert clean_text(text, 1000) == text


@given(st.text(max_size=300), st.integers(min_value=0, max_value=200))
def test_text_never_exceeds_its_limit_and_can_always_be_encoded(text, limit):
    short = clean_text(text * 3, limit)
    assert len(short) <= limit
    short.encode()
    assert "\0" not in short


def test_the_tags_are_the_ones_that_the_documentation_names():
    for tag in codec._RESTORERS:
        assert f'"{tag}"' in codec.__doc__


@pytest.mark.parametrize(
    ("objects", "merged"),
    [
        (("{}", "{}"), {}),
        (('{"a":1}', "{}"), {"a": 1}),
        (("{}", '{"a": {"b": 1}}'), {"a": {"b": 1}}),
        (('{"a":1,"b":2}', '{"b":{"c":3}}', '{"d":4}'), {"a": 1, "b": {"c": 3}, "d": 4}),
    ],
)
def test_merged_objects_have_the_last_of_equal_keys(
    objects: tuple[str, ...], merged: dict[str, object], database_url: str
) -> None:
    text = codec.merge(*objects)
    assert json.loads(text) == merged
    assert execute(database_url, "SELECT %s::jsonb", (text,)) == [(merged,)]
