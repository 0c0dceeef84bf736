"""Where models come from: a word, a path or a hub id -> the base or the ticket on this machine."""

import re
from pathlib import Path

from lottery.errors import InputError
from lottery.files.home import resolve_path
from lottery.files.reading import read_json
from lottery.models import architecture, hub
from lottery.models.checkpoint import BUILTIN, SMALL_FILES, Base, shard_names
from lottery.models.families import family
from lottery.models.hub import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


def open_base(model: str, *, local_only: bool = False, config_only: bool = False) -> Base:
    """The dense model that `builtin`, a local folder or a hub id means, fetched where it is not here yet.

    `local_only`: do not ask the hub. `config_only`: config.json alone will do, and nothing larger is fetched. Raises
    InputError where there is no such model, or one that cannot be used; MachineError where the hub fails.
    """
    revision = None
    folder = BUILTIN if model == "builtin" else local_folder(model)
    if folder is None:
        if not hub.is_id(model):
            raise InputError(
                f"model={model}: there is no such folder; give builtin, a local folder or a hub id (ORG/NAME)"
            )
        small = (*SMALL_FILES, hub.CARD, *hub.LICENCES)
        found = hub.fetch_snapshot(model, small, check_config, local_only, weights=not config_only)
        folder, name, revision = found.folder, found.id, found.revision
    elif match := re.fullmatch(r"models--(.+?)--(.+)/snapshots/([0-9a-f]{40})", "/".join(folder.parts[-3:])):
        name, revision = f"{match[1]}/{match[2]}", match[3]
    else:
        name = "builtin" if model == "builtin" else folder.name
    if not (folder / "config.json").exists():
        raise InputError(f"model={model}: it has no config.json; give a folder in Hugging Face layout")
    check_config(read_json(folder / "config.json"))
    tied = architecture.is_tied(folder)
    bare = config_only and not has_weights(folder, partly=revision is None)
    return Base(
        folder, name, tied=tied, revision=revision, outline=architecture.tensors_from_config(folder) if bare else None
    )


def has_weights(folder: Path, partly: bool) -> bool:
    """Whether all files of the weights are there, or `partly` some: of a local folder, what is missing is an error then.

    Pickled ones count, so that they are refused as such.
    """
    if (folder / SAFE_WEIGHTS_NAME).exists() or any(folder.glob("*.bin")):
        return True
    if not (folder / SAFE_WEIGHTS_INDEX_NAME).exists():
        return partly and any(folder.glob("*.safetensors"))
    return partly or all((folder / name).exists() for name in shard_names(folder, f"model={folder}"))


def local_folder(model: str) -> Path | None:
    """The folder that a path names, None where there is none."""
    folder = resolve_path(model, "model")
    return folder if folder.is_dir() else None


def check_config(config: dict[str, object]) -> None:
    """Raises InputError for an architecture that is not known, before anything large is fetched."""
    family(str(config.get("model_type", "")))
