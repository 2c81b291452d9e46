"""The application of a worker of its own: its spans go to a file of JSON lines, its metrics where they are told."""

import os
from pathlib import Path

import observed_jobs
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from queuedtask import Queue
from queuedtask.contrib import otel, prometheus

queue = Queue()
observed_jobs.queues.append(queue)
provider = TracerProvider()
if "SPANS" in os.environ:
    out = Path(os.environ["SPANS"]).open("a", buffering=1)  # noqa: SIM115 (open to the end)
    exporter = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\n")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    otel.instrument(queue, provider)
if "METRICS" in os.environ:
    prometheus.register(queue)
