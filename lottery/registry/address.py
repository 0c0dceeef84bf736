"""Whether the tracking store is a server, told without importing MLflow, which takes a second."""

import os
import sys


def is_server() -> bool:
    """Whether MLflow's own settings name a server: what it was told in this process, else its environment variable."""
    mlflow = sys.modules.get("mlflow")
    uri: str = mlflow.get_tracking_uri() if mlflow else os.environ.get("MLFLOW_TRACKING_URI", "")
    return uri.startswith("http")
