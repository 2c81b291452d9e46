"""Django's own tasks on queuedtask, with the settings in the same file.

python newsletter.py                                # enqueues
python -m queuedtask worker -a newsletter --burst   # runs what is there
python newsletter.py 01a210e7-fb66-786a-96ea-ef63f175b740
"""

import sys

import django
from django.conf import settings

from queuedtask.contrib.django import embedded_database

settings.configure(
    DATABASES={"default": embedded_database("newsletter")},
    INSTALLED_APPS=["queuedtask.contrib.django"],
    TASKS={
        "default": {
            "BACKEND": "queuedtask.contrib.django.QueuedTaskBackend",
            "QUEUES": ["default", "mail"],
            "OPTIONS": {"max_retries": 3, "backoff": [0, 60], "timeout": 30},
        }
    },
)
django.setup()

from django.core.management import call_command
from django.db import transaction

from queuedtask.contrib.django import queue  # also for the worker, which is given this module

try:
    from django.tasks import default_task_backend, task
except ImportError:  # before Django 6
    from django_tasks import default_task_backend, task


@task(queue_name="mail")
def send_issue(number, reader):
    return f"issue {number} for {reader}"


@task(takes_context=True, priority=10)
def ask_printer(context, number):
    if context.attempt == 1:
        raise ConnectionError("the printer is engaged")
    return f"issue {number} will be printed, said at attempt {context.attempt}"


def publish(number, readers):
    with transaction.atomic():  # all of it or nothing
        return [ask_printer.enqueue(number), *(send_issue.enqueue(number, reader) for reader in readers)]


if __name__ == "__main__":
    if sys.argv[1:]:
        result = default_task_backend.get_result(sys.argv[1])
        print(result.status, result.attempts, result.return_value if result.is_finished else "")
    else:
        call_command("migrate", verbosity=0)
        for result in publish(7, ["ada@example.org", "bob@example.org"]):
            print(result.id, queue.get(result.id).row().name)
