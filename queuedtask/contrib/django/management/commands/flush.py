"""``manage.py flush``, which also goes between the tests of a TransactionTestCase: with the queue's tables.

Django leaves those where they are, because it does not manage them.
"""

from typing import Any

from django.core.management.commands import flush
from django.db import connections

from queuedtask.contrib.django import schema


class Command(flush.Command):
    """Django's own command, and what is ours along with it."""

    def handle(self, **options: Any) -> None:
        """Empty the tables, once Django has been told that it is really meant."""
        alias = options["database"]
        operations: Any = connections[alias].ops
        execute_sql_flush = operations.execute_sql_flush

        def execute_with_ours(sql_list: list[str]) -> None:
            execute_sql_flush(sql_list)
            schema.empty(alias)

        operations.execute_sql_flush = execute_with_ours
        try:
            super().handle(**options)
        finally:
            del operations.execute_sql_flush
