"""The allow-list and the aliases: which paths they let through, and what an allowed path may lead to."""

import functools
import sys
from types import ModuleType
from typing import Any

import pytest

from queuedtask import Config
from queuedtask.model.rules import Claimable, CurrentRules, Rules

# The patterns, then what they allow and what not.
TABLE: list[tuple[list[str], list[str], list[str]]] = [
    ([], ["os:system", "a:b", "__main__:f.<locals>.<lambda>"], []),
    (["*"], ["os:system", "a:b"], []),
    (["mail.send"], ["mail:send"], ["mail:send2", "mail:send.x", "mail.send:f", "xmail:send", "mail:sen"]),
    (["mail:send"], ["mail:send"], ["mail.x:send"]),
    (["shop.tasks.Mailer.send"], ["shop.tasks:Mailer.send"], ["shop.tasks:Mailer"]),
    (["shop.*"], ["shop:f", "shop.tasks:f", "shop:C.m", "shop.a.b:c.d"], ["shop", "shopping:f", "shop2.x:f"]),
    (["shop.*"], ["shop.tasks:main.<locals>.<lambda>"], ["__main__:main.<locals>.<lambda>", "Shop:f", "", ":", "a"]),
    (["shop.tasks.*"], ["shop.tasks:f", "shop:tasks.f"], ["shop:f", "shop.other:f", "shop.tasks_old:f"]),
    (["a_b.*"], ["a_b:f"], ["axb:f", "a%b:f"]),
    (["shop.*", "mail.send"], ["shop:f", "mail:send"], ["mail:other", "os:system"]),
    (["__main__.*"], ["__main__:f", "__main__:<lambda>"], ["shop:f"]),
]  # fmt: skip


@pytest.mark.parametrize(("patterns", "allowed", "refused"), TABLE)
def test_the_patterns(patterns: list[str], allowed: list[str], refused: list[str]) -> None:
    rules = Rules(Config(allowed_functions=tuple(patterns)).allowed_functions)
    assert [path for path in allowed if not rules.allow(path)] == []
    assert [path for path in refused if rules.allow(path)] == []


def test_an_alias_is_judged_by_its_new_path() -> None:
    rules = Rules(("shop.*",), {"old:send": "shop:send", "shop:evil": "os:system", "x:y": "z:y"})
    assert (rules.path("old:send"), rules.path("shop:evil"), rules.path("shop:f")) == (
        "shop:send",
        "os:system",
        "shop:f",
    )
    assert rules.claimable == Claimable(["shop.%"], ["old:send"], ["shop:evil", "x:y"])


def test_what_may_be_claimed_is_escaped_for_sql() -> None:
    assert Rules(("a_b.*", "c.d_e")).claimable == Claimable([r"c.d\_e", r"a\_b.%"], [], [])
    assert Rules().claimable is Rules(("shop.*", "*")).claimable is None


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("shop")
    source = """
import functools, os, subprocess
from os import system

class Shop:
    def method(self): ...
    @classmethod
    def of_class(cls): ...
    def __call__(self): ...

def send(): ...

@functools.wraps(send)
def wrapped(): ...

shop = Shop()
partial = functools.partial(os.system)
numbers = []
"""
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, "shop", module)
    return module


@pytest.mark.parametrize(
    ("path", "is_allowed"),
    [
        ("shop:send", True),
        ("shop:wrapped", True),
        ("shop:Shop.method", True),
        ("shop:Shop.of_class", True),
        ("shop:Shop", True),
        ("shop:shop", True),
        ("shop:os.system", False),
        ("shop:system", False),
        ("shop:subprocess.run", False),
        ("shop:subprocess.Popen", False),
        ("shop:functools.partial", False),
        ("shop:partial", False),
        ("shop:numbers.append", False),
        ("shop:send.__globals__.update", False),
        ("shop:send.__class__", False),
        ("shop:__builtins__.get", False),
    ],
)
def test_a_pattern_lets_through_what_is_defined_below_it(shop: ModuleType, path: str, is_allowed: bool) -> None:
    found: Any = functools.reduce(getattr, path.split(":")[1].split("."), shop)
    assert callable(found)
    assert Rules(("shop.*",)).allow(path)
    assert Rules(("shop.*",)).allow_found(path, found) is is_allowed
    # Named in full, it is meant.
    assert Rules(("other.*", path.replace(":", "."))).allow_found(path, found)
    assert Rules().allow_found(path, found)


def test_the_rules_follow_the_configuration() -> None:
    config = Config(allowed_functions=("shop.*",))
    current = CurrentRules(config)
    before = current()
    assert current() is before
    config.allowed_functions = ("mail.*",)
    after = current()
    assert (after.allow("mail:f"), after.allow("shop:f"), before.allow("shop:f")) == (True, False, True)
    config.function_aliases = {"shop:f": "mail:f"}
    assert current().path("shop:f") == "mail:f"
    config.allowed_functions = ()
    assert current().allow("os:system")
