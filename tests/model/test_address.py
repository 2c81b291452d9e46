"""Addresses as people write them."""

import pytest

from queuedtask.model.address import Address


@pytest.mark.parametrize(
    ("text", "meant", "url"),
    [
        ("127.0.0.1:8000", Address("127.0.0.1", 8000), "http://127.0.0.1:8000"),
        ("localhost:0", Address("localhost", 0), "http://localhost:0"),
        ("[::1]:65535", Address("::1", 65535), "http://[::1]:65535"),
        ("[fe80::1%eth0]:80", Address("fe80::1%eth0", 80), "http://[fe80::1%eth0]:80"),
        ("unix:/run/a b.sock", Address(path="/run/a b.sock"), "unix:/run/a b.sock"),
    ],
)
def test_an_address_is_read_and_written(text: str, meant: Address, url: str) -> None:
    assert Address.parse(text) == meant
    assert (str(meant), meant.url) == (text, url)


@pytest.mark.parametrize(
    "text",
    [
        *("", "8000", ":8000", "host", "host:", "host:x", "host:65536", "host:-1", "::1:80", "[::1]", "[host]:80"),
        *("unix:", "unix:a.sock", "http://host:80", "host:80/", "host:80\n", "[]:80", "host:٣", "a b:1"),
    ],
)
def test_anything_else_is_refused_with_what_would_do(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"is no address, such as 127\.0\.0\.1:8000, \[::1\]:8000, localhost:0 or unix"
    ):
        Address.parse(text)
