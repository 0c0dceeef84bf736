"""Resolves a spec on this machine: the model that it names, the tensors that it chooses, and the dense base."""

import re

from lottery.errors import InputError, MachineError, without_subject
from lottery.files.home import printable, resolve_path
from lottery.files.reading import read_json
from lottery.measuring.cache import Cache
from lottery.measuring.measurement import read_raw_measurements
from lottery.models import hub
from lottery.models.checkpoint import Base
from lottery.models.families import Place
from lottery.models.gguf import PROVENANCE
from lottery.models.hub import read_licence
from lottery.models.sources import open_base
from lottery.models.targets import resolve_target
from lottery.progress import say
from lottery.pruning.plan import check_targets
from lottery.runtime import load
from lottery.spec import METHODS, Spec
from lottery.ticket.folder import LocalTicket
from lottery.ticket.opening import find_base, is_ticket, open_ticket
from lottery.ticket.record import RECORD
from lottery.ticket.stored import StoredTicket

GIVE_EITHER = "give a ticket (its folder, or models:/NAME/VERSION), or a dense base (builtin, a folder, a hub id)"


def resolve(
    spec: Spec, cache: Cache | None = None, config_only: bool = False
) -> tuple[Base | StoredTicket, list[Place], Base | None]:
    """Returns the model to prune, the chosen places, and the dense base (None if it is not on this machine).

    Raises InputError for what is wrong with model or target.
    """
    if METHODS[spec.method].trained:
        raise InputError(
            f"method={spec.method}: its tickets are trained, not pruned; run `lottery hypothesis`, or give another method"
        )
    cache = cache or Cache()
    need_base = spec.storage == "mask"
    opened = ("source", spec.model, need_base, config_only)
    source, base = cache.get_or_compute(opened, lambda: open_model(spec.model, need_base, config_only))
    if need_base and source.has_new_values:
        raise InputError(
            f"storage=mask: it takes the weights that stay from the base, but those of model={spec.model} were changed; "
            f"give storage=packed"
        )
    chosen = resolve_target(spec.target, source.places, source.tied_head)
    check_targets(source, spec, chosen, f"model={spec.model}")
    if not (isinstance(source, Base) and source.is_config_only):
        cache.get_or_compute(("checked", *opened), lambda: load.check_loadable(source, [p.name for p in source.places]))
    return source, chosen, base


def open_model(
    model: str, need_base: bool = False, config_only: bool = False
) -> tuple[Base | StoredTicket, Base | None]:
    """Opens a model by any name that the parameter `model` takes. Returns it, and its dense base if that is found."""
    if not model.startswith("models:/") and not is_ticket(model):
        base = open_base(model, config_only=config_only)
        return base, base
    source = open_ticket(find_ticket(model).folder, need_base=need_base)
    if (quantize := source.record["spec"]["quantize"]) != "none":
        raise InputError(
            f"model={model}: that ticket is quantized ({quantize}), so its weights are no longer those of the base; "
            f"prune a ticket that is not quantized, or the base"
        )
    return source, source.base or find_local_base(source)


def find_dense(ticket: str, base: str = "auto") -> Base | None:
    """Returns the dense base that `ticket` names, by any name that the parameter `model` takes; None for a ticket.

    A line says that it is a base. Raises InputError where it names neither, MachineError where the hub fails.
    """
    if ticket.startswith("models:/"):
        return None
    if ticket != "builtin":
        folder = resolve_path(ticket, "ticket")
        if (folder / RECORD).exists():
            return None
        if not (folder / "config.json").exists() and (folder.exists() or not hub.is_id(ticket)):
            problem = f"it holds no {RECORD} and no config.json" if folder.exists() else "there is no such folder"
            raise InputError(f"ticket={folder}: {problem}; {GIVE_EITHER}")
    try:
        dense = open_base(ticket)
    except (InputError, MachineError) as e:
        registered = f"; a registered ticket is models:/{ticket}" if re.fullmatch(r"[^/]+/\d+", ticket) else ""
        raise type(e)(f"ticket={ticket}: {without_subject(e)}{registered}") from e
    say(f"{ticket} is a dense base, not a ticket")
    if base != "auto":
        say(f"warning: base={base} is ignored: {ticket} is a dense base itself")
    return dense


def warn_of_runtime(runtime: str) -> None:
    """Warns that a dense base runs as with runtime=dense, if another runtime was asked for."""
    if runtime != "dense":
        say(f"warning: runtime={runtime}: a dense base has no packed matrix, so that it runs as with runtime=dense")


def find_ticket(ticket: str) -> LocalTicket:
    """Finds a ticket by its folder or its registry URI. The parameters of a folder come from its measurements.json."""
    if ticket.startswith("models:/"):
        from lottery.registry import fetching, store  # takes a second, which a folder does not need

        return fetching.fetch(store.connect(read_only=True), ticket)
    folder = resolve_path(ticket, "ticket")
    params = read_raw_measurements(folder).get("params")
    return LocalTicket(folder, None, params if isinstance(params, dict) else {})


def find_local_base(stored: StoredTicket, base: str = "auto") -> Base | None:
    """Returns the dense base of a ticket if it is on this machine, else None. Raises InputError for a wrong `base`."""
    try:
        return find_base(stored, base, local_only=True)
    except InputError:
        if base != "auto":
            raise
        return None


def licence_of(source: Base | StoredTicket) -> str | None:
    """Returns the licence of a base, or of the base that a ticket was made of; None if none is stated."""
    if isinstance(source, Base):
        return read_licence(source.folder)
    if source.base:
        return read_licence(source.base.folder)
    stated = read_raw_measurements(source.folder).get("licence")
    return stated[:100] if isinstance(stated, str) else None


def origin_tags(source: Base | StoredTicket) -> dict[str, str]:
    """Returns the tag `origin`, which says what `lottery import` did to the weights of a base, or of the base that a
    ticket was made of; no tag for any other base."""
    dense = source if isinstance(source, Base) else source.base
    try:
        if dense is None:
            stated = (read_raw_measurements(source.folder).get("tags") or {}).get("origin")
        else:
            stated = read_json(dense.folder / PROVENANCE).get("weights")
    except (InputError, AttributeError):  # a note in a file that anybody may have edited, or none
        return {}
    return {"origin": printable(stated)[:200]} if isinstance(stated, str) and stated else {}
