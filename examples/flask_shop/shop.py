"""A shop on Flask and Flask-SQLAlchemy whose orders are dealt with by tasks; README.rst says how to start it."""

import os

from flask import Flask, abort, jsonify, request
from flask.typing import ResponseReturnValue
from flask_sqlalchemy import SQLAlchemy

from queuedtask import current_task, getLogger
from queuedtask.contrib.flask import QueuedTask
from queuedtask.contrib.wsgi import TaskContextMiddleware

db = SQLAlchemy()
queue = QueuedTask(db=db)
logger = getLogger(__name__)


class Order(db.Model):  # type: ignore[name-defined]
    id = db.Column(db.Integer, primary_key=True)
    customer = db.Column(db.Text, nullable=False)
    cents = db.Column(db.Integer, nullable=False)
    state = db.Column(db.Text, nullable=False, default="new")


class Mail(db.Model):  # type: ignore[name-defined]
    id = db.Column(db.Integer, primary_key=True)
    recipient = db.Column(db.Text, nullable=False)
    text = db.Column(db.Text, nullable=False)


class Mailbox(db.Model):  # type: ignore[name-defined]
    name = db.Column(db.Text, primary_key=True)


# ----------------------------------------------------------------------------------------------------------- the tasks


@queue.task()
def charge(order_id: int) -> str:
    """Charge the customer. The receipt's number is the task's id, so that no second attempt charges twice."""
    db.session.get_one(Order, order_id).state = "paid"
    db.session.commit()
    return current_task().id


@queue.task()
def confirm(order_id: int) -> None:
    """Confirm a paid order; this and the mail's task are there together, or not at all."""
    order = db.session.get_one(Order, order_id)
    order.state = "confirmed"
    queue.add_task(send_mail, order.customer, f"Thank you! Your order {order.id} is confirmed.")
    db.session.commit()


@queue.task(max_retries=2, backoff=[0.5, 0.5], retry_on=ConnectionError)
def send_mail(recipient: str, text: str) -> None:
    """Send a mail, as far as a shop without a mail server can."""
    if recipient.startswith("busy") and current_task().attempt == 1:
        raise ConnectionError("the mail server is busy")
    if recipient == "gone" and db.session.get(Mailbox, recipient) is None:
        raise LookupError("there is no such mailbox")
    db.session.add(Mail(recipient=recipient, text=text))
    db.session.commit()
    logger.info("mailed to %s", recipient)


# ------------------------------------------------------------------------------------------------------------ the shop


def create_app() -> Flask:
    app = Flask(__name__)
    queue.init_app(app)
    # The shop shares the queue's database: QUEUE_DATABASE_URL, or the embedded one. Usually it is the other way round,
    # and the queue finds the shop's SQLALCHEMY_DATABASE_URI.
    app.config["SQLALCHEMY_DATABASE_URI"] = app.extensions["queuedtask"].database.engine.url
    db.init_app(app)
    app.wsgi_app = TaskContextMiddleware(app.wsgi_app)  # type: ignore[method-assign]
    with app.app_context():
        db.create_all()

    @app.post("/orders")
    def order() -> ResponseReturnValue:
        order = Order(customer=request.form["customer"], cents=int(request.form["cents"]))
        db.session.add(order)
        db.session.flush()
        paid = queue.add_task(charge, order.id)
        queue.add_task(confirm, order.id, parent=paid)
        if order.cents <= 0:
            db.session.rollback()  # and with the order go its tasks
            abort(400, "an order costs something")
        db.session.commit()
        return jsonify(order=order.id, task=paid.id), 201

    @app.get("/orders/<int:number>")
    def show(number: int) -> ResponseReturnValue:
        order = db.get_or_404(Order, number)
        mails = db.session.scalars(db.select(Mail).filter_by(recipient=order.customer))
        return jsonify(customer=order.customer, state=order.state, mails=[mail.text for mail in mails])

    @app.post("/mailboxes/<name>")
    def open_mailbox(name: str) -> ResponseReturnValue:
        db.session.add(Mailbox(name=name))
        db.session.commit()
        return "", 204

    return app


if __name__ == "__main__":
    app = create_app()
    # Good for trying it out. In production `flask --app shop queuedtask worker` runs apart.
    queue.start_worker(slots=2)
    app.run(port=int(os.environ.get("PORT", "5000")))
