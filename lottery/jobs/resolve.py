"""What a spec means on this machine: the model that it names, the tensors that it chooses, the base beside them."""

from lottery.errors import InputError
from lottery.files.home import resolved
from lottery.measuring.measurement import beside
from lottery.measuring.shared import Shared
from lottery.models.checkpoint import Base
from lottery.models.families import Place
from lottery.models.hub import licence
from lottery.models.sources import open_base
from lottery.models.targets import choose
from lottery.pruning.stream import check_choice
from lottery.registry import fetching, store
from lottery.runtime import load
from lottery.spec import Spec
from lottery.ticket.opening import find_base, is_ticket, open_ticket
from lottery.ticket.stored import Stored


def resolve(
    spec: Spec, shared: Shared | None = None, outline: bool = False
) -> tuple[Base | Stored, list[Place], Base | None]:
    """(what is to be pruned, the places chosen, the dense base if at hand). What can be wrong with model and target is
    found here."""
    shared = shared or Shared()
    need_base = spec.storage == "mask"
    opened = ("source", spec.model, need_base, outline)
    source, base = shared.once(opened, lambda: open_model(spec.model, need_base, outline))
    chosen = choose(spec.target, source.places, source.tied_head)
    check_choice(source, spec, chosen, f"model={spec.model}")
    if not (isinstance(source, Base) and source.is_outline):
        shared.once(("checked", *opened), lambda: load.check(source, [p.name for p in source.places]))
    return source, chosen, base


def open_model(model: str, need_base: bool = False, outline: bool = False) -> tuple[Base | Stored, Base | None]:
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
    return source, source.base or find_base_here(source)


def find_ticket(ticket: str) -> fetching.Fetched:
    """A ticket given by folder or by registry URI; for a folder, the parameters that lie in its measurements.json."""
    if ticket.startswith("models:/"):
        return fetching.fetch(store.connect(reading=True), ticket)
    folder = resolved(ticket, "ticket")
    params = beside(folder).get("params")
    return fetching.Fetched(folder, None, params if isinstance(params, dict) else {})


def find_base_here(stored: Stored, base: str = "auto") -> Base | None:
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
