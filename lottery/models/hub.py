"""Fetches models from the Hugging Face hub into its own cache. Only this file and hub_datasets.py import huggingface_hub.

The functions import it themselves, because it reads HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and its time-outs on import.
"""

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lottery.errors import InputError, MachineError, path_error, without_subject
from lottery.files.reading import parse_json
from lottery.progress import Advance, progress_bar, say

SAFE_WEIGHTS_NAME = "model.safetensors"
SAFE_WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
CARD = "README.md"
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
NO_FOLDER = "there is no such folder, and "  # the hub is asked only for a model that no folder has the name of
LOGIN = "set HF_TOKEN or run `hf auth login`"

CheckConfig = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit in the hub's cache."""

    folder: Path
    id: str
    revision: str


def is_id(model: str) -> bool:
    """Returns whether a text looks like NAME or ORG/NAME, with or without @REVISION (a branch, tag or commit)."""
    return model.isprintable() and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?(@\S+)?", model, re.ASCII) is not None


def fetch_snapshot(
    model: str,
    small_files: Sequence[str],
    check_config: CheckConfig | None = None,
    local_only: bool = False,
    weights: bool = True,
) -> Snapshot:
    """Returns a snapshot with config.json, the safetensors weights and the existing `small_files` of one commit.

    `check_config` gets config.json before a weight is downloaded. Without `weights` only config.json is fetched.
    Offline, with `local_only`, and when the hub cannot be reached, the files come from the cache alone. Raises
    InputError when the model cannot be used or is not in the cache, and MachineError when the hub, the network or the
    disk fails.
    """
    from huggingface_hub import HfApi, constants, is_offline_mode

    what = f"model={model}"
    repo, _, revision = model.partition("@")
    revision = revision or constants.DEFAULT_REVISION
    at = f" --revision {revision}" if revision != constants.DEFAULT_REVISION else ""
    unreached = None
    if not (local_only or is_offline_mode()):
        try:
            with hub_errors(what, repo, revision):
                info = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        except MachineError as e:
            unreached = e
        else:
            names = {file.rfilename for file in info.siblings or ()}
            folder = download(what, repo, revision, names, small_files, check_config, weights)
            return Snapshot(folder, repo, folder.name)

    folder, missing = in_cache(what, repo, revision, weights)
    if missing:
        if unreached:
            raise MachineError(f"{what}: {NO_FOLDER}{without_subject(unreached)}") from unreached
        raise InputError(
            f"{what}: there is no such folder; offline, and the cache {constants.HF_HUB_CACHE} has no {', '.join(missing)}; "
            f"unset HF_HUB_OFFLINE, or run `hf download {repo}{at}`"
        )
    if unreached:
        say(f"warning: {unreached}; meanwhile the cached commit {folder.name} is used")
    if check_config:
        check_config(read_json(what, folder / "config.json"))
    return Snapshot(folder, repo, folder.name)


def in_cache(what: str, repo: str, revision: str, weights: bool = True) -> tuple[Path, list[str]]:
    """Returns (the snapshot's folder, the names of the files that a model needs and the cache does not have)."""
    from huggingface_hub import try_to_load_from_cache

    def find(name: str) -> Path | None:
        path = try_to_load_from_cache(repo, name, revision=revision)
        return Path(path) if isinstance(path, str) else None

    config, index = find("config.json"), find(SAFE_WEIGHTS_INDEX_NAME)
    missing = [] if config else ["config.json"]
    if weights and not find(SAFE_WEIGHTS_NAME):
        missing += [name for name in indexed_shards(what, index) if not find(name)] if index else [SAFE_WEIGHTS_NAME]
    return config.parent if config else Path(), missing


def download(
    what: str,
    repo: str,
    revision: str,
    names: Collection[str],
    small_files: Sequence[str],
    check_config: CheckConfig | None,
    weights: bool,
) -> Path:
    """Downloads the needed files among the repository's files `names`. Returns the snapshot's folder."""
    require_safetensors(what, repo, names)
    # The branch is asked for by its name: only then does the library record its commit, for offline use.
    folder = Path(download_file(what, repo, revision, "config.json")).parent
    commit = folder.name
    if check_config:
        check_config(read_json(what, folder / "config.json"))
    if weights:
        shards = published_shards(what, repo, commit, names)
        # The weights come last: once the cache has them it has the other files too, wherever a download was cut off.
        download_files(what, repo, folder, [*(name for name in small_files if name in names), *shards])
    return folder


