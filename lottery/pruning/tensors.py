"""What a spec asks of each tensor: how many weights go, along what groups, what is stored in 8 bits."""

from collections.abc import Sequence
from typing import Any

from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.headers import TensorInfo
from lottery.spec import Spec


def count_to_prune(spec: Spec, numel: int) -> int:
    """How many of so many weights are asked to go: exact to the weight."""
    return round(spec.sparsity * numel)


def parse_nm_pattern(spec: Spec) -> tuple[int, int] | None:
    """(survivors, group) of an N:M pattern."""
    if spec.pattern == "unstructured":
        return None
    keep, group = spec.pattern.split(":")
    return int(keep), int(group)


def columns_of(place: Place, info: TensorInfo) -> int:
    """Length of the input dimension, along which groups lie."""
    return info.shape[0] if place.transposed else info.shape[-1]


def all_places(source: Source, chosen: Sequence[Place]) -> list[Place]:
    """Every tensor that the ticket will have: the source's, and a head that gets untied."""
    return [*source.places, *(p for p in chosen if p.copy_of)]


def tensor_info(source: Source, place: Place) -> TensorInfo:
    return source.info(place.copy_of or place.name)


def to_quantize(source: Source, spec: Spec, chosen: Sequence[Place]) -> set[str]:
    """The matrices that are stored in 8 bits: attention and MLP of every layer, as bitsandbytes has it, and what is targeted."""
    if spec.quantize == "none":
        return set()
    return {p.name for p in [*source.places, *chosen] if p.role in ("attention", "mlp")} | {p.name for p in chosen}


def tensor_entry(place: Place, info: TensorInfo) -> dict[str, Any]:
    """What the record says of any tensor."""
    entry: dict[str, Any] = {"role": place.role, "shape": list(info.shape), "dtype": info.dtype}
    if place.layer is not None:
        entry["layer"] = place.layer
    if place.transposed:
        entry["transposed"] = True
    return entry
