"""Tasks that log."""

import logging

logger = logging.getLogger("shop")


def tell(text: str) -> None:
    logger.info(text, extra={"order": 7})


class Silent:
    """What cannot be written at all."""

    def __repr__(self) -> str:
        raise RuntimeError


def log_awkwardly() -> None:
    logger.info("two\nlines \u2028 \udc80")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        logger.exception("it failed")
    logger.info("%d of them", "three")
    logger.info("a number", extra={"share": float("nan")})
    logger.info("fields of ours stay", extra={"level": "odd", "task_id": None, "order": {"id": 7}})
    logger.info({"rows": 3})
    logger.info({"message": "order paid", "level": "odd"})
    logger.info(Silent())
    logger.info("here", stack_info=True)
