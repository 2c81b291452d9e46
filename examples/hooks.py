"""Hooks, and context that travels from a request to the tasks: a tenant that every task needs and none is given.

Start the worker with this Queue: ``queuedtask worker -a hooks:queue``.
"""

from contextvars import ContextVar

from queuedtask import Queue, clear_context, get_context, getLogger, set_context

queue = Queue()
log = getLogger(__name__)
tenant = ContextVar("tenant")


@queue.on_pre_create
def mind_the_tenant(spec):
    if "tenant" not in spec.context:
        raise PermissionError("a task needs a tenant")  # reaches the caller; nothing is written
    if spec.context["tenant"] == "acme":
        spec.priority = 10


@queue.around_run
def with_tenant(task):
    token = tenant.set(get_context("tenant"))  # seen by the task, and by nothing after it
    try:
        yield
    finally:
        tenant.reset(token)


@queue.on_post_run
def report(task, result, error):
    if error is not None:
        log.error("%s failed for %s: %r", task.function, tenant.get(), error)


def handle_request(name, order_id):
    set_context("tenant", name)
    try:
        return queue.add_task(place_order, order_id)
    finally:
        clear_context()  # the thread's next request is somebody else's


def place_order(order_id):
    queue.options(max_retries=0).add_task(send_receipt, order_id)  # inherits the tenant
    return f"order {order_id} of {tenant.get()}"


def send_receipt(order_id):
    raise ValueError("no such printer")
