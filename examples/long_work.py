"""Long work: a loop that goes on where another attempt of it ended, and ranges of ids that run side by side."""

from queuedtask import Queue, current_task, track

queue = Queue()


@queue.task(timeout=3600)
def index_customers(shop):
    with current_task().connection() as connection:
        ids = (
            connection.exec_driver_sql("SELECT id FROM customers WHERE shop = %s ORDER BY id", (shop,)).scalars().all()
        )
    for customer_id in track(ids, key="customers"):
        index(customer_id)
    return len(ids)


def index(customer_id):
    with current_task().connection() as connection:
        connection.exec_driver_sql("UPDATE customers SET indexed = indexed + 1 WHERE id = %s", (customer_id,))


@queue.task(auto_remove=True)
def index_range(first, last):
    with current_task().connection() as connection:
        connection.exec_driver_sql(
            "UPDATE customers SET indexed = indexed + 1 WHERE id BETWEEN %s AND %s", (first, last)
        )


def index_side_by_side(ids):
    return queue.options(priority=-1).add_range_tasks(index_range, ids, chunk_size=500)
