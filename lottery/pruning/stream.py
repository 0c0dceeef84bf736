"""Shards in, ticket shards out: one tensor in memory at a time, never a whole model.

While one tensor is selected, those before it are packed, hashed and written, and those after it are read.
"""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lottery.errors import InputError
from lottery.files import disk
from lottery.files.hashes import file_sha256
from lottery.files.home import write_file
from lottery.kernels import quantizing, select
from lottery.models.checkpoint import BITS, DTYPES, Source, TensorInfo, read_json
from lottery.models.families import Place
from lottery.progress import say, stage
from lottery.spec import FORMAT, Spec, ticket_id
from lottery.ticket.packing import (
    Kept,
    Writer,
    header_sha256,
    mask_alone,
    matrix_bits,
    packed,
    quantized,
    sha256_of,
    tensor_bytes,
    whole,
)
from lottery.ticket.record import sparsities, write_record

PACKERS = 2  # tensors that are packed and hashed at once


def draw_seed(spec: Spec, name: str) -> int | None:
    """What a tensor's random keys are drawn from; None where nothing is drawn."""
    if spec.method != "random":
        return None
    return int.from_bytes(hashlib.sha256(f"{spec.seed}:{name}".encode()).digest()[:8])


def requested(spec: Spec, numel: int) -> int:
    """How many of so many weights are asked to go: exact to the weight."""
    return round(spec.sparsity * numel)


def group_of(spec: Spec) -> tuple[int, int] | None:
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


def info_of(source: Source, place: Place) -> TensorInfo:
    return source.info(place.copy_of or place.name)


def to_quantize(source: Source, spec: Spec, chosen: Sequence[Place]) -> set[str]:
    """The matrices that are stored in 8 bits: attention and MLP of every layer, as bitsandbytes has it, and what is targeted."""
    if spec.quantize == "none":
        return set()
    return {p.name for p in [*source.places, *chosen] if p.role in ("attention", "mlp")} | {p.name for p in chosen}


class Selection:
    """Which weights of a tensor live, by the spec. With `scope=global`, after two passes over all targeted tensors.

    `survivors`: how many of each targeted tensor are to stay, whatever the sparsity (a control has as many as its ticket).
    """

    def __init__(
        self, spec: Spec, source: Source, chosen: Sequence[Place], survivors: Mapping[str, int] | None = None
    ) -> None:
        self.spec, self.survivors = spec, survivors
        self.groups = group_of(spec)
        self.sparser = 0  # targeted tensors that hold more zeros than asked for
        self.search: select.Search | None = None
        if spec.scope == "global":
            self._search(source, sorted(chosen, key=lambda p: p.name))

    def _search(self, source: Source, chosen: Sequence[Place]) -> None:
        asked = requested(self.spec, sum(info_of(source, p).numel for p in chosen))
        zeros, search, ahead = 0, select.Search(0), Budget(source, chosen).ahead
        total = sum(info_of(source, p).nbytes for p in chosen)
        with stage(f"find the threshold of {len(chosen)} tensors together", total, "bytes") as advance:
            stream = stream_of(source, chosen, ahead)
            for place in chosen:
                tensor, give_back = next(stream)
                zeros += check_finite(place.name, info_of(source, place).dtype, tensor)
                search.add(matrix_bits(tensor, place.transposed), draw_seed(self.spec, place.name))
                advance(tensor.nbytes)
                give_back()
                del tensor
        search.k = max(asked, zeros)
        self.sparser = 1 if zeros > asked else 0
        if search.step():
            with stage("refine the threshold", total, "bytes") as advance:
                stream = stream_of(source, chosen, ahead)
                for place in chosen:
                    tensor, give_back = next(stream)
                    search.add(matrix_bits(tensor, place.transposed), draw_seed(self.spec, place.name))
                    advance(tensor.nbytes)
                    give_back()
                    del tensor
            search.step()
        self.search = search

    def mask(self, place: Place, info: TensorInfo, bits_OI: np.ndarray, zeros: int) -> tuple[np.ndarray, int]:
        """(bitmask_OB, how many were asked to stay) of a targeted tensor. Tensors come in order of name where the scope
        is global: what is left of a tie goes to the first."""
        seed = draw_seed(self.spec, place.name)
        if self.search:
            mask_OB = select.select_below(bits_OI, self.search.limit, self.search.ties, seed)
            ties = select.count_ties(bits_OI, self.search.limit, seed)
            self.search.ties -= min(self.search.ties, int(ties.sum()))
            return mask_OB, int(select.row_counts(mask_OB).sum())
        if self.groups:
            mask_OB = select.select_groups(bits_OI, *self.groups, seed)
            self.sparser += int(select.row_counts(mask_OB).sum()) < info.numel // self.groups[1] * self.groups[0]
            return mask_OB, info.numel // self.groups[1] * self.groups[0]
        if self.survivors:
            kept = self.survivors[place.name]
            return select.select(bits_OI, info.numel - kept, seed), kept
        asked = requested(self.spec, info.numel)
        self.sparser += zeros > asked
        return select.select(bits_OI, max(asked, zeros), seed), info.numel - asked


