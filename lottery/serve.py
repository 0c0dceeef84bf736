"""The door of MLflow: the MLmodel file of every registered ticket names `lottery.serve`, those of earlier versions too."""

from lottery.registry.serve import _load_pyfunc

__all__ = ["_load_pyfunc"]
