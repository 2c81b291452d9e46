"""Tests of an application's tasks, with its own Queue (shop.py) on a database of each test's own."""

import pytest
import shop

from queuedtask.testing import assert_enqueued, drain, inline, perform, queue_on, refute_enqueued, travel


@pytest.fixture
def queue(queuedtask_url):
    with queue_on(shop.queue, queuedtask_url) as queue:
        yield queue


def order(number):
    """Stands for a view of the application."""
    if number < 1:
        raise ValueError("there is no such order")
    shop.queue.options(delay=60).add_task(shop.send_receipt, number)


def test_an_order_adds_a_receipt(queue):
    order(7)
    assert_enqueued(queue, shop.send_receipt, 7, having={"delay": 60})
    refute_enqueued(queue, shop.send_receipt, 8)


def test_the_receipt_is_sent_a_minute_later(queue):
    order(7)
    assert drain(queue) == []
    travel(queue, 60)
    (sent,) = drain(queue)
    assert (sent.state, sent.result, sent.context) == ("done", "receipt-7.pdf", {"receipt": {"sent": True}})
    assert [line.message for line in sent.ref.logs()] == ["sending the receipt of order 7"]


def test_a_failing_task_fails_the_test(queue):
    queue.add_task(order, 0)
    with pytest.raises(ValueError, match="no such order"):
        drain(queue, with_retries=True)


def test_without_a_database():
    with inline(shop.queue) as ran:
        order(7)
    assert [each.result for each in ran] == ["receipt-7.pdf"]
    assert perform(shop.send_receipt, 8) == "receipt-8.pdf"