def require_safetensors(what: str, repo: str, names: Collection[str]) -> None:
    """Raises InputError unless the repository's files `names` are those of a model in safetensors."""
    if "config.json" not in names:
        raise InputError(f"{what}: {repo} has no config.json; give a model in the layout of transformers")
    if SAFE_WEIGHTS_NAME in names or SAFE_WEIGHTS_INDEX_NAME in names:
        return
    if any(re.fullmatch(r"pytorch_model.*\.bin", name) for name in names):
        raise InputError(
            f"{what}: {repo} has its weights only as pytorch_model*.bin, which lottery never reads, because a pickle can "
            f"run code; convert it to safetensors, or give a @REVISION that has safetensors files (often refs/pr/N)"
        )
    raise InputError(
        f"{what}: {repo} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}; give a model that has one of them"
    )


def published_shards(what: str, repo: str, commit: str, names: Collection[str]) -> list[str]:
    """Returns the files that hold the weights. Raises InputError when the repository lacks one that its index names."""
    if SAFE_WEIGHTS_NAME in names:
        return [SAFE_WEIGHTS_NAME]
    shards = indexed_shards(what, Path(download_file(what, repo, commit, SAFE_WEIGHTS_INDEX_NAME)))
    if absent := [name for name in shards if name not in names]:
        raise InputError(
            f"{what}: {SAFE_WEIGHTS_INDEX_NAME} names {', '.join(absent)}, which {repo} lacks; give another revision"
        )
    return shards


def download_file(what: str, repo: str, revision: str, name: str, **settings: Any) -> Any:
    """Returns what `hf_hub_download` returns. Raises InputError or MachineError, as `hub_errors` does."""
    from huggingface_hub import hf_hub_download

    with hub_errors(what, repo, revision, settings.get("repo_type", "model")):
        return hf_hub_download(repo, name, revision=revision, **settings)


def download_files(what: str, repo: str, folder: Path, names: Sequence[str]) -> None:
    """Downloads the files that a snapshot's folder lacks. Raises MachineError when the disk has no room for them."""
    commit = folder.name
    files = [download_file(what, repo, commit, name, dry_run=True) for name in names]
    new = [file for file in files if not Path(file.local_path).exists()]
    download_bytes = sum(file.file_size or 0 for file in new if file.will_download)
    check_room(what, download_bytes, folder)
    if new:
        with progress_bar(f"download {repo}", download_bytes, "bytes") as advance:
            for file in new:  # one after the other: Ctrl-C ends it at once, and hf_xet is parallel within a file
                download_file(what, repo, commit, file.filename, tqdm_class=tqdm_class_for(advance))


def check_room(what: str, download_bytes: int, folder: Path) -> None:
    """Raises MachineError when the disk of a folder in the hub's cache has no room for a download."""
    from huggingface_hub import constants

    if download_bytes > (free := shutil.disk_usage(folder).free):
        raise MachineError(
            f"{what}: {download_bytes / 1e9:.2f} GB to download, {free / 1e9:.2f} GB free in {constants.HF_HUB_CACHE}; "
            f"make room, or set HF_HOME to a larger disk"
        )


