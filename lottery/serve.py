"""MLflow loads a ticket through this module: the MLmodel file of every registered ticket names `lottery.serve`.

The module keeps this place, because tickets that earlier versions registered name it too.
"""

from lottery.registry.serve import _load_pyfunc

__all__ = ["_load_pyfunc"]
