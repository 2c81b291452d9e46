"""Addresses to listen on, as people write them."""

import re
from typing import NamedTuple, Self

_HOST_AND_PORT = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%\w+)?)\]|(?P<host>[^\s:\[\]/]+)):(?P<port>[0-9]{1,5})"
)


class Address(NamedTuple):
    """A host and a port, or the path of a socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what ``127.0.0.1:8000``, ``[::1]:8000``, ``localhost:0`` or ``unix:/run/shop.sock`` means.

        Raises ValueError for anything else.
        """
        scheme, _, path = text.partition(":")
        if scheme == "unix" and path.startswith("/"):
            return cls(path=path)
        found = _HOST_AND_PORT.fullmatch(text)
        if found is None or int(found["port"]) > 65535:
            raise ValueError(f"{text!r} is no address, such as 127.0.0.1:8000, [::1]:8000, localhost:0 or unix:/path")
        return cls(found["ipv6"] or found["host"], int(found["port"]))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """What a client is told."""
        return str(self) if self.path else f"http://{self}"