class Budget:
    """Bytes of tensors in memory, by the largest: read ahead, and between selection and disk.

    Of a ticket's tensor, and of a matrix that is turned around, another form is in memory too.
    """

    def __init__(self, source: Source, places: Sequence[Place]) -> None:
        largest = max(info_of(source, p).nbytes for p in places)
        twice = source.ticket is not None or any(p.transposed for p in places)
        self.ahead = largest if twice else disk.in_flight(largest)
        self.unfinished = disk.in_flight(largest) - (largest if twice else 0)


def stream_of(
    source: Source, places: Sequence[Place], ahead: int
) -> Generator[tuple[torch.Tensor, Callable[[], None]]]:
    """Each place's tensor in turn, and how to give its memory back."""
    return source.stream([place.copy_of or place.name for place in places], ahead)


def prune_source(
    source: Source,
    spec: Spec,
    chosen: Sequence[Place],
    folder: Path,
    survivors: Mapping[str, int] | None = None,
    title: str | None = None,
) -> None:
    """Write the ticket that `spec` makes of `source` into the empty `folder`; the chosen places lose weights.
    `survivors` as in `Selection`, `title` for the progress bar.

    Raises InputError where a weight of the source is not a number.
    """
    targeted = {p.name for p in chosen}
    places = all_places(source, chosen)
    if spec.scope == "global":
        places = sorted(places, key=lambda p: p.name)  # ties are broken in this order
    selection = Selection(spec, source, chosen, survivors)
    masked = targeted | {p.name for p in source.places if source.kept(p.name) is not None}
    in_8_bits = to_quantize(source, spec, chosen)
    entries: dict[str, dict[str, Any]] = {}
    kept_space = [parts_of(spec, p, info_of(source, p), p.name in masked, p.name in in_8_bits) for p in places]
    writer = Writer(folder, [part for parts in kept_space for part in parts])
    total = sum(info_of(source, p).nbytes for p in places)
    title = title or f"prune {spec.target} to {spec.sparsity:.0%} by {spec.method}"
    packers, appender = ThreadPoolExecutor(PACKERS, "lottery-pack"), ThreadPoolExecutor(1, "lottery-put")
    budget = Budget(source, places)
    stream = stream_of(source, places, budget.ahead)
    with closing(writer), packers, appender, closing(stream), stage(title, total, "bytes") as advance:
        unfinished: deque[tuple[int, Future[None]]] = deque()
        for i, place in enumerate(places):
            info, (tensor, give_back) = info_of(source, place), next(stream)
            while unfinished and unfinished[0][1].done():
                unfinished.popleft()[1].result()
            entry = entries[place.name] = about(place, info)
            if (original := source.original_name(place.copy_of or place.name)) != place.name:
                entry["copy_of"] = original
            zeros = check_finite(place.name, info.dtype, tensor)
            mask_OB = bits_OI = None
            if place.name in masked | in_8_bits:
                bits_OI = matrix_bits(tensor, place.transposed)
            if bits_OI is not None and place.name in masked:
                if place.name in targeted:
                    mask_OB, entry["requested"] = selection.mask(place, info, bits_OI, zeros)
                else:
                    mask_OB = select.select(bits_OI, zeros)  # what an earlier ticket removed
            kind = spec.quantize if place.name in in_8_bits else "none"
            packing = packers.submit(pack, source, spec, place, info, tensor, bits_OI, mask_OB, zeros, kind)
            unfinished.append((info.nbytes, appender.submit(put, writer, packing, entry, give_back)))
            del tensor, bits_OI, mask_OB, packing
            advance(info.nbytes)
            coming = info_of(source, places[i + 1]).nbytes if i + 1 < len(places) else 0
            while unfinished and (not coming or sum(nbytes for nbytes, _ in unfinished) + coming > budget.unfinished):
                unfinished.popleft()[1].result()
        writer.finish()
    if selection.sparser:
        which = (
            "the targeted tensors together"
            if spec.scope == "global"
            else f"{selection.sparser} of {len(chosen)} targeted tensors"
        )
        say(
            f"warning: {which} hold more zeros than asked for and keep them: "
            f"the target is {sparsities({'tensors': entries})['sparsity_target']:.2%} zeros"
        )
    write_rest(source, spec, chosen, entries, folder)


