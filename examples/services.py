"""Services inside tasks, from an svcs registry: made when first asked for, closed when the attempt has ended.

Start the worker with this Queue: ``queuedtask worker -a services:queue``.
"""

import sqlite3

import svcs

from queuedtask import Queue
from queuedtask.contrib.svcs import get_service, register

queue = Queue()
registry = svcs.Registry()
register(queue, registry)


class Ledger:
    def __init__(self, connection):
        self.connection = connection

    def book(self, cents):
        self.connection.execute("INSERT INTO ledger VALUES (?)", (cents,))
        return self.connection.execute("SELECT sum(cents) FROM ledger").fetchone()[0]


def open_ledger():
    connection = sqlite3.connect("ledger.db")
    connection.execute("CREATE TABLE IF NOT EXISTS ledger (cents int)")
    yield Ledger(connection)
    connection.commit()
    connection.close()


registry.register_factory(Ledger, open_ledger)


def charge(cents):
    return get_service(Ledger).book(cents)
