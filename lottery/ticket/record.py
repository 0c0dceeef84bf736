"""What ticket.json says: written with a checksum of itself, believed only where every field is of its kind."""

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lottery.files.atomic import atomic_write
from lottery.models.families import PRUNABLE
from lottery.models.headers import ITEM_BYTES, WEIGHT_TYPES
from lottery.spec import QUANTIZATIONS, json_sha256

RECORD = "ticket.json"
MEASUREMENTS = "measurements.json"  # beside the ticket, not of it: written after measuring, not hashed


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """The last file of a ticket: it holds the hashes of all others, and its own as `checksum`."""
    record = {**record, "checksum": json_sha256(record)}
    atomic_write(folder / RECORD, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


def find_invalid_field(record: dict[str, Any]) -> str | None:
    """The first field of a record that is not of the kind that this format says; None where all are."""

    def is_count(value: Any) -> bool:
        return type(value) is int and 0 <= value < 2**63

    def is_hash(value: Any) -> bool:
        return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None

    def is_word(value: Any) -> bool:
        return isinstance(value, str) and value.isprintable()

    def are_hashes(value: Any) -> bool:
        return isinstance(value, dict) and all(is_hash(v) for v in value.values())

    def are(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
        return lambda value: isinstance(value, list) and all(map(kind, value))

    def fields(where: str, holder: Any, kinds: dict[str, Callable[[Any], bool]], optional: str = "") -> str | None:
        if not isinstance(holder, dict):
            return where
        for name, kind in kinds.items():
            if not (kind(holder[name]) if name in holder else name in optional.split()):
                return f"{where}{name}"
        return None

    def is_dtype(value: Any) -> bool:
        return isinstance(value, str) and value in ITEM_BYTES

    def is_flag(value: Any) -> bool:
        return isinstance(value, bool)

    wrong = fields("", record, {
        "ticket": lambda v: is_word(v) and len(v) == 12, "spec": lambda v: isinstance(v, dict), "layers": are(is_count),
        "dropped": are(is_word), "files": are_hashes, "shards": are_hashes, "tensors": lambda v: isinstance(v, dict) and len(v) > 0,
    })  # fmt: skip
    wrong = wrong or fields("base.", record.get("base"), {
        "id": is_word, "revision": lambda v: v is None or is_word(v), "dtype": is_dtype, "files": are_hashes,
        "disk_bytes": lambda v: is_count(v) and v > 0,
    })  # fmt: skip
    names = ("method", "scope", "pattern", "quantize", "storage")
    wrong = wrong or fields("spec.", record["spec"], dict.fromkeys(names, is_word))
    if wrong:
        return wrong
    targeted, kind = 0, record["spec"]["quantize"]
    for name, entry in record["tensors"].items():
        wrong = fields(f"{name}: ", entry, {
            "role": is_word, "shape": are(is_count), "dtype": is_dtype, "sha256": is_hash, "kept": is_count,
            "requested": is_count, "packed": is_flag, "layer": is_count, "transposed": is_flag, "copy_of": is_word,
            "quantized": lambda v: is_word(v) and v in QUANTIZATIONS, "rounding_zeros": is_count,
        }, "kept requested packed layer transposed copy_of quantized rounding_zeros")  # fmt: skip
        if wrong:
            return wrong
        numel = math.prod(entry["shape"])
        if max(entry.get("kept", 0), entry.get("requested", 0)) > numel or numel >= 2**60:
            return f"{name}: kept"
        if ("kept" in entry) != ("packed" in entry) or ("requested" in entry and "kept" not in entry):
            return f"{name}: packed"
        if ("kept" in entry or "quantized" in entry) and (
            entry["dtype"] not in WEIGHT_TYPES or len(entry["shape"]) < 2 or not numel
        ):
            return f"{name}: shape"
        if ("quantized" in entry) != ("rounding_zeros" in entry) or entry.get("quantized", kind) != kind:
            return f"{name}: quantized"
        targeted += "requested" in entry
    return None if targeted else "tensors"


def sparsities(record: dict[str, Any]) -> dict[str, float]:
    """Shares of the masks' zeros over the targeted, over all prunable and over all weights; a tied matrix counts once.
    Of a quantized ticket apart how many survivors were rounded to zero: `rounding_zeros`.

    Zeros that an earlier ticket left outside of the target count towards the last two.
    """
    removed = targeted = removed_target = prunable = total = 0
    for entry in record["tensors"].values():
        numel = math.prod(entry["shape"])
        gone = numel - entry.get("kept", numel)
        total += numel
        prunable += numel if entry["role"] in PRUNABLE else 0
        removed += gone
        if "requested" in entry:
            targeted += numel
            removed_target += gone
    found = {
        "sparsity_target": removed_target / targeted,
        "sparsity_prunable": removed / prunable,
        "sparsity_model": removed / total,
    }
    if any("rounding_zeros" in entry for entry in record["tensors"].values()):
        found["rounding_zeros"] = sum(entry.get("rounding_zeros", 0) for entry in record["tensors"].values())
    return found


def header_sha256(shard: Path) -> str:
    """Of a safetensors file's header, its length included: with the tensors' own hashes, every byte is covered."""
    with open(shard, "rb") as f:
        length = f.read(8)
        size = min(int.from_bytes(length, "little"), shard.stat().st_size)  # a damaged length may say anything
        return hashlib.sha256(length + f.read(size)).hexdigest()
