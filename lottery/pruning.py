"""Base shards in, ticket shards out: one tensor in memory at a time, never a whole model."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lottery import kernels
from lottery.checkpoint import BITS, DTYPES, Base, file_sha256
from lottery.progress import say, stage
from lottery.spec import FORMAT, InputError, Spec, ticket_id
from lottery.targets import Place
from lottery.ticket import Writer, header_sha256, sparsities, write_packed, write_record, write_whole


def draw_seed(spec: Spec, name: str) -> int | None:
    """What a tensor's random keys are drawn from; None where nothing is drawn."""
    if spec.method != "random":
        return None
    return int.from_bytes(hashlib.sha256(f"{spec.seed}:{name}".encode()).digest()[:8])


def requested(spec: Spec, numel: int) -> int:
    """How many of a tensor's weights are asked to go: exact to the weight."""
    return round(spec.sparsity * numel)


def prune_base(base: Base, spec: Spec, places: Sequence[Place], chosen: Sequence[Place], folder: Path) -> None:
    """Write the ticket that `spec` makes of `base` into the empty `folder`; the chosen places lose weights.

    Raises InputError where a weight of the base is not a number.
    """
    targeted = {p.name for p in chosen}
    kept_places = [p for p in places if p.role != "buffer"]
    total = sum(base.tensors[p.name].nbytes for p in kept_places)
    writer = Writer(folder, {p.name: base.tensors[p.name] for p in kept_places}, targeted)
    entries: dict[str, dict[str, Any]] = {}
    with stage(f"prune {spec.target} to {spec.sparsity:.0%} by {spec.method}", total, "bytes") as advance:
        for place in kept_places:
            info, tensor = base.tensors[place.name], base.tensor(place.name)
            entry: dict[str, Any] = {"role": place.role, "shape": list(info.shape), "dtype": info.dtype}
            if place.layer is not None:
                entry["layer"] = place.layer
            zeros = check_finite(place.name, info.dtype, tensor)
            if place.name in targeted:
                asked = requested(spec, info.numel)
                if zeros > asked > 0:
                    say(
                        f"warning: {place.name} has {zeros:,} zeros already, more than the {asked:,} asked for: kept so"
                    )
                bits_OI = tensor.view(BITS[info.dtype][0]).reshape(-1, info.shape[-1]).numpy()
                bitmask_OB, values_K = kernels.pack(bits_OI, max(asked, zeros), draw_seed(spec, place.name))
                entry["requested"] = info.numel - asked
                entry |= write_packed(writer, place.name, info.dtype, info.shape, bitmask_OB, values_K)
            else:
                entry |= write_whole(writer, place.name, info.dtype, tensor)
            entries[place.name] = entry
            advance(info.nbytes)
    writer.close()
    for name in base.small_files:
        shutil.copyfile(base.folder / name, folder / name)
    write_record(
        folder,
        {
            "format": FORMAT,
            "ticket": ticket_id(spec, base.files, targeted),
            "spec": spec.bytes_spec(),
            "base": {
                "id": base.id,
                "revision": None,
                "files": base.files,
                "dtype": base.dtype,
                "disk_bytes": base.disk_bytes,
            },
            "layers": sorted({p.layer for p in chosen if p.layer is not None}),
            "tensors": entries,
            "dropped": [p.name for p in places if p.role == "buffer"],
            "files": {name: file_sha256(folder / name) for name in base.small_files},
            "shards": {path.name: header_sha256(path) for path in sorted(folder.glob("ticket-*.safetensors"))},
        },
    )


def warm_up(base: Base, chosen: Sequence[Place]) -> None:
    """Have the kernels compiled before anything is timed."""
    for dtype in {base.tensors[p.name].dtype for p in chosen}:
        kernels.warm(np.dtype(str(BITS[dtype][0]).removeprefix("torch.")))


def check_types(base: Base, chosen: Sequence[Place]) -> None:
    """Raises InputError for a targeted matrix whose weights are not plain floating-point numbers."""
    for place in chosen:
        if (dtype := base.tensors[place.name].dtype) not in BITS:
            raise InputError(
                f"model={base.id}: its tensor {place.name!r} is of type {dtype}; convert the model to {', '.join(BITS)}"
            )


def check_finite(name: str, dtype: str, tensor: torch.Tensor) -> int:
    """How many zeros the tensor holds. Raises InputError, naming it, where it holds NaN or infinity."""
    if dtype not in BITS:
        zeros, broken = 0, int(not tensor.double().isfinite().all())
    else:
        integer, infinity = BITS[dtype]
        zeros, broken = kernels.scan(tensor.view(integer).numpy(), infinity)
    if broken:
        raise InputError(f"model: its tensor {name!r} holds NaN or infinite weights; take another checkpoint")
    return zeros


def planned(base: Base, spec: Spec, places: Sequence[Place], chosen: Sequence[Place]) -> dict[str, Any]:
    """What `prune_base` would write, from the headers alone: counts, and the tensors' bytes before and after."""
    targeted = {p.name for p in chosen}
    tensors: dict[str, dict[str, Any]] = {}
    after = 0
    for place in places:
        info = base.tensors[place.name]
        if place.role == "buffer":
            continue
        entry: dict[str, Any] = {"role": place.role, "shape": list(info.shape), "dtype": info.dtype}
        entry["bytes"] = info.nbytes
        if place.layer is not None:
            entry["layer"] = place.layer
        if place.name in targeted:
            entry["kept"] = info.numel - requested(spec, info.numel)
            mask_bytes = info.numel // info.shape[-1] * -(-info.shape[-1] // 8)
            entry["bytes"] = min(info.nbytes, mask_bytes + entry["kept"] * DTYPES[info.dtype].itemsize)
        after += entry["bytes"]
        tensors[place.name] = entry
    return {
        "ticket": ticket_id(spec, base.files, targeted),
        "layers": sorted({p.layer for p in chosen if p.layer is not None}),
        "tensors": tensors,
        "disk_bytes_before": base.disk_bytes,
        "disk_bytes_after": after,
        **sparsities({"tensors": tensors}),
    }
