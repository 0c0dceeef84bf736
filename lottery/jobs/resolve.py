"""What a spec means on this machine: the model that it names, the tensors that it chooses, the base beside them."""

from collections.abc import Mapping
from typing import Any

from lottery.errors import InputError
from lottery.files.home import resolved
from lottery.measuring.measurement import beside
from lottery.measuring.shared import Shared
from lottery.models.checkpoint import Base
from lottery.models.families import PRUNABLE, Place
from lottery.models.hub import licence
from lottery.models.sources import open_base
from lottery.models.targets import choose, notes
from lottery.pruning.stream import check_choice, planned
from lottery.registry import fetching, store
from lottery.runtime import load
from lottery.spec import Spec
from lottery.ticket.opening import find_base, is_ticket, open_ticket
from lottery.ticket.stored import Stored


def open_choice(
    spec: Spec, shared: Shared | None = None, outline: bool = False
) -> tuple[Base | Stored, list[Place], Base | None]:
    """(what is to be pruned, the places chosen, the dense base if at hand). What can be wrong with model and target is
    found here."""
    shared = shared or Shared()
    need_base = spec.storage == "mask"
    opened = ("source", spec.model, need_base, outline)
    source, base = shared.once(opened, lambda: open_source(spec.model, need_base, outline))
    chosen = choose(spec.target, source.places, source.tied_head)
    check_choice(source, spec, chosen, f"model={spec.model}")
    if not (isinstance(source, Base) and source.is_outline):
        shared.once(("checked", *opened), lambda: load.check(source, [p.name for p in source.places]))
    return source, chosen, base


def open_source(model: str, need_base: bool = False, outline: bool = False) -> tuple[Base | Stored, Base | None]:
    """A model by any name that the parameter `model` takes, and the dense base beside it if at hand."""
    if not model.startswith("models:/") and not is_ticket(model):
        base = open_base(model, outline=outline)
        return base, base
    source = open_ticket(find_ticket(model).folder, need_base=need_base)
    if (quantize := source.record["spec"]["quantize"]) != "none":
        raise InputError(
            f"model={model}: that ticket is quantized ({quantize}), its weights are not the base's any more; "
            f"prune one that is not, or the base"
        )
    return source, source.base or base_of(source)


def find_ticket(ticket: str) -> fetching.Fetched:
    """A ticket given by folder or by registry URI; for a folder, the parameters that lie in its measurements.json."""
    if ticket.startswith("models:/"):
        return fetching.fetch(store.connect(reading=True), ticket)
    folder = resolved(ticket, "ticket")
    params = beside(folder).get("params")
    return fetching.Fetched(folder, None, params if isinstance(params, dict) else {})


def base_of(stored: Stored, base: str = "auto") -> Base | None:
    """The dense base of a ticket, where it is on this machine. Nothing is downloaded."""
    try:
        return find_base(stored, base, local_only=True)
    except InputError:
        if base != "auto":
            raise
        return None


def licence_of(source: Base | Stored) -> str | None:
    """The licence of the base that a model is or was made of."""
    if isinstance(source, Base):
        return licence(source.folder)
    if source.base:
        return licence(source.base.folder)
    stated = beside(source.folder).get("licence")
    return stated[:100] if isinstance(stated, str) else None


def plan(**parameters: Any) -> dict[str, Any]:
    """What `prune` would do: the tensors and layers chosen, their counts, bytes before and after. Writes nothing.

    A folder with config.json alone will do: shapes then come from the transformers class.
    """
    spec = Spec.parse(**parameters)
    source, chosen, _ = open_choice(spec, outline=True)
    bare = isinstance(source, Base) and source.is_outline
    found = planned(source, spec, chosen, identified=not bare)
    total = sum(source.info(p.name).numel for p in source.places)
    shares = {
        role: sum(source.info(p.name).numel for p in source.places if p.role == role) / total for role in PRUNABLE
    }
    return {
        "base": source.id if isinstance(source, Base) else source.origin["id"],
        "target": spec.target,
        "sparsity": spec.sparsity,
        "parameters": total,
        "shares": {role: share for role, share in shares.items() if share},
        "tied": source.tied_head is not None,
        "notes": notes(chosen, source.tied_head) + sparser_already(found["tensors"]),
        "disk_bytes_before": source.disk_bytes,
        **found,
    }


def sparser_already(tensors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    count = sum(entry["kept"] < entry["requested"] for entry in tensors.values() if "requested" in entry)
    return [f"{count} targeted tensors are sparser than asked for already and stay so"] if count else []
