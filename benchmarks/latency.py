"""How long after the call of ``add_task`` an idle worker has started the task: milliseconds."""

import time

from harness import arguments, bench, percentile, wait_for
from jobs import stamp


def main() -> None:
    options = arguments(__doc__, tasks=300)
    with bench() as b, b.worker():
        warm, sink = b.sink(), b.sink()
        for _ in range(20):
            b.queue.add_task(stamp, str(warm), time.time())
            time.sleep(0.02)
        wait_for(lambda: warm.read_bytes().count(b"\n") == 20)
        for _ in range(options.tasks):
            b.queue.add_task(stamp, str(sink), time.time())
            time.sleep(0.03)
        wait_for(lambda: sink.read_bytes().count(b"\n") == options.tasks)
        values = [float(line) for line in sink.read_text().split()]
    shares = ", ".join(f"p{share * 100:.0f} {percentile(values, share):.2f}" for share in (0.5, 0.95, 0.99))
    print(f"pick-up of {options.tasks} tasks, ms: {shares}, max {max(values):.2f}")


if __name__ == "__main__":
    main()
