from django.conf import settings

from orders.models import Order
from queuedtask import current_task, getLogger
from queuedtask.contrib.django import queue

logger = getLogger(__name__)

# How often the mail to somebody fails before it gets through.
FAILURES = {"flaky@example.com": 1, "late@example.com": 2}


@queue.task(max_retries=5)
def charge(order_id):
    # The charge and the end of this task are committed together: nobody is charged twice.
    with current_task().transaction(connection="default"):
        Order.objects.filter(pk=order_id).update(state="charged")


def confirm(order_id):
    Order.objects.filter(pk=order_id).update(state="confirmed")


@queue.task(channel="mail", max_retries=1, backoff=[1])
def mail_receipt(order_id):
    order = Order.objects.get(pk=order_id)
    if current_task().attempt <= FAILURES.get(order.email, 0):
        raise ConnectionError(f"the mail server of {order.email} does not answer")
    settings.OUTBOX.mkdir(exist_ok=True)
    text = f"To: {order.email}\n\nOrder {order.pk}: {order.cents / 100:.2f}. Thank you!\n"
    (settings.OUTBOX / f"order-{order.pk}.txt").write_text(text)
    Order.objects.filter(pk=order_id).update(state="mailed")
    logger.info("the receipt of order %s is on its way", order_id)
