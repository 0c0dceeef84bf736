"""This file finds logged models, their ids and their folders, and deletes those that no version uses."""

import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path

TICKET = "data/ticket"  # the ticket's folder in a logged model


def find_model(client: MlflowClient, model_id: str) -> Any | None:
    """Returns the logged model, or None if it was deleted while a version still names it."""
    try:
        return client.get_logged_model(model_id)
    except MlflowException as e:
        if e.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def logged_model_id(source: str | None) -> str | None:
    """Returns the id of the logged model that a version's source names, or None if it names none."""
    match = re.fullmatch(r"models:/(m-[0-9a-f]+)", source or "")
    return match[1] if match else None


def local_path(location: str) -> Path | None:
    """Returns an artifact location as a local path, or None if a server holds the artifacts.

    MLflow itself makes the path of the location, so a `%41` in a folder's name means the same to both.
    """
    return Path(local_file_uri_to_path(location)) if urlparse(location).scheme in ("", "file") else None


def unregistered(client: MlflowClient, run: Any) -> list[Any]:
    """Returns the logged models that a run (an MLflow entity) made and that no version uses as its source."""
    made = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return [m for m in made if not client.search_model_versions(f"source_path = 'models:/{m.model_id}'")]


def delete_model(client: MlflowClient, model_id: str) -> None:
    """Deletes a logged model that nothing points to. On a server its files stay until `mlflow gc` removes them."""
    here = local_path(client.get_logged_model(model_id).artifact_location)
    client.delete_logged_model(model_id)
    if here is not None:
        shutil.rmtree(here / "data", ignore_errors=True)
