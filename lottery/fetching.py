"""A registered ticket as a folder on this machine. With tracking.py, registry.py and serve.py all that says mlflow."""

import re
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lottery.home import home, new_folder
from lottery.registry import local_path, logged_model_id
from lottery.spec import InputError, nearest
from lottery.tracking import hide_password


@dataclass(frozen=True)
class Fetched:
    """A ticket on this machine: its folder, the logged model it is registered as, the parameters it was made with."""

    folder: Path
    model_id: str | None
    params: dict[str, str]


def fetch(client: MlflowClient, uri: str) -> Fetched:
    """models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID -> its ticket folder, in place in a local store, else
    downloaded once. Raises InputError where the registry holds no such ticket."""
    where = uri.removeprefix("models:/")
    store = hide_password(mlflow.get_registry_uri())
    try:
        if re.fullmatch(r"m-[0-9a-f]+", where):
            model_id: str | None = where
        elif match := re.fullmatch(r"([^/@]+)@([^/@]+)", where):
            model_id = logged_model_id(client.get_model_version_by_alias(match[1], match[2]).source)
        elif match := re.fullmatch(r"([^/@]+)/(\d+)", where):
            model_id = logged_model_id(client.get_model_version(match[1], match[2]).source)
        else:
            raise InputError(f"ticket={uri}: give models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID")
        if model_id is None:
            raise InputError(f"ticket={uri}: that version is no ticket; it was not registered by lottery")
        model = client.get_logged_model(model_id)
    except MlflowException as e:
        name, names = re.split("[/@]", where)[0], [m.name for m in client.search_registered_models(max_results=50)]
        if name in names:
            has = sorted(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
            known = f"it has the versions {', '.join(map(str, has))}"
        else:
            known = nearest(name, names) if names else "no model is registered there"
        raise InputError(f"ticket={uri}: not in the registry {store}; {known}") from e
    here = local_path(model.artifact_location)
    if here is not None:
        return Fetched(here / "data" / "ticket", model_id, dict(model.params or {}))
    with new_folder(home() / "fetched" / model_id, "LOTTERY_HOME") as partial:
        if partial is not None:
            mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{model_id}", dst_path=str(partial))
    return Fetched(home() / "fetched" / model_id / "data" / "ticket", model_id, dict(model.params or {}))