def about(place: Place, info: TensorInfo) -> dict[str, Any]:
    """What the record says of any tensor."""
    entry: dict[str, Any] = {"role": place.role, "shape": list(info.shape), "dtype": info.dtype}
    if place.layer is not None:
        entry["layer"] = place.layer
    if place.transposed:
        entry["transposed"] = True
    return entry


def parts_of(
    spec: Spec, place: Place, info: TensorInfo, masked: bool, in_8_bits: bool
) -> list[tuple[str, str, Sequence[int]]]:
    """The keys under which a tensor may be stored, for the writer to keep space for."""
    dtype = quantizing.CODES[spec.quantize][0] if in_8_bits else info.dtype
    mask, values = (f"{place.name}.bitmask", "U8", info.shape), (f"{place.name}.values", dtype, info.shape)
    scale = (f"{place.name}.scale", "F32", (info.numel // columns_of(place, info),))
    if spec.storage == "mask":
        return [mask] if masked else []
    if in_8_bits:
        return [mask, values, scale]
    return [mask, values] if masked else [(place.name, info.dtype, info.shape)]


def pack(
    source: Source,
    spec: Spec,
    place: Place,
    info: TensorInfo,
    tensor: torch.Tensor,
    bits_OI: np.ndarray | None,
    mask_OB: np.ndarray | None,
    zeros: int,
    kind: str,
) -> tuple[dict[str, Any], list[Kept]]:
    """What completes a tensor's entry, and what is written of it in the way that `storage` and `quantize` say."""
    if spec.storage == "mask":
        original = source.original(place.copy_of or place.name)
        if mask_OB is None:
            return {"sha256": sha256_of(tensor_bytes(original))}, []
        return mask_alone(place, original, mask_OB)
    if kind != "none" and bits_OI is not None:
        return quantized(place, info, tensor, bits_OI, mask_OB, zeros, kind)
    if mask_OB is None or bits_OI is None:
        return whole(place.name, info.dtype, tensor)
    return packed(place, info, tensor, bits_OI, mask_OB)


def put(
    writer: Writer,
    packing: Future[tuple[dict[str, Any], list[Kept]]],
    entry: dict[str, Any],
    give_back: Callable[[], None],
) -> None:
    """One packed tensor into the ticket; in the order of submission, by one thread."""
    try:
        more, parts = packing.result()
        for part in parts:
            writer.add(*part)
        entry |= more
    finally:  # or the reader would wait for ever
        give_back()


def write_rest(
    source: Source, spec: Spec, chosen: Sequence[Place], entries: dict[str, dict[str, Any]], folder: Path
) -> None:
    """The small files, and last the record."""
    for name in source.small_files:
        shutil.copyfile(source.folder / name, folder / name)
    if any(p.copy_of for p in chosen):
        write_file(folder / "config.json", untied(read_json(folder / "config.json")))
    write_record(
        folder,
        {
            "format": FORMAT,
            "ticket": ticket_id(spec, source.origin["files"], [p.name for p in chosen], source.ticket),
            "spec": spec.bytes_spec(),
            "base": source.origin,
            **({"source": source.ticket} if source.ticket else {}),
            "layers": sorted({p.layer for p in chosen if p.layer is not None}),
            "tensors": entries,
            "dropped": source.dropped,
            "files": {name: file_sha256(folder / name) for name in source.small_files},
            "shards": {path.name: header_sha256(path) for path in sorted(folder.glob("ticket-*.safetensors"))},
        },
    )


def untied(config: dict[str, Any]) -> bytes:
    """config.json of a model whose head is a matrix of its own."""
    config["tie_word_embeddings"] = False
    if isinstance(config.get("text_config"), dict):
        config["text_config"]["tie_word_embeddings"] = False
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def warm_up(source: Source, spec: Spec, chosen: Sequence[Place]) -> None:
    """Have the kernels compiled before anything is timed."""
    for dtype in {info_of(source, p).dtype for p in chosen}:
        integer = np.dtype(str(BITS[dtype][0]).removeprefix("torch."))
        select.warm(integer)
        if spec.quantize != "none":
            quantizing.quantize(np.zeros((2, 8), integer), None, dtype, spec.quantize)


def check_choice(source: Source, spec: Spec, chosen: Sequence[Place], what: str) -> None:
    """What can be known to be impossible before a weight is read.

    Raises InputError for a targeted matrix whose weights are not plain floating-point numbers or, with an N:M pattern,
    do not divide into groups; for types that cannot be compared with each other; for a source that is quantized.
    """
    types: dict[str, str] = {}
    eight = to_quantize(source, spec, chosen) - {p.name for p in chosen}
    for place in [p for p in source.places if p.name in eight]:
        if (dtype := source.info(place.name).dtype) not in BITS:
            raise InputError(
                f"quantize={spec.quantize}: the tensor {place.name!r} is of type {dtype}; convert the model to {', '.join(BITS)}"
            )
    for place in chosen:
        info = info_of(source, place)
        types.setdefault(info.dtype, place.name)
        if info.dtype not in BITS:
            raise InputError(
                f"{what}: its tensor {place.name!r} is of type {info.dtype}; convert the model to {', '.join(BITS)}"
            )
        if (groups := group_of(spec)) and columns_of(place, info) % groups[1]:
            raise InputError(
                f"pattern={spec.pattern}: the {columns_of(place, info)} inputs of {place.name!r} do not divide into groups of "
                f"{groups[1]}; leave it out of the target, or give pattern=unstructured"
            )
    if len(types) > 1:
        mixed = ", ".join(f"{dtype} ({name})" for dtype, name in sorted(types.items()))
        if spec.scope == "global":
            raise InputError(f"{what}: the targeted weights are of mixed types, {mixed}; give scope=layer")
        say(f"warning: the targeted weights are of mixed types, {mixed}; each keeps its own")


def check_finite(name: str, dtype: str, tensor: torch.Tensor) -> int:
    """How many zeros the tensor holds. Raises InputError, naming it, where it holds NaN or infinity."""
    if dtype not in BITS:
        zeros, broken = 0, int(not tensor.double().isfinite().all())
    else:
        integer, infinity = BITS[dtype]
        bits = tensor.view(integer).numpy()
        zeros, broken = select.scan(bits if tensor.is_contiguous() else bits.T, infinity)
    if broken:
        raise InputError(f"model: its tensor {name!r} holds NaN or infinite weights; take another checkpoint")
    return zeros


def planned(source: Source, spec: Spec, chosen: Sequence[Place], identified: bool = True) -> dict[str, Any]:
    """What `prune_source` would write, from the headers alone: counts, and the tensors' bytes before and after.

    With `scope=global` how much each tensor loses depends on the weights: it is given as if spread evenly. `identified`:
    say which ticket it would be, which takes the hashes of the source's files.
    """
    targeted = {p.name for p in chosen}
    groups = group_of(spec)
    in_8_bits = to_quantize(source, spec, chosen)
    tensors: dict[str, dict[str, Any]] = {}
    after = 0
    for place in all_places(source, chosen):
        info = info_of(source, place)
        entry = about(place, info) | {"bytes": 0 if spec.storage == "mask" else info.nbytes}
        known = source.kept(place.copy_of or place.name)  # what an earlier ticket left
        if place.name in targeted:
            asked = info.numel // groups[1] * (groups[1] - groups[0]) if groups else requested(spec, info.numel)
            entry["requested"] = info.numel - asked
            entry["kept"] = info.numel - asked if known is None else min(known, info.numel - asked)
        elif known is not None:
            entry["kept"] = known
        width, scales = DTYPES[info.dtype].itemsize, 0
        rows = info.numel // columns_of(place, info)
        if place.name in in_8_bits:
            width, scales = 1, 4 * rows
            entry |= {"quantized": spec.quantize, "bytes": info.numel + scales}
        if "kept" in entry:
            mask_bytes = rows * -(-columns_of(place, info) // 8)
            entry["bytes"] = (
                mask_bytes
                if spec.storage == "mask"
                else min(info.numel * width, mask_bytes + entry["kept"] * width) + scales
            )
        after += entry["bytes"]
        tensors[place.name] = entry
    ticket = ticket_id(spec, source.origin["files"], targeted, source.ticket) if identified else None
    return {
        "ticket": ticket,
        "layers": sorted({p.layer for p in chosen if p.layer is not None}),
        "tensors": tensors,
        "dropped": source.dropped,
        "disk_bytes_after": after,
        **sparsities({"tensors": tensors}),
    }
