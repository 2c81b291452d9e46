"""``serve`` and ``worker --http`` as real processes, driven over HTTP, signalled and killed."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import pytest
from prometheus_client.parser import text_string_to_metric_families

from helpers import apply_migrations, execute, has_begun, wait_until
from queuedtask import Queue
from queuedtask.cli import work
from queuedtask.db.embedded import EmbeddedServer
from queuedtask.errors import QueuedTaskError
from queuedtask.model.address import Address
from queuedtask.web.server import PATIENCE
from queuedtask.worker.listening import Listening

sys.path.insert(0, str(Path(__file__).parent.parent / "worker"))
from trees import Tree, tree

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow

SITE = "site_of_tests:app"
ANYWHERE = ("--bind", "127.0.0.1:0")


@contextlib.contextmanager
def serving(url: str, *arguments: str, **settings: object) -> Iterator[Tree]:
    with tree(url, *arguments, command="serve", places=[HERE], **settings) as running:
        yield running


def port_of(running: Tree, title: str = "serving on") -> int:
    """Return where it serves, once it has said so."""
    pattern = re.compile(rf"{title} http://127\.0\.0\.1:(\d+)")
    found = wait_until(
        lambda: [match for line in running.printed if (match := pattern.fullmatch(line))], 30, message=title
    )
    return int(found[0][1])


def get(port: int, path: str, timeout: float = 30, **given: object) -> tuple[int, str]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)) as connection:
        connection.request("GET", path + (f"?{urlencode(given)}" if given else ""))
        response = connection.getresponse()
        return response.status, response.read().decode()


def reasons(port: int, path: str) -> tuple[int, list[str]]:
    code, body = get(port, path)
    return code, json.loads(body)["reasons"]


def is_refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


def run(url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QUEUE_", "DATABASE_URL"))}
    paths = os.pathsep.join([str(HERE), *sys.path])
    return subprocess.run(
        [sys.executable, "-m", "queuedtask", *arguments],
        env={**kept, "QUEUE_DATABASE_URL": url, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def child(running: Tree, text: str) -> int:
    """Return the process of the tree whose command line has this text."""
    (found,) = wait_until(lambda: [pid for pid in running.children() if text in command_line(pid)], 20)
    return found


# -------------------------------------------------------------------------------------------------------- three forms


def test_an_application_alone_is_http_only(queue: Queue, database_url: str) -> None:
    with serving(database_url, SITE, *ANYWHERE) as running:
        port = port_of(running)
        assert get(port, "/hello") == (200, "hello")
        # What the application has is the application's.
        assert get(port, "/healthz") == (200, "unknown")
        assert len(running.children()) == 1
        assert queue.workers() == []
        assert running.stop() == 0
        assert is_refused(port)
        assert running.children() == []


def test_a_view_that_would_exit_is_answered_like_any_that_fails(queue: Queue, database_url: str) -> None:
    with serving(database_url, SITE, *ANYWHERE) as running:
        port = port_of(running)
        assert [get(port, path)[0] for path in ("/exit", "/exit", "/hello")] == [500, 500, 200]
        assert running.stop() == 0
        assert not [line for line in running.printed if "given up" in line]


def test_an_application_and_workers_under_one_supervisor(queue: Queue, database_url: str, tmp_path: Path) -> None:
    (tmp_path / "task may end").touch()
    with serving(database_url, SITE, "--workers=3", "-p", "2", *ANYWHERE) as running:
        port = port_of(running)
        _, task_id = get(port, "/add", directory=tmp_path)
        ref = queue.get(task_id)
        wait_until(lambda: ref.state == "done", 30)
        assert ref.result == "task"
        wait_until(lambda: [(w.supervisor_pid, w.max_workers) for w in queue.workers()] == [(running.pid, 3)] * 2, 20)
        assert len(running.children()) == 3
        assert running.stop() == 0
    assert queue.workers() == []


def test_workers_alone(queue: Queue, database_url: str) -> None:
    with serving(database_url, SITE, "--workers=2", "--no-http") as running:
        ref = queue.add_task(os.path.basename, "/a/b")
        assert ref.wait(timeout=30) == "b"
        assert "queuedtask worker" in command_line(*running.children())
        assert running.stop() == 0
        assert running.printed == []


def test_without_an_application_there_are_probes(queue: Queue, database_url: str) -> None:
    with serving(database_url, *ANYWHERE) as running:
        port = port_of(running)
        code, body = get(port, "/healthz")
        assert (code, json.loads(body)["reason"]) == (503, "no_active_workers")
        with tree(database_url, "-w", "1"):
            wait_until(lambda: get(port, "/healthz")[0] == 200, 20)
        assert reasons(port, "/live") == (200, [])
        assert reasons(port, "/ready") == (200, [])
        assert get(port, "/nothing")[0] == 404
        assert running.stop() == 0


@pytest.mark.parametrize("named", ["site_of_tests", "site_of_tests:app", "site_of_tests:create_app()"])
def test_an_application_is_found_by_its_name_or_made(queue: Queue, database_url: str, named: str) -> None:
    with serving(database_url, named, *ANYWHERE) as running:
        assert get(port_of(running), "/hello") == (200, "hello")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--no-http"], 2, "--no-http needs --workers"),
        ([SITE, "-p", "2"], 2, "--processes: needs --workers"),
        ([SITE, "--bind", "8000"], 2, "is no address, such as"),
        (["site_of_tests:nothing", *ANYWHERE], 2, "has no attribute 'nothing'"),
        (["site_of_tests:not_an_application", *ANYWHERE], 2, "no WSGI application but int"),
        (["no_such_site:app", *ANYWHERE], 1, "the application no_such_site cannot be imported"),
        (["no_such_site:app", "--workers=1", *ANYWHERE], 1, "the application no_such_site cannot be imported"),
        ([SITE, "--bind", "no.such.host.invalid:80"], 1, "cannot listen on no.such.host.invalid:80"),
        (["--liveness-file", "/no/such/place", *ANYWHERE], 1, "the liveness file /no/such/place cannot be written"),
    ],
)
def test_what_cannot_be_served_is_refused(database_url: str, arguments: list[str], code: int, said: str) -> None:
    ended = run(database_url, "serve", *arguments)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert said in ended.stderr


@pytest.mark.parametrize("command", [["serve", SITE, "--bind"], ["worker", "--http"], ["serve", "--probes"]])
def test_a_port_that_is_taken_ends_the_command_before_anything_starts(
    queue: Queue, database_url: str, command: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        more = ANYWHERE if "--probes" in command else ()
        ended = run(database_url, *command, address, *more)
    assert ended.returncode == 1
    assert ended.stderr.endswith(f"queuedtask: error: cannot listen on {address}: Address already in use\n")
    assert execute(database_url, "SELECT count(*) FROM queued_task_workers") == [(0,)]


def test_without_waitress_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "find_spec", lambda name: None)
    with pytest.raises(QueuedTaskError, match=r"pip install 'queuedtask\[http\]'"):
        work.http_server(None, Address("127.0.0.1", 0), "serving on")  # type: ignore[arg-type]


def test_the_supervisor_imports_neither_the_application_nor_sqlalchemy_nor_waitress(database_url: str) -> None:
    kept = {**os.environ, "QUEUE_DATABASE_URL": database_url, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, "-X", "importtime", "-m", "queuedtask", "serve", SITE, "--workers=1", *ANYWHERE]
    with subprocess.Popen(
        [*command, "--probes", "127.0.0.1:0"], env=kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "http://" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in said.splitlines() if "import time:" in line}
    assert "queuedtask" in imported
    assert not imported & {"sqlalchemy", "waitress", "site_of_tests", "prometheus_client"}


# ------------------------------------------------------------------------------------------------------------ addresses


def test_a_socket_in_the_file_system_is_made_and_removed(queue: Queue, database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "site.sock"
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(path))
    with serving(database_url, SITE, "--bind", f"unix:{path}") as running:
        wait_until(lambda: running.printed == [f"serving on unix:{path}"], 30)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /hello HTTP/1.0\r\n\r\n")
            with client.makefile("rb") as answer:
                assert answer.read().endswith(b"hello")
        with pytest.raises(QueuedTaskError, match="Address already in use"):
            Listening(Address(path=str(path)))
        assert running.stop() == 0
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(QueuedTaskError, match="Address already in use"):
        Listening(Address(path=str(path)))
    assert path.read_text() == "data"


def test_a_name_stands_for_all_its_addresses_with_one_port() -> None:
    listening = Listening(Address("localhost", 0))
    assert {each.getsockname()[1] for each in listening.sockets} == {listening.address.port}
    for each in listening.sockets:
        socket.create_connection(each.getsockname()[:2], timeout=5).close()
    listening.close()
    assert is_refused(listening.address.port)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_ipv6() -> None:
    listening = Listening(Address.parse("[::1]:0"))
    assert listening.address.url == f"http://[::1]:{listening.address.port}"
    listening.close()


# -------------------------------------------------------------------------------------------------------------- the end


def test_sigterm_ends_requests_first_and_tasks_then(queue: Queue, database_url: str, tmp_path: Path) -> None:
    """The request needs a worker after the signal; its task that is in flight outlives the request."""
    with serving(database_url, SITE, "--workers=2", *ANYWHERE) as running, ThreadPoolExecutor() as clients:
        port = port_of(running)
        _, task_id = get(port, "/add", directory=tmp_path)
        task = queue.get(task_id)
        answer = clients.submit(get, port, "/long", directory=tmp_path)
        wait_until(lambda: has_begun(task) and (tmp_path / "request began").exists(), 30)
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(port), 10)  # nobody is accepted any more, and both go on
        assert (task.state, answer.done(), running.process.poll()) == ("doing", False, None)

        (tmp_path / "request may end").touch()
        code, body = answer.result(30)  # with the result of a task that a worker has begun after the signal
        basename, late = body.split()
        assert (code, basename) == (200, "task")
        wait_until(lambda: len(running.children()) == 1, 10)  # the server for HTTP is gone, a worker is not
        assert (task.state, running.process.poll()) == ("doing", None)

        (tmp_path / "task may end").touch()
        assert running.process.wait(30) == 0
        assert (task.state, task.result) == ("done", "task")
        assert queue.get(late).state == "waiting"  # what was added at the last moment is there
    assert queue.workers() == []
    assert [line for line in running.log if "ERROR" in line or "WARNING" in line] == []


def test_a_request_that_does_not_end_gets_the_shutdown_timeout(queue: Queue, database_url: str, tmp_path: Path) -> None:
    arguments = (SITE, "--workers=1", *ANYWHERE, "--shutdown-timeout", "2")
    with serving(database_url, *arguments) as running, ThreadPoolExecutor() as clients:
        port = port_of(running)
        task = queue.get(get(port, "/add", directory=tmp_path)[1])
        answer = clients.submit(get, port, "/for-ever", directory=tmp_path)
        wait_until(lambda: has_begun(task) and (tmp_path / "request began").exists(), 30)
        begun = time.monotonic()
        assert running.stop() == 0
        # Both together: what the request needed of it, the task was running in.
        assert 2 <= time.monotonic() - begun < 2 + 4
        assert isinstance(answer.exception(10), http.client.RemoteDisconnected | ConnectionError)
        assert running.said("requests that are given up")
        assert (task.state, task.row().failures) == ("enqueued", 0)


def test_a_second_signal_ends_all_at_once(queue: Queue, database_url: str, tmp_path: Path) -> None:
    with (
        serving(database_url, SITE, "--workers=1", *ANYWHERE, "--shutdown-timeout", "60") as running,
        ThreadPoolExecutor() as clients,
    ):
        port = port_of(running)
        clients.submit(get, port, "/for-ever", directory=tmp_path)
        wait_until((tmp_path / "request began").exists, 30)
        running.process.send_signal(signal.SIGINT)
        wait_until(lambda: is_refused(port), 10)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(10) == 0


def test_clients_that_only_keep_a_connection_hold_nothing_up_and_what_is_half_sent_is_waited_for(
    queue: Queue, database_url: str
) -> None:
    with serving(database_url, SITE, *ANYWHERE, "--shutdown-timeout", "60") as running:
        port = port_of(running)
        idle = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        idle.request("GET", "/hello")
        assert idle.getresponse().read() == b"hello"
        reading = socket.create_connection(("127.0.0.1", port), timeout=30)
        reading.sendall(b"GET /large HTTP/1.0\r\n\r\n")
        start = reading.recv(1000)
        sending = socket.create_connection(("127.0.0.1", port), timeout=10)
        sending.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n1234")
        connected = socket.create_connection(("127.0.0.1", port), timeout=10)
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(port), 10)
        idle.sock.settimeout(PATIENCE - 1)
        assert idle.sock.recv(1) == b""
        idle.close()
        connected.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
        sending.sendall(b"5678")
        for client, ending in ((sending, b"8"), (connected, b"hello")):
            with client, client.makefile("rb") as answer:
                said = answer.read()
                assert b"Connection: close" in said
                assert said.endswith(ending)
        with reading, reading.makefile("rb") as rest:
            assert (start + rest.read()).count(b"x") >= 30_000_000
        begun = time.monotonic()
        assert running.process.wait(20) == 0
        assert time.monotonic() - begun < 10


# ------------------------------------------------------------------------------------------------- deaths, and new code


def test_a_killed_server_comes_back_on_a_socket_that_was_there_all_the_time(queue: Queue, database_url: str) -> None:
    with serving(database_url, SITE, *ANYWHERE) as running:
        port = port_of(running)
        _, before = get(port, "/pid")
        os.kill(int(before), signal.SIGKILL)
        # No client is refused, however early it comes.
        code, after = get(port, "/pid")
        assert code == 200
        assert after != before
        assert running.said("ended with SIGKILL")
        assert running.stop() == 0


def test_new_code_is_loaded_without_losing_a_request(queue: Queue, database_url: str, tmp_path: Path) -> None:
    source = (HERE / "site_of_tests.py").read_text()
    (tmp_path / "changing_site.py").write_text(source)
    done, answers, failures = threading.Event(), list[tuple[int, str]](), list[Exception]()

    def visit(port: int) -> None:
        while not done.is_set():
            try:
                answers.append(get(port, "/hello"))
            except Exception as error:
                failures.append(error)

    with tree(
        database_url, "changing_site:app", "--workers=1", *ANYWHERE, command="serve", places=[tmp_path]
    ) as running:
        port = port_of(running)
        wait_until(lambda: len(queue.workers()) == 1, 20)
        before = queue.workers()[0].id
        clients = [threading.Thread(target=visit, args=(port,)) for _ in range(3)]
        for client in clients:
            client.start()
        (tmp_path / "changing_site.py").write_text(source.replace('"hello"', '"hello again"'))
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: (200, "hello again") in answers, 30)
        wait_until(lambda: [w.id for w in queue.workers() if w.id != before] and len(queue.workers()) == 1, 30)
        (tmp_path / "changing_site.py").write_text("raise ValueError('broken code')\n")
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: running.said("goes on in its place"), 30)
        done.set()
        for client in clients:
            client.join(30)
        assert get(port, "/hello") == (200, "hello again")
        assert running.stop() == 0
    assert failures == []
    assert {code for code, _ in answers} == {200}


# --------------------------------------------------------------------------------------------------------------- probes


def test_probes_of_a_worker_from_its_start_to_its_end(queue: Queue, database_url: str, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    with tree(
        database_url, "-w", "2", "--http", "127.0.0.1:0", "--liveness-file", str(alive), places=[HERE]
    ) as running:
        port = port_of(running, "probes on")
        assert reasons(port, "/live") == (200, [])
        wait_until(lambda: reasons(port, "/ready") == (200, []), 20)
        code, body = get(port, "/healthz")
        assert (code, json.loads(body)["workers"]) == (200, 1)
        first = wait_until(lambda: alive.stat().st_mtime_ns, 10)
        wait_until(lambda: alive.stat().st_mtime_ns > first, 10)

        task = queue.add_task("site_of_tests:held", str(tmp_path), "task")
        wait_until(lambda: has_begun(task), 20)
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: reasons(port, "/ready") == (503, ["shutting down"]), 10)
        assert reasons(port, "/live") == (200, [])
        (tmp_path / "task may end").touch()
        assert running.process.wait(30) == 0
        assert task.state == "done"
        assert is_refused(port)
        assert not alive.exists()


def test_what_the_processes_of_a_tree_count_is_added_up_for_its_probes(
    queue: Queue, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICS", "1")
    places = [HERE.parent / "contrib"]
    arguments = ("-a", "observed_app:queue", "-p", "2", "-w", "2", "--http", "127.0.0.1:0")
    with tree(database_url, *arguments, places=places) as running:
        port = port_of(running, "probes on")
        for ref in [queue.add_task(os.path.basename, "/a/b") for _ in range(20)]:
            assert ref.wait(30) == "b"

        def counted() -> float:
            families = text_string_to_metric_families(get(port, "/metrics")[1])
            found = [sample for family in families for sample in family.samples]
            return sum(sample.value for sample in found if sample.name == "queuedtask_attempts_total")

        wait_until(lambda: counted() == 20, 10)
        assert running.stop() == 0


def test_a_burst_ends_although_somebody_might_ask(queue: Queue, database_url: str) -> None:
    ref = queue.add_task(os.path.basename, "/a/b")
    ended = run(database_url, "worker", "--burst", "--http", "127.0.0.1:0")
    assert ended.returncode == 0, ended.stderr
    assert ref.result == "b"


def test_an_application_s_probes_have_an_address_of_their_own(queue: Queue, database_url: str) -> None:
    with serving(database_url, SITE, "--workers=1", *ANYWHERE, "--probes", "127.0.0.1:0") as running:
        port = port_of(running, "probes on")
        wait_until(lambda: reasons(port, "/ready") == (200, []), 20)
        server = child(running, SITE)
        os.kill(server, signal.SIGSTOP)
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: running.said("the HTTP server (process") and running.said("ended with SIGKILL"), 20)
        wait_until(lambda: reasons(port, "/ready") == (200, []), 20)
        assert running.stop() == 0


def test_a_silent_worker_is_neither_ready_nor_live_and_a_busy_one_is_live(
    queue: Queue, database_url: str, tmp_path: Path
) -> None:
    alive = tmp_path / "alive"
    arguments = ("-w", "1", "--http", "127.0.0.1:0", "--liveness-file", str(alive))
    with tree(database_url, *arguments, places=[HERE], lease=2, heartbeat_interval=0.5) as running:
        port = port_of(running, "probes on")
        wait_until(lambda: reasons(port, "/ready") == (200, []), 20)
        worker = child(running, "queuedtask worker")
        os.kill(worker, signal.SIGSTOP)
        (problem,) = wait_until(lambda: reasons(port, "/live")[1], 20)
        assert re.fullmatch(rf"worker \d+ \(process {worker}\) has not answered for \d+ s", problem)
        assert reasons(port, "/live")[0] == reasons(port, "/ready")[0] == 503
        silent = alive.stat().st_mtime_ns
        os.kill(worker, signal.SIGCONT)
        wait_until(lambda: reasons(port, "/ready") == (200, []), 20)
        wait_until(lambda: alive.stat().st_mtime_ns > silent, 10)

        ref = queue.options(timeout=120).add_task("site_of_tests:held", str(tmp_path), "task")
        wait_until(lambda: has_begun(ref), 20)
        os.kill(worker, signal.SIGSTOP)  # as a call that holds the interpreter's lock would
        wait_until(lambda: reasons(port, "/ready") == (503, ["no worker process is ready"]), 20)
        assert reasons(port, "/live") == (200, [])
        os.kill(worker, signal.SIGCONT)


def test_a_supervisor_that_does_not_go_round_is_not_live(queue: Queue, database_url: str) -> None:
    with tree(database_url, "--http", "127.0.0.1:0") as running:
        port = port_of(running, "probes on")
        wait_until(lambda: reasons(port, "/ready") == (200, []), 20)
        running.signal(signal.SIGSTOP)
        ((problem,),) = wait_until(lambda: [found for code, found in [reasons(port, "/live")] if code == 503], 20)
        assert re.fullmatch(r"the supervisor has not gone round for \d+ s", problem)
        running.signal(signal.SIGCONT)
        wait_until(lambda: reasons(port, "/live") == (200, []), 20)


def test_slow_clients_of_probes_hold_up_nobody(queue: Queue, database_url: str) -> None:
    with tree(database_url, "-w", "1", "--http", "127.0.0.1:0") as running, contextlib.ExitStack() as clients:
        port = port_of(running, "probes on")
        for n in range(50):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            client.sendall(b"GET /healthz HTTP/1.1\r\nX: " + b"x" * n)
        wait_until(lambda: reasons(port, "/ready") == (200, []), 20)
        assert queue.add_task(os.path.basename, "/a/b").wait(timeout=20) == "b"
        assert running.stop() == 0


@pytest.fixture
def own_server(bin_dir: Path | None, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """Give a server of the test's own, to be stopped."""
    tmp_path.chmod(0o755)
    server = EmbeddedServer(tmp_path / "server", bin_dir=bin_dir)
    server.ensure_running()
    apply_migrations(server.url)
    yield server
    server.stop()


def test_without_its_database_a_worker_is_live_and_not_ready(own_server: EmbeddedServer) -> None:
    with tree(own_server.url, "-w", "1", "--http", "127.0.0.1:0") as running:
        port = port_of(running, "probes on")
        wait_until(lambda: reasons(port, "/ready") == (200, []), 20)
        own_server.stop()
        without = (503, ["no worker process has its connection to the database"])
        wait_until(lambda: reasons(port, "/ready") == without, 20)
        assert reasons(port, "/live") == (200, [])
        code, body = get(port, "/healthz")
        assert (code, json.loads(body)["reason"]) == (503, "database_unreachable")
        own_server.ensure_running()
        wait_until(lambda: reasons(port, "/ready") == (200, []), 30)
        wait_until(lambda: get(port, "/healthz")[0] == 200, 20)
        assert running.stop() == 0
