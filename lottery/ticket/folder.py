"""Opens a ticket's folder and checks that its files are those that were written. It does not import torch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lottery.errors import InputError, MachineError
from lottery.files.hashes import file_sha256
from lottery.files.reading import check_file_name, read_json
from lottery.models.headers import TensorInfo, read_headers
from lottery.spec import FORMAT_VERSION, json_sha256
from lottery.ticket.consistency import headers_fit, values_fit
from lottery.ticket.record import MEASUREMENTS, RECORD, find_invalid_field, header_sha256


class TicketFolder:
    """A ticket's folder. The constructor checks every file against the record, except the data of the tensors.

    Raises InputError where the folder is not a complete ticket, or where any checked byte has changed.
    """

    def __init__(self, path: Path) -> None:
        self.folder = path
        if not (path / RECORD).is_file():
            raise InputError(f"ticket={path}: it holds no {RECORD}; give a ticket's folder or models:/NAME/VERSION")
        self.record = read_json(path / RECORD)
        if self.record.get("format") != FORMAT_VERSION:
            raise InputError(
                f"ticket={path}: it has format {self.record.get('format')}, this version reads {FORMAT_VERSION}; "
                f"use the version of lottery that wrote it"
            )
        claimed = {k: v for k, v in self.record.items() if k != "checksum"}
        if self.record.get("checksum") != json_sha256(claimed):
            self._damaged(RECORD)
        if misfitting := find_invalid_field(claimed):
            raise InputError(
                f"ticket={path}: {RECORD} has an invalid field ({misfitting}); fetch or make the ticket again"
            )
        self.id: str = self.record["ticket"]
        self.entries: dict[str, dict[str, Any]] = self.record["tensors"]
        for name, sha256 in self.record["files"].items():
            if not (path / check_file_name(name, path / RECORD)).is_file() or file_sha256(path / name) != sha256:
                self._damaged(name)
        shards = [check_file_name(name, path / RECORD) for name in self.record["shards"]]
        known = {RECORD, MEASUREMENTS, *self.record["files"], *shards}
        if strangers := sorted(p.name for p in path.iterdir() if p.name not in known and not p.name.startswith(".")):
            raise InputError(f"ticket={path}: {strangers[0]} is no part of the ticket; move it out of the folder")
        for name, sha256 in self.record["shards"].items():
            if not (path / name).is_file() or header_sha256(path / name) != sha256:
                self._damaged(name)
        self.shards = [path / name for name in shards]
        self._stored = read_headers(path, shards)
        expected = {key for name in self.entries for key in self._keys(name)}
        if wrong := sorted(expected ^ self._stored.keys()):
            self._damaged(wrong[0])

    def _damaged(self, what: str) -> NoReturn:
        raise InputError(
            f"ticket={self.folder}: {what} is damaged or missing (its hash differs from the one in {RECORD}); "
            f"fetch or make the ticket again"
        )

    def _keys(self, name: str) -> list[str]:
        entry = self.entries[name]
        if self.is_mask_only:
            return [f"{name}.bitmask"] if "kept" in entry else []
        if "kept" not in entry and "quantized" not in entry:
            return [name]
        mask = [f"{name}.bitmask"] if entry.get("packed") else []
        return [*mask, f"{name}.values", *([f"{name}.scale"] if "quantized" in entry else [])]

    @property
    def is_mask_only(self) -> bool:
        """Returns whether the ticket holds masks alone, so that its weights lie in a base elsewhere."""
        return self.record["spec"]["storage"] == "mask"

    @property
    def dtype(self) -> str:
        """Returns safetensors' name of the base's type."""
        return self.record["base"]["dtype"]

    @property
    def disk_bytes(self) -> int:
        return sum(shard.stat().st_size for shard in self.shards)

    @property
    def ticket(self) -> str:
        return self.id

    @property
    def base_record(self) -> dict[str, Any]:
        """Returns what the record says of the dense base."""
        return self.record["base"]

    @property
    def dropped(self) -> list[str]:
        return self.record["dropped"]

    def verify(self) -> None:
        """Reads every stored tensor once. Raises InputError that names the first one whose hash differs or whose parts do not
        fit, MachineError if the disk fails.

        The hash of a mask covers the base's tensor too, so this cannot check a ticket that holds masks alone.
        """
        assert not self.is_mask_only
        for name, entry in self.entries.items():
            keys = self._keys(name)
            parts = [self._read_bytes(self._stored[key]) for key in keys]
            sha256 = hashlib.sha256()
            for part in parts:
                sha256.update(part.data)
            kinds = [key.removeprefix(name).removeprefix(".") for key in keys]
            headers = {kind: self._stored[key] for kind, key in zip(kinds, keys, strict=True)}
            fits = sha256.hexdigest() == entry["sha256"] and headers_fit(entry, headers)
            if not fits or not values_fit(entry, dict(zip(kinds, parts, strict=True))):
                self._damaged(f"tensor {name!r}")

    def _read_bytes(self, info: TensorInfo) -> np.ndarray:
        """Returns the bytes (uint8) of one stored tensor."""
        try:
            return np.fromfile(self.folder / info.shard, np.uint8, info.nbytes, offset=info.offset)
        except OSError as e:
            raise MachineError(f"ticket={self.folder}: {info.shard} cannot be read ({e.strerror or e})") from e


@dataclass(frozen=True)
class LocalTicket:
    """A ticket on this machine: its folder, its logged model if it is registered, and the parameters that made it."""

    folder: Path
    model_id: str | None
    params: dict[str, str]
