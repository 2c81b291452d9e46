"""A WSGI application whose requests add tasks. One command serves it and runs them, on the embedded database:

queuedtask serve serve_site:app --workers=3 -a serve_site

curl -d 7 http://127.0.0.1:8000/orders        # 202, with the id of the task
curl http://127.0.0.1:8000/orders/<that id>   # its state and result
"""

from queuedtask import Queue, TaskNotFound

queue = Queue()


def send_receipt(order):
    return f"receipt-{order}.pdf"


def app(environ, start_response):
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    if (method, path) == ("POST", "/orders"):
        order = int(environ["wsgi.input"].read())
        status, text = "202 Accepted", queue.add_task(send_receipt, order).id
    elif method == "GET" and path.startswith("/orders/"):
        try:
            row = queue.get(path.removeprefix("/orders/")).row()
            status, text = "200 OK", f"{row.state} {row.result}"
        except (TaskNotFound, ValueError):
            status, text = "404 Not Found", "no such order"
    else:
        status, text = "404 Not Found", "POST /orders, GET /orders/<id>"
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]
