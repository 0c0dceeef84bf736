"""A safetensors file that holds the hash of its own content, so that altered weights are never trained on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lottery.errors import InputError

SEAL = "seal"  # the entry of the metadata


@dataclass(frozen=True)
class Sealed:
    tensors: dict[str, np.ndarray]
    about: dict[str, Any]


def seal(tensors: Mapping[str, np.ndarray], about: Mapping[str, Any] | None = None) -> bytes:
    """Returns the content of a file of these tensors, with `about` (JSON values) and the hash in its metadata.

    Both are one entry: safetensors writes several in any order, and the same content is to have the same bytes.
    """
    said = json.dumps(dict(about or {}))
    return save(dict(tensors), metadata={SEAL: json.dumps([content_sha256(tensors, said), said])})


def read_sealed(path: Path) -> Sealed:
    """Returns the content of a file. Raises InputError if it cannot be read or was altered."""
    try:
        with safe_open(path, "numpy") as f:
            sha256, said = json.loads((f.metadata() or {}).get(SEAL, "[null, null]"))
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  # it is no mapping
        if sha256 != content_sha256(tensors, said):
            raise ValueError("its content is not what its hash says")
        return Sealed(tensors, json.loads(said))
    except (OSError, TypeError, ValueError, SafetensorError) as e:
        raise InputError(f"{path}: not readable ({e})") from e


def content_sha256(tensors: Mapping[str, np.ndarray], said: str) -> str:
    """Returns the hash of the names, types, shapes and values of tensors and of what is said about them."""
    names = [[name, str(tensors[name].dtype), tensors[name].shape] for name in sorted(tensors)]
    sha = hashlib.sha256(json.dumps([said, names]).encode())
    for name in sorted(tensors):
        sha.update(np.ascontiguousarray(tensors[name]).data)
    return sha.hexdigest()
