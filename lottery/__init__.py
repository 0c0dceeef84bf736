"""lottery prunes a causal language model, measures the pruned model, and registers it as a ticket in MLflow."""

from typing import TYPE_CHECKING, Any

from lottery.files.home import ensure_user
from lottery.progress import quiet_libraries

__version__ = "0.1.0"
__all__ = ["Ticket", "load", "prune"]

if TYPE_CHECKING:
    from lottery.jobs.load import load
    from lottery.jobs.result import Ticket
    from lottery.jobs.run import prune


def __getattr__(name: str) -> Any:
    # The names are imported on first use, because `lottery --help` and a served model that only generates need neither
    # torch nor mlflow.
    if name in __all__:
        quiet_libraries()
        ensure_user()
        from lottery.jobs.load import load
        from lottery.jobs.result import Ticket
        from lottery.jobs.run import prune

        return {"Ticket": Ticket, "load": load, "prune": prune}[name]
    raise AttributeError(f"module 'lottery' has no attribute {name!r}")
