import time

from asgiref.sync import sync_to_async
from django.db import connection, transaction

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


async def count_and_order():
    """Return how many orders there are, and make one more."""
    found = await Order.objects.acount()
    await Order.objects.acreate(customer="async")
    return found


async def backend_of_a_coroutine():
    return await sync_to_async(backend)()


async def break_off_in_a_coroutine():
    await sync_to_async(break_off)()


async def block(seconds):
    """Hold up the thread in which the ORM's calls of this coroutine run."""
    await sync_to_async(time.sleep)(seconds)


async def fail_in_a_coroutine():
    await sync_to_async(fail)()


def order_and_fail():
    """Break the transaction that a test is in."""
    order = Order.objects.create(customer="ben")
    transaction.on_commit(lambda: charge.delay(order.pk))
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 / 0")
