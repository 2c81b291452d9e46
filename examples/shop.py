from queuedtask import Queue, getLogger, set_context

queue = Queue()


def send_receipt(order_id):
    getLogger(__name__).info("sending the receipt of order %s", order_id)
    set_context("receipt.sent", True)
    return f"receipt-{order_id}.pdf"
