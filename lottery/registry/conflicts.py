"""This file repeats a step of MLflow that failed because another process wrote the same at the same moment.

MLflow looks whether a row is there and then inserts it. Of two processes that look at the same moment, the second one
gets the database's error, also from a server, whose answer (HTTP 400) MLflow's client does not repeat.
"""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from mlflow.exceptions import MlflowException

T = TypeVar("T")
ATTEMPTS = 10
CONFLICTS = (
    "UNIQUE constraint failed",  # SQLite
    "duplicate key value",  # PostgreSQL
    "Duplicate entry",  # MySQL
    "database is locked",  # SQLite, after MLflow has waited for 20 s
    "Model Version creation error",  # MLflow counted the versions three times, and each time another process was faster
)


def repeat_on_conflict(step: Callable[[], T]) -> T:
    """Returns what `step` returns, and repeats it while another process is in its way. A step that failed has changed
    nothing in the store."""
    for attempt in range(1, ATTEMPTS):
        try:
            return step()
        except MlflowException as e:
            if not is_conflict(e):
                raise
            time.sleep(0.1 * random.random() * attempt)
    return step()


def is_conflict(e: MlflowException) -> bool:
    return e.error_code == "RESOURCE_ALREADY_EXISTS" or any(text in str(e) for text in CONFLICTS)
