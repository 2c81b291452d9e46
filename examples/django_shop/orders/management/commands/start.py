"""Everything in one command, to try the shop; in production these are three, each with a service of its own."""

import signal
import socket
import subprocess
import sys

from django.conf import settings
from django.core.management import BaseCommand, call_command


class Command(BaseCommand):
    help = "Make the tables, and run a worker and the web server until Ctrl-C."

    def handle(self, **options):
        call_command("migrate", verbosity=0)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        worker = subprocess.Popen(
            [sys.executable, "manage.py", "queuedtask", "worker", "-w", "4"], cwd=settings.BASE_DIR, process_group=0
        )
        try:
            port = free_port(8000)
            self.stdout.write(f"The shop is open: http://127.0.0.1:{port}/orders")
            self.stdout.flush()
            call_command("runserver", f"127.0.0.1:{port}", use_reloader=False)
        finally:
            worker.terminate()
            worker.wait()


def free_port(wanted):
    """Return this port, or another one if somebody has it."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise AssertionError("there is always a free one")