def read_json(what: str, path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises InputError, which begins with `what`, when there is none."""
    try:
        content = parse_json(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{what}: its {path.name} is not a JSON object; give another model or revision")
    return content


def indexed_shards(what: str, index: Path) -> list[str]:
    """Returns the files that an index names for the weights. Raises InputError unless they are safetensors names."""
    weight_map = read_json(what, index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    for name in names or [None]:
        plain = isinstance(name, str) and name.isprintable() and Path(name).name == name
        if not plain or not name.endswith(".safetensors"):
            raise InputError(
                f"{what}: the weight_map of its {SAFE_WEIGHTS_INDEX_NAME} names {name!r}, which is not a safetensors file next to it; "
                f"give another model or revision"
            )
    return sorted(set(names))


def tqdm_class_for(advance: Advance) -> type:
    """Returns a class that hf_hub_download uses in place of tqdm. It hands the bytes that arrive to `advance`."""
    from huggingface_hub.utils.tqdm import silent_tqdm

    class Bar(silent_tqdm):
        def update(self, n: float | None = 1) -> None:
            advance(n or 0)

        def ignore(self, *args: Any, **settings: Any) -> None:
            pass

        # hf_xet also counts the bytes on the wire. Without update_transfer it would show them in a second bar.
        update_transfer = set_postfix_str = set_transfer_postfix_str = ignore

    return Bar


@contextmanager
def hub_errors(what: str, repo: str, revision: str = "main", repo_type: str = "model") -> Iterator[None]:
    """Turns whatever the hub's libraries raise within the block into one line that begins with `what`.

    Raises InputError when the hub refuses the request, and MachineError when the hub, the network or the disk fails.
    """
    try:
        yield
    except (InputError, MachineError):
        raise
    except Exception as e:  # the errors of the hub, httpx2, hf_xet and datasets have no class in common
        raise failure(e, what, repo, revision, repo_type) from e


def failure(e: Exception, what: str, repo: str, revision: str, repo_type: str) -> InputError | MachineError:
    """Returns the error to raise for an exception of the hub's libraries."""
    import httpx2
    from huggingface_hub import constants, errors

    hub, seconds = constants.ENDPOINT, f"{constants.HF_HUB_DOWNLOAD_TIMEOUT} and {constants.HF_HUB_ETAG_TIMEOUT}"
    cause: BaseException | None = e
    while cause:  # the libraries wrap errors: "not in the cache" may have the server's answer as its cause
        reason = " ".join(str(cause).split())[:200]
        match cause:
            case errors.HfHubHTTPError():
                return refusal(cause, what, repo, revision, repo_type)
            case httpx2.TimeoutException():
                way_out = f"raise HF_HUB_DOWNLOAD_TIMEOUT and HF_HUB_ETAG_TIMEOUT (now {seconds} seconds)"
                return MachineError(f"{what}: {hub} did not answer in time; try again, or {way_out}")
            case httpx2.RemoteProtocolError() | httpx2.ReadError() | httpx2.WriteError():
                way_out = "run the same command again, complete files are kept"
                return MachineError(f"{what}: the connection to {hub} was lost; {way_out}")
            case httpx2.LocalProtocolError() | UnicodeEncodeError():  # `reason` would show the token
                return InputError(f"{what}: the token holds characters that a token cannot have; {LOGIN}")
            case httpx2.TransportError():
                way_out = "check the network, the proxy and HF_ENDPOINT"
                return MachineError(f"{what}: {hub} cannot be reached ({reason}); {way_out}")
            case errors.FileMetadataError() | json.JSONDecodeError():
                return MachineError(
                    f"{what}: {hub} does not answer like a Hugging Face hub; check HF_ENDPOINT and the proxy"
                )
            case errors.HFValidationError():
                return InputError(f"{what}: {repo} is not a valid name on the hub; give ORG/NAME")
            case ConnectionError() | TimeoutError():
                pass  # they come from hf_xet or datasets, whose text says no more
            case OSError() if cause.strerror:
                where, way_out = cause.filename or constants.HF_HUB_CACHE, "set HF_HOME to a folder with room to write"
                return path_error(cause, f"{what}: {where}: {cause.strerror.lower()}; {way_out}")
        cause = cause.__cause__ or cause.__context__
    reason = " ".join(str(e).split())[:200]
    return MachineError(f"{what}: {repo} could not be fetched from {hub} ({type(e).__name__}: {reason}); try again")


def refusal(e: Any, what: str, repo: str, revision: str, repo_type: str) -> InputError | MachineError:
    """Returns the error to raise for an HTTP status with which the hub refuses a request."""
    from huggingface_hub import constants, errors

    hub, status = constants.ENDPOINT, e.response.status_code
    page = f"{hub}/{'datasets/' if repo_type == 'dataset' else ''}{repo}"
    if status >= 500:
        return MachineError(f"{what}: {hub} has an error of its own ({status}); try again later")
    if status == 429:
        return MachineError(f"{what}: too many requests for {hub} (429); try again in some minutes, or {LOGIN}")
    if status == 403 or isinstance(e, errors.GatedRepoError):
        return InputError(f"{what}: {repo} is not open to everyone ({status}); ask for access on {page}, then {LOGIN}")
    if isinstance(e, errors.RepositoryNotFoundError):
        way_out = f"check the name, or, if it is private, {LOGIN}"
        here = "" if repo_type == "dataset" else NO_FOLDER
        return InputError(f"{what}: {here}{hub} finds no {repo_type} {repo} ({status}); {way_out}")
    if status == 401:
        return InputError(f"{what}: {hub} does not accept the token (401); {LOGIN} with a valid one")
    if isinstance(e, errors.RevisionNotFoundError):
        return InputError(f"{what}: {repo} has no revision {revision} (404); give a branch, tag or commit of {page}")
    if isinstance(e, errors.RemoteEntryNotFoundError):
        name = unquote(e.response.request.url.path.partition("/resolve/")[2].partition("/")[2])
        return InputError(f"{what}: {repo} has no file {name} at {revision} (404); give another revision")
    return InputError(f"{what}: {hub} refuses {repo} ({status}); check the name, the revision and HF_ENDPOINT")


def read_licence(folder: Path) -> str | None:
    """Returns the licence that a model card's header states, else the first line of the licence file, else None."""
    import yaml
    from huggingface_hub import metadata_load

    stated = None
    try:
        header = (metadata_load(folder / CARD) if (folder / CARD).is_file() else None) or {}
        stated = header.get("license_name") if header.get("license") == "other" else header.get("license")
    except (ValueError, OSError, yaml.YAMLError):
        say(f"warning: {folder / CARD}: its header is not readable, so the licence that it states is not known")
    if not stated:
        for file in (folder / name for name in LICENCES if (folder / name).is_file()):
            lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
            stated = next((line.strip() for line in lines if line.strip()), None)
    words = "".join(c if c.isprintable() else " " for c in str(stated or "")).split()
    return " ".join(words)[:100] or None
