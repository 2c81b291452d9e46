"""The cases in ``project/orders/tests.py``, run by Django's own runner with each driver, and with other Djangos."""

import importlib.util

import pytest

from contrib.django.projects import Project

pytest.importorskip("django", reason="Django is not installed")


@pytest.mark.slow
@pytest.mark.parametrize(("driver", "options"), [("psycopg2", ()), ("psycopg", ("--parallel", "2"))])
def test_in_djangos_test_databases(empty_database_url: str, driver: str, options: tuple[str, ...]) -> None:
    if importlib.util.find_spec(driver) is None:
        pytest.skip(f"{driver} is not installed")
    said = Project(empty_database_url, driver).manage("test", "orders", *options).stderr
    assert "OK" in said.splitlines()


@pytest.mark.slow
def test_without_migrations(empty_database_url: str) -> None:
    project = Project(empty_database_url, MIGRATION_MODULES={"queuedtask": None, "orders": None})
    said = project.manage("test", "orders.tests.InATest", "orders.tests.WithCommits").stderr
    assert "OK" in said.splitlines()
