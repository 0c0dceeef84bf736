"""Studies to be written, and the runs that they leave."""

from pathlib import Path
from typing import Any

import mlflow
import yaml

MEASURED = ("--measure", "perplexity", "--limit", 3, "--dataset", "builtin", "--register", "none")
QUICK = (*MEASURED, "--out", "none")  # no report


def write(folder: Path, stem: str, **study: Any) -> Path:
    path = folder / f"{stem}.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def runs(query: str) -> list[Any]:
    client = mlflow.MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(experiments, query))
