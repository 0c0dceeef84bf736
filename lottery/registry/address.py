"""This file finds out whether the tracking store is a server, without importing MLflow, which takes a second."""

import os
import sys


def is_server() -> bool:
    """Returns whether MLflow's settings name a server: the URI set in this process, else its environment variable."""
    mlflow = sys.modules.get("mlflow")
    uri: str = mlflow.get_tracking_uri() if mlflow else os.environ.get("MLFLOW_TRACKING_URI", "")
    return uri.startswith("http")
