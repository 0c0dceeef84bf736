"""Says what a spec asks of each tensor: how many weights to remove, in which groups, and what to store in 8 bits."""

from collections.abc import Sequence
from typing import Any

from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.headers import TensorInfo
from lottery.spec import Spec


def count_to_prune(spec: Spec, numel: int) -> int:
    """Returns how many of `numel` weights the sparsity asks to remove, exact to the weight."""
    return round(spec.sparsity * numel)


def uniform_counts(spec: Spec, source: Source, chosen: Sequence[Place]) -> dict[str, int]:
    """Returns how many weights each targeted tensor loses if all lose the same share, in a pattern's groups if it has any."""
    numel, groups = {p.name: tensor_info(source, p).numel for p in chosen}, parse_nm_pattern(spec)
    if groups:
        keep, size = groups
        return {name: n // size * (size - keep) for name, n in numel.items()}
    return {name: count_to_prune(spec, n) for name, n in numel.items()}


def parse_nm_pattern(spec: Spec) -> tuple[int, int] | None:
    """Returns (survivors, group size) of an N:M pattern, None for an unstructured one."""
    if spec.pattern == "unstructured":
        return None
    keep, group = spec.pattern.split(":")
    return int(keep), int(group)


def columns_of(place: Place, info: TensorInfo) -> int:
    """Returns the length of the input dimension, along which the groups of an N:M pattern lie."""
    return info.shape[0] if place.transposed else info.shape[-1]


def all_places(source: Source, chosen: Sequence[Place]) -> list[Place]:
    """Returns every tensor that the ticket will have: the source's, and a head that is untied."""
    return [*source.places, *(p for p in chosen if p.copy_of)]


def tensor_info(source: Source, place: Place) -> TensorInfo:
    return source.info(place.copy_of or place.name)


def to_quantize(source: Source, spec: Spec, chosen: Sequence[Place]) -> set[str]:
    """Returns the matrices to store in 8 bits: every attention and MLP, as in bitsandbytes, and the targeted ones."""
    if spec.quantize == "none":
        return set()
    return {p.name for p in [*source.places, *chosen] if p.role in ("attention", "mlp")} | {p.name for p in chosen}


def tensor_entry(place: Place, info: TensorInfo) -> dict[str, Any]:
    """Returns what the record says of every tensor, pruned or not."""
    entry: dict[str, Any] = {"role": place.role, "shape": list(info.shape), "dtype": info.dtype}
    if place.layer is not None:
        entry["layer"] = place.layer
    if place.transposed:
        entry["transposed"] = True
    return entry
