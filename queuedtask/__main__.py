"""``python -m queuedtask``."""

import sys

from queuedtask.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
