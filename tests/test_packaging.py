"""What people get: the wheel with everything in it, a man page that man reads, and a README that can be typed off."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEEDED_FOR_A_BUILD = ("setup.cfg", "setup.py", "pyproject.toml", "README.rst", "LICENSE", "MANIFEST.in")
MAN_PAGE = "/data/share/man/man1/queuedtask.1"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as pip does it, isolated, from a copy: a build leaves files behind in its source."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in NEEDED_FOR_A_BUILD:
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "queuedtask", source / "queuedtask", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(target), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def man_page(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("man") / "queuedtask.1"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(MAN_PAGE))
        page.write_bytes(archive.read(name))
    return page


def formatted(page: Path) -> subprocess.CompletedProcess[str]:
    """Format the man page as a terminal of 80 columns gets it, with every warning there is."""
    if shutil.which("man"):
        command = ["man", "--warnings", "--local-file", str(page)]
    elif shutil.which("groff"):
        command = ["groff", "-ww", "-k", "-man", "-Tutf8", str(page)]
    else:
        pytest.skip("neither man nor groff is installed")
    environment = os.environ | {"LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MANPAGER": "cat", "MANROFFOPT": "-c"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False
    )


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    package = ROOT / "queuedtask"
    files = [path for path in package.rglob("*") if path.suffix in {".py", ".sql"} or path.name == "py.typed"]

    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())

    assert {str(path.relative_to(ROOT)) for path in files} <= held
    assert {"queuedtask/py.typed", "queuedtask/db/migrations/0001_initial.sql"} <= held
    assert not [name for name in held if name.startswith(("tests/", "docs/", "benchmarks/", "examples/"))]


@pytest.mark.slow
def test_the_wheel_has_the_command_and_the_version(wheel: Path) -> None:
    version = re.search(r'^__version__ = "(.+)"$', (ROOT / "queuedtask/__init__.py").read_text(), re.MULTILINE)
    assert version
    info = f"queuedtask-{version[1]}.dist-info"

    with zipfile.ZipFile(wheel) as archive:
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        metadata = archive.read(f"{info}/METADATA").decode()

    assert "queuedtask = queuedtask.cli.main:main" in entry_points
    assert "[pytest11]\nqueuedtask.testing.plugin = queuedtask.testing.plugin\n" in entry_points
    assert f"\nVersion: {version[1]}\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata


@pytest.mark.slow
def test_man_reads_the_page_without_a_warning(man_page: Path) -> None:
    shown = formatted(man_page)

    assert shown.returncode == 0
    assert shown.stderr == ""
    assert re.search(r"^NAME\n +queuedtask - \w.+$", shown.stdout, re.MULTILINE)


@pytest.mark.slow
def test_the_man_page_has_every_command(man_page: Path) -> None:
    from queuedtask.cli.parser import build_parser

    (commands,) = (action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    headings = [line for line in man_page.read_text().splitlines() if line.startswith(".SS")]
    missing = [name for name in commands if not re.search(rf"queuedtask.*\b{name}\b", "\n".join(headings))]

    assert missing == []


def test_the_readme_has_two_lines_that_do_everything() -> None:
    text = (ROOT / "README.rst").read_text()
    blocks = re.findall(r"::\n\n((?: {4}.*\n)+)", text)

    main_job, tests = (block for block in blocks if "python3 -m venv" in block)

    assert main_job.count("\n") == tests.count("\n") == 1
    assert main_job.rstrip().endswith(" -m queuedtask demo")
    assert tests.rstrip().endswith("/tox")


def test_the_example_of_the_readme_is_the_file_that_is_tested() -> None:
    (block,) = re.findall(r"\.\. code-block:: python\n\n((?: {4}.*\n|\n)+)", (ROOT / "README.rst").read_text())

    assert re.sub(r"^ {4}", "", block, flags=re.MULTILINE).strip() == (ROOT / "examples/shop.py").read_text().strip()


@pytest.mark.parametrize("module", ["queuedtask", "queuedtask.cli.parser"])
def test_what_makes_the_man_page_imports_nothing_that_must_be_installed(module: str) -> None:
    code = f"import sys, {module}; print(*{{'sqlalchemy', 'psycopg2', 'rich'}} & set(sys.modules))"

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == ""
