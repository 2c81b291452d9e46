"""Tests of the shop, each with an application and a database of its own: run ``pytest`` in this directory."""

import pytest
import shop

from queuedtask.testing import drain, queue_on, refute_enqueued


@pytest.fixture
def client(queuedtask_url):
    with queue_on(shop.queue, queuedtask_url):
        yield shop.create_app().test_client()


def test_an_order_is_charged_confirmed_and_mailed(client):
    assert client.post("/orders", data={"customer": "ann", "cents": 500}).status_code == 201
    assert [ran.name for ran in drain(shop.queue)] == ["shop.charge", "shop.confirm", "shop.send_mail"]
    assert client.get("/orders/1").json == {
        "customer": "ann",
        "state": "confirmed",
        "mails": ["Thank you! Your order 1 is confirmed."],
    }


def test_a_refused_order_leaves_no_task(client):
    assert client.post("/orders", data={"customer": "ann", "cents": 0}).status_code == 400
    refute_enqueued(shop.queue, shop.charge)


def test_a_busy_mail_server_is_tried_again(client):
    client.post("/orders", data={"customer": "busy-bob", "cents": 500})
    *_, first, second = drain(shop.queue, with_retries=True)
    assert (first.state, str(first.error), second.state) == ("waiting", "the mail server is busy", "done")
