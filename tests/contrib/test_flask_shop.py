"""examples/flask_shop, started by exactly the first command of its README and driven over HTTP."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode

import pytest

from helpers import wait_until

sys.path.insert(0, str(Path(__file__).parent))
from servers import Server, program

SHOP = Path(__file__).parents[2] / "examples" / "flask_shop"
pytestmark = pytest.mark.slow


def first_command() -> list[str]:
    (command,) = re.findall(r"::\n\n    (.*)\n", (SHOP / "README.rst").read_text())[:1]
    python, *arguments = str(command).split()
    assert python == "python"
    return arguments


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    environment = {"QUEUE_EMBEDDED_DIR": str(tmp_path / "db"), "QUEUE_DATABASE_URL": "", "PORT": "0"}
    yield environment
    run(environment, "db", "stop")


@pytest.fixture
def shop(environment: dict[str, str]) -> Iterator[Server]:
    with program("", *first_command(), directory=SHOP, **environment) as server:
        assert server.said(r"Running on http://", 60)
        yield server


def run(environment: dict[str, str], *arguments: str) -> str:
    paths = [str(Path(__file__).parents[2]), *sys.path]
    said = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "shop", "queuedtask", *arguments],
        cwd=SHOP,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return said.stdout


def order(shop: Server, customer: str, cents: int = 500) -> dict[str, object]:
    answer = shop.get("/orders", urlencode({"customer": customer, "cents": cents}).encode(), X_Request_ID=customer)
    return dict(json.loads(answer))


def test_the_shop(shop: Server, environment: dict[str, str]) -> None:
    def mails(number: object) -> list[str] | None:
        shown = json.loads(shop.get(f"/orders/{number}"))
        return shown["mails"] if shown["mails"] and shown["state"] == "confirmed" else None

    placed = order(shop, "ann")
    thanks = f"Thank you! Your order {placed['order']} is confirmed."
    assert wait_until(lambda: mails(placed["order"]), 30) == [thanks]

    before = json.loads(run(environment, "tasks", "--json"))
    with pytest.raises(HTTPError, match="400"):
        order(shop, "cheap", 0)
    assert json.loads(run(environment, "tasks", "--json")) == before
    assert {row["name"] for row in before} == {"shop.charge", "shop.confirm", "shop.send_mail"}

    busy = order(shop, "busy-bob")
    wait_until(lambda: mails(busy["order"]), 30)

    gone = order(shop, "gone")

    def failed() -> list[dict[str, object]]:
        return list(json.loads(run(environment, "tasks", "--state", "failed", "--json")))

    (row,) = wait_until(failed, 60)
    assert row["name"] == "shop.send_mail"
    assert mails(gone["order"]) is None
    shop.get("/mailboxes/gone", b"")
    run(environment, "retry", "--since", "1h")
    wait_until(lambda: mails(gone["order"]), 30)
    assert failed() == []
    assert "[gone] mailed to gone" in run(environment, "logs", str(row["id"]))
