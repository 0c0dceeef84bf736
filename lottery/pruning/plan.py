"""Says, before a weight is read, what cannot be pruned and what a ticket would hold."""

from collections.abc import Mapping, Sequence
from typing import Any

from lottery.errors import InputError
from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.tensors import DTYPES, FLOAT_BITS
from lottery.progress import say
from lottery.pruning.allocation import Allocation, resolve_allocation
from lottery.pruning.tensors import (
    all_places,
    columns_of,
    parse_nm_pattern,
    tensor_entry,
    tensor_info,
    to_quantize,
)
from lottery.spec import Spec, ticket_id
from lottery.ticket.record import sparsities


class UnfitError(InputError):
    """A method cannot prune a target that the model has."""


def check_targets(source: Source, spec: Spec, chosen: Sequence[Place], what: str) -> None:
    """Raises InputError for what cannot be pruned, as far as it is known before a weight is read.

    This is a targeted matrix whose weights are not plain floating-point numbers, or do not divide into the groups of an
    N:M pattern; types that cannot be compared with each other; and a matrix of another type that would be quantized.
    `what` begins the messages about the model.
    """
    if spec.is_calibrated and any(p.role == "embeddings" for p in chosen):
        raise UnfitError(
            f"target={spec.target}: method={spec.method} looks at what a matrix multiplies, and embeddings are looked up; "
            f"leave them out of the target, or give method=magnitude"
        )
    types: dict[str, str] = {}
    floats = ", ".join(FLOAT_BITS)
    eight = to_quantize(source, spec, chosen) - {p.name for p in chosen}
    for place in [p for p in source.places if p.name in eight]:
        if (dtype := source.info(place.name).dtype) not in FLOAT_BITS:
            raise InputError(
                f"quantize={spec.quantize}: the tensor {place.name!r} is of type {dtype}; convert the model to {floats}"
            )
    for place in chosen:
        info = tensor_info(source, place)
        types.setdefault(info.dtype, place.name)
        if info.dtype not in FLOAT_BITS:
            raise InputError(
                f"{what}: its tensor {place.name!r} is of type {info.dtype}; convert the model to {floats}"
            )
        if (groups := parse_nm_pattern(spec)) and columns_of(place, info) % groups[1]:
            raise InputError(
                f"pattern={spec.pattern}: the {columns_of(place, info)} inputs of {place.name!r} do not divide into groups of "
                f"{groups[1]}; leave it out of the target, or give pattern=unstructured"
            )
    resolve_allocation(spec, source, chosen)  # it raises for a file that does not fit
    if len(types) > 1:
        mixed = ", ".join(f"{dtype} ({name})" for dtype, name in sorted(types.items()))
        if spec.scope == "global":
            raise InputError(f"{what}: the targeted weights are of mixed types, {mixed}; give scope=layer")
        say(f"warning: the targeted weights are of mixed types, {mixed}; each tensor keeps its own")


def plan_ticket(
    source: Source,
    spec: Spec,
    chosen: Sequence[Place],
    with_ticket_id: bool = True,
    calibration: Mapping[str, Any] | None = None,
    allocation: Allocation | None = None,
) -> dict[str, Any]:
    """Returns what `prune_source` would write, from the headers alone: counts, and the bytes of the tensors.

    With `scope=global`, and where an allocation looks at weights or data, a run decides how much each tensor loses; the
    plan spreads the loss evenly. With `with_ticket_id` it states the ticket's id, which needs the hashes of the source's
    files, and `calibration`, the identity of what is looked at.
    """
    targeted, allocation = {p.name for p in chosen}, allocation or resolve_allocation(spec, source, chosen)
    in_8_bits = to_quantize(source, spec, chosen)
    tensors = {
        place.name: plan_tensor(source, spec, place, allocation.counts.get(place.name), place.name in in_8_bits)
        for place in all_places(source, chosen)
    }
    ticket = None
    if with_ticket_id:
        looked_at = {**(calibration or {}), **allocation.identity}
        ticket = ticket_id(spec, source.base_record["files"], targeted, source.ticket, looked_at)
    return {
        "ticket": ticket,
        "layers": sorted({p.layer for p in chosen if p.layer is not None}),
        "tensors": tensors,
        "dropped": source.dropped,
        "disk_bytes_after": sum(entry["bytes"] for entry in tensors.values()),
        **sparsities({"tensors": tensors}),
    }


def plan_tensor(source: Source, spec: Spec, place: Place, asked: int | None, in_8_bits: bool) -> dict[str, Any]:
    """Returns what the record would say of one tensor, and its `bytes`. A targeted tensor is `asked` to lose weights."""
    info = tensor_info(source, place)
    entry = tensor_entry(place, info) | {"bytes": 0 if spec.storage == "mask" else info.nbytes}
    known = source.kept(place.copy_of or place.name)  # how many weights an earlier ticket left
    if asked is not None:
        entry["requested"] = info.numel - asked
        entry["kept"] = info.numel - asked if known is None else min(known, info.numel - asked)
    elif known is not None:
        entry["kept"] = known
    width, scales = DTYPES[info.dtype].itemsize, 0
    rows = info.numel // columns_of(place, info)
    if in_8_bits:
        width, scales = 1, 4 * rows
        entry |= {"quantized": spec.quantize, "bytes": info.numel + scales}
    if "kept" in entry:
        mask_bytes = rows * -(-columns_of(place, info) // 8)
        packed_bytes = min(info.numel * width, mask_bytes + entry["kept"] * width) + scales
        entry["bytes"] = mask_bytes if spec.storage == "mask" else packed_bytes
    return entry
