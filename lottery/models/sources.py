"""Opens the base model that a word, a path or a hub id names, and fetches it first if it is not on this machine."""

import re
from functools import partial
from pathlib import Path

from lottery.errors import InputError
from lottery.files.home import printable, resolve_path
from lottery.files.reading import read_json
from lottery.models import architecture, hub
from lottery.models.checkpoint import BUILTIN, SMALL_FILES, Base, shard_names
from lottery.models.families import family
from lottery.models.hub import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


def open_base(model: str, *, local_only: bool = False, config_only: bool = False) -> Base:
    """Returns the dense model that `builtin`, a local folder or a hub id names. It is fetched if it is not here yet.

    With `local_only` the hub is not asked. With `config_only` config.json is enough, and nothing larger is fetched.
    Raises InputError when there is no such model or it cannot be used, and MachineError when the hub fails.
    """
    revision, check = None, partial(check_config, what=f"model={model}")
    folder = BUILTIN if model == "builtin" else local_folder(model)
    if folder is None:
        if not hub.is_id(model):
            problem = "it is a file, and not a model's folder" if Path(model).is_file() else "there is no such folder"
            raise InputError(f"model={model}: {problem}; give builtin, a local folder or a hub id (ORG/NAME)")
        small = (*SMALL_FILES, hub.CARD, *hub.LICENCES)
        snapshot = hub.fetch_snapshot(model, small, check, local_only, weights=not config_only)
        folder, name, revision = snapshot.folder, snapshot.id, snapshot.revision
    elif match := re.fullmatch(r"models--(.+?)--(.+)/snapshots/([0-9a-f]{40})", "/".join(folder.parts[-3:])):
        name, revision = f"{match[1]}/{match[2]}", match[3]
    else:
        name = "builtin" if model == "builtin" else printable(folder.name)
    if not (folder / "config.json").exists():
        raise InputError(f"model={model}: it has no config.json; give a folder in Hugging Face layout")
    check(read_json(folder / "config.json"))
    tied = architecture.is_tied(folder)
    without_weights = config_only and not has_weights(folder, partly=revision is None)
    outline = architecture.tensors_from_config(folder) if without_weights else None
    return Base(folder, name, tied=tied, revision=revision, outline=outline)


def has_weights(folder: Path, partly: bool) -> bool:
    """Returns whether the folder holds all files of the weights, or with `partly` some of them.

    A local folder counts with some, so that `Base` reports a missing file as an error. Pickled weights count too, so
    that `Base` refuses them as pickles.
    """
    if (folder / SAFE_WEIGHTS_NAME).exists() or any(folder.glob("*.bin")):
        return True
    if not (folder / SAFE_WEIGHTS_INDEX_NAME).exists():
        return partly and any(folder.glob("*.safetensors"))
    return partly or all((folder / name).exists() for name in shard_names(folder, f"model={folder}"))


def local_folder(model: str) -> Path | None:
    """Returns the folder that a path names, or None when there is none."""
    folder = resolve_path(model, "model")
    return folder if folder.is_dir() else None


def check_config(config: dict[str, object], what: str) -> None:
    """Raises InputError, which begins with `what`, for an unknown architecture, before anything large is fetched."""
    family(str(config.get("model_type") or ""), what)
