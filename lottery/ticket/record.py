"""Writes and checks ticket.json. The file holds a checksum of itself; a field of another kind makes it invalid."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from lottery.files.atomic import atomic_write
from lottery.models.families import PRUNABLE
from lottery.models.headers import ITEM_BYTES, WEIGHT_TYPES
from lottery.models.targets import format_ranges
from lottery.spec import QUANTIZATIONS, json_sha256

RECORD = "ticket.json"
MEASUREMENTS = "measurements.json"  # lies next to the ticket; it is written after measuring, and not hashed

Kind = Callable[[Any], bool]  # whether a value is of one kind


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes the last file of a ticket. It holds the hashes of all other files, and its own hash as `checksum`."""
    record = {**record, "checksum": json_sha256(record)}
    atomic_write(folder / RECORD, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


def find_invalid_field(record: dict[str, Any]) -> str | None:
    """Returns the name of the first field of a record that this format does not allow; None if all are valid."""
    wrong = (
        find_wrong_kind("", record, RECORD_FIELDS)
        or find_wrong_kind("base.", record.get("base"), BASE_FIELDS)
        or find_wrong_kind("spec.", record["spec"], SPEC_FIELDS)
    )
    if wrong:
        return wrong
    for name, entry in record["tensors"].items():
        wrong = find_wrong_kind(f"{name}: ", entry, TENSOR_FIELDS, OPTIONAL_TENSOR_FIELDS)
        if wrong or (wrong := find_contradiction(name, entry, record["spec"]["quantize"])):
            return wrong
    return None if any("requested" in entry for entry in record["tensors"].values()) else "tensors"


def find_wrong_kind(prefix: str, holder: Any, kinds: Mapping[str, Kind], optional: Collection[str] = ()) -> str | None:
    """Returns the first field of `holder` that is missing or of another kind, after `prefix`; None if there is none."""
    if not isinstance(holder, dict):
        return prefix
    for name, kind in kinds.items():
        if not (kind(holder[name]) if name in holder else name in optional):
            return f"{prefix}{name}"
    return None


def find_contradiction(name: str, entry: dict[str, Any], quantize: str) -> str | None:
    """Returns the field of a tensor's entry that contradicts other fields or the spec's `quantize`; else None."""
    numel = math.prod(entry["shape"])
    if max(entry.get("kept", 0), entry.get("requested", 0)) > numel or numel >= 2**60:
        return f"{name}: kept"
    if ("kept" in entry) != ("packed" in entry) or ("requested" in entry and "kept" not in entry):
        return f"{name}: packed"
    is_matrix = entry["dtype"] in WEIGHT_TYPES and len(entry["shape"]) >= 2 and numel > 0
    if ("kept" in entry or "quantized" in entry) and not is_matrix:
        return f"{name}: shape"
    if ("quantized" in entry) != ("rounding_zeros" in entry) or entry.get("quantized", quantize) != quantize:
        return f"{name}: quantized"
    return None


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def is_positive(value: Any) -> bool:
    return is_count(value) and value > 0


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_word(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def is_word_or_none(value: Any) -> bool:
    return value is None or is_word(value)


def is_ticket_id(value: Any) -> bool:
    return is_word(value) and len(value) == 12


def is_dtype(value: Any) -> bool:
    return isinstance(value, str) and value in ITEM_BYTES


def is_quantization(value: Any) -> bool:
    return is_word(value) and value in QUANTIZATIONS


def is_number(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_object(value: Any) -> bool:
    return isinstance(value, dict)


def is_filled_object(value: Any) -> bool:
    return isinstance(value, dict) and len(value) > 0


def are_hashes(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_hash, value.values()))


def are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_count, value))


def are_words(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_word, value))


# The fields of ticket.json in the order in which they are checked, and what each must be.
RECORD_FIELDS: dict[str, Kind] = {
    "ticket": is_ticket_id,
    "spec": is_object,
    "layers": are_counts,
    "dropped": are_words,
    "files": are_hashes,
    "shards": are_hashes,
    "tensors": is_filled_object,
}
BASE_FIELDS: dict[str, Kind] = {
    "id": is_word,
    "revision": is_word_or_none,
    "dtype": is_dtype,
    "files": are_hashes,
    "disk_bytes": is_positive,
}
SPEC_FIELDS: dict[str, Kind] = dict.fromkeys(("method", "scope", "pattern", "quantize", "storage"), is_word)
TENSOR_FIELDS: dict[str, Kind] = {
    "role": is_word,
    "shape": are_counts,
    "dtype": is_dtype,
    "sha256": is_hash,
    "kept": is_count,
    "requested": is_count,
    "packed": is_flag,
    "layer": is_count,
    "transposed": is_flag,
    "copy_of": is_word,
    "quantized": is_quantization,
    "rounding_zeros": is_count,
    "layer_error": is_number,
    "damping": is_number,
}
OPTIONAL_TENSOR_FIELDS = TENSOR_FIELDS.keys() - {"role", "shape", "dtype", "sha256"}


def sparsities(record: dict[str, Any]) -> dict[str, float]:
    """Returns the shares of the masks' zeros: of the targeted, of all prunable and of all weights.

    A tied matrix counts once. Zeros that an earlier ticket left outside of the target count towards the last two
    shares. For a quantized ticket, `rounding_zeros` counts separately the survivors that were rounded to zero.
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
    result = {
        "sparsity_target": removed_target / targeted,
        "sparsity_prunable": removed / prunable,
        "sparsity_model": removed / total,
    }
    if any("rounding_zeros" in entry for entry in record["tensors"].values()):
        result["rounding_zeros"] = sum(entry.get("rounding_zeros", 0) for entry in record["tensors"].values())
    return result


def layer_shares(entries: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Returns layer -> the share of its targeted weights that is asked to go, from what a record says of each tensor."""
    asked: dict[int, list[int]] = {}
    for entry in entries:
        if "requested" in entry and "layer" in entry:
            numel = math.prod(entry["shape"])
            sums = asked.setdefault(entry["layer"], [0, 0])
            sums[0], sums[1] = sums[0] + numel - entry["requested"], sums[1] + numel
    return {layer: removed / numel for layer, (removed, numel) in sorted(asked.items())}


def shares_line(shares: Mapping[int, float]) -> str:
    """Returns the shares in words; neighbouring layers of the same share stand together: "0-3 45.0%, 4 52.1%"."""
    shown = [(layer, f"{100 * share:.1f}%") for layer, share in shares.items()]
    parts = [(share, [layer for layer, _ in group]) for share, group in groupby(shown, key=lambda pair: pair[1])]
    return ", ".join(f"{format_ranges(layers)} {share}" for share, layers in parts)


def header_sha256(shard: Path) -> str:
    """Returns the hash of a safetensors file's header and its length. The tensors' hashes cover all other bytes."""
    with open(shard, "rb") as f:
        length = f.read(8)
        size = min(int.from_bytes(length, "little"), shard.stat().st_size)  # a damaged length can be any number
        return hashlib.sha256(length + f.read(size)).hexdigest()
