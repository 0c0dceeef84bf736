"""Fetches data sets from the Hugging Face hub into its own cache: a column of one, or one of its files."""

from pathlib import Path

from lottery.errors import InputError, MachineError
from lottery.models.hub import check_room, download_file, hub_errors, tqdm_class_for
from lottery.progress import progress_bar, say


def load_dataset_column(what: str, repo: str, config: str | None, split: str, column: str, instead: str) -> list[str]:
    """Returns one column of a data set on the hub, or of its cached copy when the hub cannot be reached.

    `config` may be None for a data set that has only one; `split` may be a part of one, `train[:1000]`. `instead` is the
    way out without a hub. Raises InputError when the hub refuses the data set or, offline, the cache does not have it,
    and MachineError when the hub cannot be reached and the cache does not have it.
    """
    import datasets
    from huggingface_hub import HfApi, constants

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()

    def load() -> list[str]:
        rows = datasets.load_dataset(repo, config, split=split)
        if column not in rows.column_names:
            raise InputError(f"{what}: {repo} has no column {column}, but {', '.join(rows.column_names)}; {instead}")
        return list(rows[column])

    unreached = None
    if not (offline := datasets.config.HF_HUB_OFFLINE):
        try:
            # load_dataset would try for half a minute, and would not say why it failed.
            with hub_errors(what, repo, repo_type="dataset"):
                HfApi().dataset_info(repo, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        except MachineError as e:
            unreached = e
        else:
            with hub_errors(what, repo, repo_type="dataset"):
                return load()

    try:
        datasets.config.HF_HUB_OFFLINE = True  # load_dataset reads it in every call and has no argument for it
        rows = load()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
        if unreached:
            raise MachineError(f"{unreached}; or {instead}") from e
        cache = datasets.config.HF_DATASETS_CACHE
        raise InputError(
            f"{what}: offline, and the cache {cache} has no {repo} {config}; unset HF_HUB_OFFLINE, or {instead}"
        ) from e
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    if unreached:
        say(f"warning: {unreached}; meanwhile the cached {repo} is used")
    return rows


def fetch_dataset_file(what: str, repo: str, name: str, instead: str) -> Path:
    """Returns one file of a data set, for a file that is published once and never changes: the hub is asked only for a
    file that its cache does not have.

    `instead` is the way out without a hub. Raises InputError when the hub refuses it or, offline, the cache does not
    have it, and MachineError when the hub, the network or the disk fails.
    """
    from huggingface_hub import HfApi, constants, is_offline_mode, try_to_load_from_cache

    if isinstance(cached := try_to_load_from_cache(repo, name, repo_type="dataset"), str):
        return Path(cached)
    if is_offline_mode():
        raise InputError(
            f"{what}: offline, and the cache {constants.HF_HUB_CACHE} has no {repo}/{name}; unset HF_HUB_OFFLINE, or {instead}"
        )
    try:
        # A download would try for minutes before it fails. Of the answer nothing is needed: C4 has 100,000 files.
        with hub_errors(what, repo, repo_type="dataset"):
            HfApi().dataset_info(repo, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, expand=["sha"])
        revision = constants.DEFAULT_REVISION
        file = download_file(what, repo, revision, name, repo_type="dataset", dry_run=True)
        size = file.file_size or 0
        Path(constants.HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
        check_room(what, size, Path(constants.HF_HUB_CACHE))
        with progress_bar(f"download {repo}/{name}", size, "bytes") as advance:
            settings = {"repo_type": "dataset", "tqdm_class": tqdm_class_for(advance)}
            return Path(download_file(what, repo, revision, name, **settings))
    except (InputError, MachineError) as e:
        raise type(e)(f"{e}; or {instead}") from e
