"""The pure core: states, tasks, outcomes, function paths and the codec. No I/O, no SQL, no threads."""
