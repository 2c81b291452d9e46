"""examples/django_shop, started by the first command of its README and used over HTTP."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from helpers import wait_until
from queuedtask import Queue

pytest.importorskip("django", reason="Django is not installed")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


class Shop(NamedTuple):
    directory: Path
    environment: dict[str, str]
    url: str

    def ask(self, path: str = "", **form: str) -> tuple[int, Any]:
        data = urllib.parse.urlencode(form).encode() if form else None
        try:
            with urllib.request.urlopen(self.url + path, data, timeout=20) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with closing(error):
                return error.code, json.load(error)

    def manage(self, *arguments: str) -> str:
        command = [sys.executable, "manage.py", *arguments]
        return subprocess.run(
            command, cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout


@pytest.fixture
def shop(server: Any, tmp_path: Path) -> Iterator[Shop]:
    """Run the shop in a copy of the example, with a database on the tests' server."""
    directory = tmp_path / "django_shop"
    shutil.copytree(ROOT / "examples" / "django_shop", directory)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QUEUE_", "DATABASE_URL"))}
    environment = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "QUEUE_EMBEDDED_DIR": str(server.directory),
    }
    commands = [line.strip() for line in (directory / "README.rst").read_text().splitlines() if "$ " in line]
    process = subprocess.Popen(
        commands[0].removeprefix("$ ").split(), cwd=directory, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert said.startswith("The shop is open: http://127.0.0.1:"), said
        yield Shop(directory, environment, said.split()[-1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)
    assert process.returncode == 0


def test_the_shop(shop: Shop) -> None:
    def answers() -> bool:
        try:
            return shop.ask("/4711000")[0] == 404
        except (urllib.error.URLError, json.JSONDecodeError):
            return isinstance(sys.exception(), json.JSONDecodeError)  # a page that says 404

    wait_until(answers, 30)
    url = shop.manage("queuedtask", "db", "url").strip()
    with closing(Queue(url)) as queue:
        status, plain = shop.ask(email="ann@example.com", cents="500")
        assert status == 201
        flaky, late = (shop.ask(email=f"{who}@example.com", cents="700")[1] for who in ("flaky", "late"))
        before = len(queue.find(limit=None))
        status, refused = shop.ask(email="ann@example.com", cents="0")
        assert (status, refused) == (400, {"error": "an order costs something"})
        assert len(queue.find(limit=None)) == before == 9

        def state(placed: dict[str, Any]) -> str:
            return str(shop.ask(f"/{placed['order']}")[1]["state"])

        wait_until(lambda: state(plain) == "mailed", 30)
        receipt = (shop.directory / "outbox" / f"order-{plain['order']}.txt").read_text()
        assert receipt == f"To: ann@example.com\n\nOrder {plain['order']}: 5.00. Thank you!\n"
        wait_until(lambda: state(flaky) == "mailed", 30)
        assert queue.get(flaky["mail"]).row().failures == 1
        wait_until(lambda: queue.get(late["mail"]).state == "failed", 30)
        assert state(late) == "confirmed"
        (failed,) = json.loads(shop.manage("queuedtask", "tasks", "--state", "failed", "--json"))
        assert failed["id"] == late["mail"]
        shop.manage("queuedtask", "retry", failed["id"])
        wait_until(lambda: state(late) == "mailed", 30)
