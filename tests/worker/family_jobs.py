"""What the tasks of families do. Imported by the workers, too."""

from queuedtask import Cancel, Queue, Retry, current_task


def member(*turns: str) -> str:
    """Do what is said for this attempt: ok, fail, again or cancel; the last one holds for all later ones."""
    turn = turns[min(current_task().attempt, len(turns)) - 1]
    if turn == "fail":
        raise ValueError("told to fail")
    if turn == "again":
        raise Retry(delay=0.01)
    if turn == "cancel":
        raise Cancel("told to cancel")
    return turn


def results_of_parents() -> list[object]:
    return [parent.result for parent in current_task().parents]


def with_children(url: str) -> list[str]:
    """Add a child and one that waits for that; return their ids."""
    queue = Queue(url)
    child = queue.add_task(member, "ok", parent=current_task().ref)
    last = queue.add_task(results_of_parents, parent=[child, current_task().id])
    queue.close()
    return [child.id, last.id]


def nothing() -> None:
    """Do nothing."""
