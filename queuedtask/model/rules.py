"""Which functions a worker may run, and under which path it finds them: the allow-list and the aliases.

A pattern of the allow-list is held against the path with a dot in place of its colon. ``mail.send`` is exactly
``mail:send``; ``shop.*`` is the module shop and everything below it, ``shop:f`` and ``shop.tasks:f``, but not
``shopping:f``; ``*`` is everything.

What a ``.*`` lets through by name must also be defined below it: ``shop:os.system``, in a module that imports os, leads
out of shop. A function that is named in full may come from anywhere.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from queuedtask.config import Config
from queuedtask.model.functions import MAIN


class Claimable(NamedTuple):
    """The functions that a worker may claim, in the terms of SQL."""

    like: list[str]
    """Patterns of LIKE for paths with a dot in place of the colon."""
    old_allowed: list[str]
    """Old paths whose new ones are allowed, whatever the patterns say."""
    old_refused: list[str]
    """Old paths whose new ones are not."""


class Rules:
    """The allow-list and the aliases as they stood at one moment."""

    def __init__(self, patterns: Sequence[str] = (), aliases: Mapping[str, str] | None = None) -> None:
        dotted = [pattern.replace(":", ".") for pattern in patterns]
        self._aliases = aliases or {}
        self._are_all = not dotted or "*" in dotted
        self._exact = frozenset(pattern for pattern in dotted if not pattern.endswith("*"))
        self._below = tuple(pattern.removesuffix("*") for pattern in dotted if pattern.endswith(".*"))

    def path(self, recorded: str) -> str:
        """Return the path under which a function is found now."""
        return self._aliases.get(recorded, recorded)

    def allow(self, path: str) -> bool:
        """Tell whether a function may be run, as far as its (new) path tells."""
        if self._are_all:
            return True
        dotted = path.replace(":", ".")
        return dotted in self._exact or dotted.startswith(self._below)

    def allow_found(self, path: str, found: object) -> bool:
        """Tell whether what an allowed path has led to may be run: it is named in full, or has not led elsewhere."""
        if self._are_all or path.replace(":", ".") in self._exact:
            return True
        module = getattr(found, "__module__", None)
        if not isinstance(module, str):
            return False
        # The script of this process, which was looked up under its real name.
        return module in MAIN or self.allow(f"{module}.{getattr(found, '__qualname__', type(found).__qualname__)}")

    @cached_property
    def claimable(self) -> Claimable | None:
        """Return what may be claimed; None for everything."""
        if self._are_all:
            return None
        like = [*map(_escaped, sorted(self._exact)), *(f"{_escaped(prefix)}%" for prefix in self._below)]
        allowed: list[str] = []
        refused: list[str] = []
        for old, new in self._aliases.items():
            (allowed if self.allow(new) else refused).append(old)
        return Claimable(like, allowed, refused)


class CurrentRules:
    """The rules of a config, which may be assigned to while a worker runs."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._of: tuple[object, object] = (None, None)
        self._rules = Rules()

    def __call__(self) -> Rules:
        """Return the rules; the same object until the config changes."""
        config = self._config
        patterns, aliases = self._of
        if config.allowed_functions is not patterns or config.function_aliases is not aliases:
            of = config.allowed_functions, config.function_aliases
            self._rules = Rules(*of)
            self._of = of
        return self._rules


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")
