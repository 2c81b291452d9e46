from orders.models import Order
from queuedtask import current_task


def charge_at_once(order_id):
    with current_task().transaction(connection="default"):
        Order.objects.filter(pk=order_id).update(is_charged=True)
        current_task().set_result("charged")
