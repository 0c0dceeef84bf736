"""Tracking stores, and what they hold."""

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow

from lottery.files.home import home

# MLflow makes a store's tables in many migrations. They are done once a machine and version, and the file is copied.
MIGRATED = home() / f"tests-mlflow-{mlflow.__version__}.db"


def new_store(path: Path, artifacts: str | None = None) -> str:
    """The URI of a fresh SQLite store at `path`, with all its tables.

    `artifacts`: the place of the default experiment's; else the folder `mlruns` of the working directory, as MLflow has it.
    """
    if not MIGRATED.exists():
        MIGRATED.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=MIGRATED.parent) as folder:
            mlflow.MlflowClient(f"sqlite:///{folder}/new.db").search_experiments()
            os.replace(f"{folder}/new.db", MIGRATED)
    shutil.copyfile(MIGRATED, path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("update experiments set artifact_location = ?", (f"{artifacts or f'{Path.cwd()}/mlruns'}/0",))
        db.commit()
    return f"sqlite:///{path}"


def only_run() -> Any:
    """The newest run of the store."""
    experiments = [e.experiment_id for e in mlflow.MlflowClient().search_experiments()]
    return mlflow.MlflowClient().search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)[0]
