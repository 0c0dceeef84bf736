"""Logged models: their ids and places, those that no version is made of, and how one is deleted. MLflow alone, no torch."""

import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient


def find_model(client: MlflowClient, model_id: str) -> Any | None:
    """The logged model; None where it was deleted under its version."""
    try:
        return client.get_logged_model(model_id)
    except MlflowException as e:
        if e.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def logged_model_id(source: str | None) -> str | None:
    match = re.fullmatch(r"models:/(m-[0-9a-f]+)", source or "")
    return match[1] if match else None


def local_path(location: str) -> Path | None:
    """An artifact location as a path of this machine, None where it is behind a server."""
    parsed = urlparse(location)
    if parsed.scheme in ("", "file"):
        return Path(unquote(parsed.path) if parsed.scheme else location)
    return None


def unregistered(client: MlflowClient, run: Any) -> list[Any]:
    """The logged models that a run (an MLflow entity) made and that no version is made of."""
    made = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return [m for m in made if not client.search_model_versions(f"source_path = 'models:/{m.model_id}'")]


def delete_model(client: MlflowClient, model_id: str) -> None:
    """Delete a logged model that nothing points to. `mlflow gc` removes what is left of it behind a server."""
    here = local_path(client.get_logged_model(model_id).artifact_location)
    client.delete_logged_model(model_id)
    if here is not None:
        shutil.rmtree(here / "data", ignore_errors=True)
