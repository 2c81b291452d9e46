"""Adding tasks in your own transaction: they are there if and only if your data are."""

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from queuedtask import Config, Queue

engine = create_engine(Config.resolve().database_url or "postgresql+psycopg2:///shop")
queue = Queue(engine=engine)


def send_receipt(order_id):
    return f"receipt-{order_id}.pdf"


def place_order(order_id, cents):
    with Session(engine) as session:
        session.execute(text("INSERT INTO orders VALUES (:id, :cents)"), {"id": order_id, "cents": cents})
        queue.options(connection=session).add_task(send_receipt, order_id)
        if cents <= 0:
            raise ValueError("an order costs something")  # neither the order nor its task is there
        session.commit()


def send_all_receipts(order_ids):
    with queue.batch() as batch:  # one transaction: all of them or none
        return [batch.add_task(send_receipt, order_id) for order_id in order_ids]
