from django.db import connection

from orders.models import Order
from queuedtask import getLogger
from queuedtask.contrib.django import queue

logger = getLogger(__name__)


@queue.task(max_retries=1, backoff=[0])
def charge(order_id, times=1):
    logger.info("charging %s", order_id)
    Order.objects.filter(pk=order_id).update(is_charged=True)
    return times


def fail(secret=None):
    raise ValueError("no money")


def backend():
    """Return the server's process behind Django's connection in this thread."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


@queue.cron("0 8 * * *")
def morning_report():
    pass


def sleep_in_the_database():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(60)")


def break_off():
    """Leave Django's connection behind as no application should."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
