"""The command line: ``queuedtask``, that is ``python -m queuedtask``. Nothing of ours imports it."""
