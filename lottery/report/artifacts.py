"""Reads small artifacts of a run."""

import contextlib
import io
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lottery.registry.store import STORE_ERRORS, Client


def read_json(client: Client | None, run_id: str, name: str) -> Any | None:
    """Returns the parsed artifact, or None if the run has none or the file is no JSON."""
    content = read_artifact(client, run_id, name)
    try:
        return None if content is None else json.loads(content)
    except ValueError:
        return None


@cache
def read_array(client: Client | None, run_id: str, name: str) -> np.ndarray | None:
    """Returns the artifact as float64, or None if the run has none or the file is no array."""
    content = read_artifact(client, run_id, name)
    try:
        return None if content is None else np.load(io.BytesIO(content), allow_pickle=False).astype(np.float64)
    except (ValueError, OSError, EOFError):
        return None


def read_artifact(client: Client | None, run_id: str, name: str) -> bytes | None:
    """Returns the artifact, or None if the run has none, the store fails, or there is no store."""
    if client is None:
        return None
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(*STORE_ERRORS):
        return Path(client.download_artifacts(run_id, name, folder)).read_bytes()
    return None
