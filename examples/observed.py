"""Traces, errors and metrics of tasks. Start the worker with this Queue: ``queuedtask worker -a observed:queue``."""

import os

import sentry_sdk
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from queuedtask import Queue
from queuedtask.contrib import otel, prometheus, sentry

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))  # or an OTLPSpanExporter, to a collector
trace.set_tracer_provider(provider)
sentry_sdk.init(dsn=os.environ.get("SENTRY_DSN"), traces_sample_rate=0.1)  # without a DSN it is off

queue = Queue()
otel.instrument(queue)
sentry.register(queue)
prometheus.register(queue)
tracer = trace.get_tracer(__name__)


def place_order(order_id):
    with tracer.start_as_current_span("place order"):  # in a view, the framework's instrumentation makes one
        return queue.add_task(charge, order_id)


def charge(order_id):
    with tracer.start_as_current_span("ask the bank"):  # belongs to the trace of place_order()
        return f"order {order_id} is paid"


def metrics(environ, start_response):
    """Answer Prometheus, as any WSGI server's /metrics."""
    start_response("200 OK", [("Content-Type", prometheus.CONTENT_TYPE)])
    return [prometheus.exposition(queue)]
