"""Sockets that a supervisor listens on for its children: whatever becomes of those, no connection is refused."""

import errno
import os
import socket
import stat
from collections.abc import Sequence
from typing import Final

from queuedtask.errors import QueuedTaskError
from queuedtask.model.address import Address

BACKLOG: Final = 1024
_NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class Listening:
    """Bound to an address, until it is closed. Raises QueuedTaskError when that cannot be."""

    def __init__(self, address: Address) -> None:
        self._path = ""
        try:
            self.sockets: Sequence[socket.socket] = [_on_path(address.path)] if address.path else _on_port(address)
        except OSError as error:
            raise QueuedTaskError(f"cannot listen on {address}: {error.strerror or error}") from None
        self._path = address.path
        self.address = address if address.path else address._replace(port=self.sockets[0].getsockname()[1])
        """With the port that was found, where any would do."""

    def close(self) -> None:
        """Listen no longer; processes that have inherited the sockets go on until they close theirs."""
        for each in self.sockets:
            each.close()
        self.sockets = []
        if self._path:
            path, self._path = self._path, ""
            try:
                os.unlink(path)
            except OSError:
                pass  # Somebody has tidied up.


def _on_port(address: Address) -> list[socket.socket]:
    """Listen on all addresses that the host's name stands for, as far as this machine has them."""
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    port, listening, missing = address.port, list[socket.socket](), OSError(errno.EADDRNOTAVAIL, "no such address")
    for family, kind, protocol, _, (host, _, *more) in dict.fromkeys(found):
        try:
            each = socket.socket(family, kind, protocol)
        except OSError as error:
            missing = error
            continue
        try:
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind((host, port, *more))
            each.listen(BACKLOG)
        except OSError as error:
            each.close()
            if error.errno not in _NOT_HERE:
                for other in listening:
                    other.close()
                raise
            missing = error
            continue
        port = each.getsockname()[1]
        listening.append(each)
    if not listening:
        raise missing
    return listening


def _on_path(path: str) -> socket.socket:
    """Listen on a path; a socket that nobody listens on any more is replaced."""
    each = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_abandoned(path):
            os.unlink(path)
        each.bind(path)
        each.listen(BACKLOG)
    except OSError:
        each.close()
        raise
    return each


def _is_abandoned(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        return client.connect_ex(path) == errno.ECONNREFUSED
