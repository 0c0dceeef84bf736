"""The story of one ticket: `run` from a spec to a registered version, `evaluate` and `load` from there on."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lottery import fetching, models, publishing, registry, tracking
from lottery.baseline import Measured, Setup, measure_pair, prepare
from lottery.checkpoint import Base, Source
from lottery.control import control_metrics, measure_controls
from lottery.families import PRUNABLE, Place
from lottery.home import alone, home, make_folder, new_folder, resolved
from lottery.hub import licence
from lottery.measure import timed
from lottery.measurement import Measurement, beside, new_id
from lottery.progress import say
from lottery.pruning import check_choice, planned, prune_source, warm_up
from lottery.record import MEASUREMENTS, RECORD, sparsities
from lottery.sources import find_base, is_ticket, open_base, open_ticket
from lottery.spec import InputError, MachineError, Spec, blame, ticket_id
from lottery.targets import choose, notes
from lottery.ticket import Stored


@dataclass(frozen=True)
class Ticket:
    """What `prune` and `evaluate` give back: the fields of `--json`, and all that was found beside them."""

    ticket: str
    path: str | None
    run_id: str
    model_uri: str | None
    metrics: dict[str, float]
    tags: dict[str, str]
    found: Measurement = field(repr=False)
    page: str | None = field(default=None, repr=False)  # where a browser shows it among the others

    def json(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("found", "page")}


def prune(out: str | Path | None = None, **parameters: Any) -> Ticket:
    """Make, measure and register one ticket; the parameters of `lottery prune`, by name.

    Raises InputError (a ValueError) for what cannot be used, MachineError where a disk or the tracking store failed.
    """
    return run(Spec.parse(**parameters), None if out is None else Path(out))


def run(spec: Spec, out: Path | None) -> Ticket:
    """One ticket: found wrong before any work, or pruned, measured as it lies on disk, and registered."""
    source, chosen, base = locate(spec)
    about = source.origin
    name = registry.model_name(spec.register, about["id"]) if spec.register != "none" else None
    setup = prepare(source, spec, about["id"], spec.quantize)
    for note in notes(chosen, source.tied_head):
        say(note)
    id = ticket_id(spec, about["files"], [p.name for p in chosen], source.ticket)
    keep = out is not None or name is None
    client = tracking.connect()
    if out is not None:
        folder, named = resolved(out, "out"), "out"
        if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).exists():
            raise InputError(f"out={out}: it is not empty, and no ticket; give a new folder")
    else:  # what will be registered is at home only until then
        folder, named = home() / "tickets" / id, "LOTTERY_HOME"
        if not keep:  # one for each store: what one has not taken yet is not the other's to overwrite
            folder = home() / "unfinished" / f"{id}-{tracking.store_digest()[:8]}"
    make_folder(folder.parent, named)
    publishing.close_dead(client)
    tags = first_tags("ticket", id, about["id"], setup)

    def is_this(found: Measurement) -> bool:
        return found.params == spec.params() and found.tags.get("protocol") == tags.get("protocol")

    send_what_is_pending(client, folder, id, is_this)
    title, measuring = title_of(spec), new_id()
    # Two runs of one ticket take turns: else both would register it, and one would take the other's files away.
    with tracking.open_run(client, measuring, title, spec.params(), tags, spec) as run, alone(id):
        stored, took = make(source, spec, chosen, base, folder, named)
        found = publishing.pending(client, folder)
        if found is not None and is_this(found):
            say("it was measured already by a process that did not come to record it")
            if (left := tracking.find_run(client, found.id)) is not None:
                publishing.drop_begun(client, left)
            found = replace(found, id=measuring)
        else:
            ticket, dense, dense_run = measure_pair(client, stored, base, setup, about["files"], spec.params())
            control_CN = measure_controls(source, spec, chosen, stored, setup)
            ticket = with_sizes(ticket, stored, took | control_metrics(ticket, control_CN))
            found = Measurement(
                kind="ticket",
                ticket=id,
                name=title,
                title=title,
                params=spec.params(),
                tags=tags | verdict(ticket, spec, setup),
                metrics=ticket.metrics,
                dense=dense.metrics,
                protocol=setup.protocol,
                nll_N=ticket.nll_N,
                control_CN=control_CN,
                samples=ticket.samples,
                quantize=spec.quantize,
                base=base.place if base else None,
                licence=licence_of(source),
                store=tracking.store_digest(),
                dense_run=dense_run,
                id=measuring,
            )
        older = not setup.wants and (folder / MEASUREMENTS).exists()  # it has more to say
        if not older:
            found.save(folder)
        try:
            with publishing.kept(folder):
                uri, person = publishing.record_ticket(run, found, stored, name)
                run.finish()
        except MachineError:
            if older:
                found.save(folder)
            raise
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)  # the registry has it
    found = replace(found, tags=found.tags | person)
    return Ticket(id, str(folder) if keep else None, run.id, uri, found.metrics, found.tags, found, run.page)


def send_what_is_pending(
    client: tracking.Client, folder: Path, id: str, is_this: Callable[[Measurement], bool]
) -> None:
    """Record what was measured of this ticket under other parameters and did not reach the store: before it is measured
    again. What was measured under the same ones, the run that asks for them again takes over."""
    with alone(id), publishing.kept(folder):
        found = publishing.pending(client, folder)
        if found is not None and not is_this(found):
            say(f"{folder}: an earlier measuring that was not recorded is recorded first")
            publishing.send(client, folder, found)


def evaluate(ticket: str, base: str = "auto", **parameters: Any) -> Ticket:
    """Measure a ticket again, in a run of its own; a registered one's logged model gets the new figures beside the old.

    The parameters of `lottery evaluate`, by name. Raises InputError and MachineError as `prune` does.
    """
    spec = Spec.parse(**parameters)
    where = find_ticket(ticket)
    stored = open_ticket(where.folder, base)
    models.check(stored, stored.tensors)
    about = stored.origin
    setup = prepare(stored, spec, about["id"], stored.record["spec"]["quantize"])
    dense_base = stored.base or base_of(stored, base)
    client = tracking.connect()
    publishing.close_dead(client)
    names = ("dataset", "window", "limit", "measure", "runtime", "dtype", "device")
    params = {"ticket": ticket, "base": base} | {name: value for name, value in spec.params().items() if name in names}
    tags = first_tags("evaluation", stored.id, about["id"], setup)
    title, measuring = f"evaluate {ticket.removeprefix('models:/')}", new_id()
    made_by = Spec.parse(**{"target": where.params.get("target", "ticket"), **stored.record["spec"]})
    folder = make_folder(home() / "unfinished", "LOTTERY_HOME") / f"evaluation-{measuring}"
    with tracking.open_run(client, measuring, title, params, tags) as run:
        measured, dense, dense_run = measure_pair(client, stored, dense_base, setup, about["files"], spec.params())
        measured = with_sizes(measured, stored, {})
        found = Measurement(
            kind="evaluation",
            ticket=stored.id,
            name=title,
            title=title_of(made_by),
            params=params,
            tags=tags | verdict(measured, spec, setup),
            metrics=measured.metrics,
            dense=dense.metrics,
            protocol=setup.protocol,
            nll_N=measured.nll_N,
            samples=measured.samples,
            quantize=made_by.quantize,
            base=dense_base.place if dense_base else None,
            licence=licence_of(stored),
            store=tracking.store_digest(),
            model_id=where.model_id,
            dense_run=dense_run,
            id=measuring,
        )
        found.save(make_folder(folder, "LOTTERY_HOME"))
        with publishing.kept(folder):
            person = publishing.record_evaluation(run, found)
            run.finish()
    shutil.rmtree(folder, ignore_errors=True)
    found = replace(found, tags=found.tags | person)
    uri = ticket if where.model_id else None
    return Ticket(stored.id, str(where.folder), run.id, uri, found.metrics, found.tags, found, run.page)


def licence_of(source: Base | Stored) -> str | None:
    """The licence of the base that a model is or was made of."""
    if isinstance(source, Base):
        return licence(source.folder)
    if source.base:
        return licence(source.base.folder)
    stated = beside(source.folder).get("licence")
    return stated[:100] if isinstance(stated, str) else None


def load(
    uri_or_path: str | Path, device: str = "auto", dtype: str = "auto", runtime: str = "dense", base: str = "auto"
) -> tuple[Any, Any]:
    """(model, tokenizer or None) of a ticket: a folder, or models:/NAME/VERSION. Every hash is checked on the way.

    `base`: where the dense base of a ticket of masks lies, if not where it lay. Raises InputError where there is no such
    ticket, or its files are not those that were measured.
    """
    spec = Spec.parse(device=device, dtype=dtype, runtime=runtime)
    stored = open_ticket(find_ticket(str(uri_or_path)).folder, base)
    where = models.pick_device(spec.device)
    model = models.build(
        stored, stored.tensors, models.arithmetic(spec.dtype, stored.dtype, where), where, spec.runtime
    )
    return model, models.read_tokenizer(stored.folder)


def plan(**parameters: Any) -> dict[str, Any]:
    """What `prune` would do: the tensors and layers chosen, their counts, bytes before and after. Writes nothing.

    A folder with config.json alone will do: shapes then come from the transformers class.
    """
    spec = Spec.parse(**parameters)
    source, chosen, _ = locate(spec, outline=True)
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


def locate(spec: Spec, outline: bool = False) -> tuple[Base | Stored, list[Place], Base | None]:
    """(what is to be pruned, the places chosen, the dense base if at hand). What can be wrong with model and target is
    found here."""
    source: Base | Stored
    if spec.model.startswith("models:/") or is_ticket(spec.model):
        found = find_ticket(spec.model)
        source = open_ticket(found.folder, need_base=spec.storage == "mask")
        if (quantize := source.record["spec"]["quantize"]) != "none":
            raise InputError(
                f"model={spec.model}: that ticket is quantized ({quantize}), its weights are not the base's any more; "
                f"prune one that is not, or the base"
            )
        base = source.base or base_of(source)
    else:
        source = base = open_base(spec.model, outline=outline)
    chosen = choose(spec.target, source.places, source.tied_head)
    check_choice(source, spec, chosen, f"model={spec.model}")
    if not (isinstance(source, Base) and source.is_outline):
        models.check(source, [p.name for p in source.places])
    return source, chosen, base


def make(
    source: Source, spec: Spec, chosen: list[Place], base: Base | None, folder: Path, name: str
) -> tuple[Stored, dict[str, float]]:
    """The ticket in `folder`: pruned now (and `prune_s`), or whole from an earlier run of the same spec, every hash checked.

    `name` is the parameter to blame for the place.
    """
    took = {}
    warm_up(source, spec, chosen)
    with new_folder(folder, name) as partial:
        if partial is not None:
            need, free = planned(source, spec, chosen)["disk_bytes_after"], shutil.disk_usage(partial).free
            if need > free:
                raise MachineError(
                    f"{name}={folder}: the ticket takes {need:,} bytes, the disk has {free:,} free; "
                    f"make room, or give another folder"
                )
            try:
                _, took["prune_s"] = timed(lambda: prune_source(source, spec, chosen, partial))
            except OSError as e:
                raise blame(e, f"{name}={folder}: {e.strerror}; make room, or give another folder") from e
    stored = Stored(folder, base if spec.storage == "mask" else None)
    if stored.id != ticket_id(spec, source.origin["files"], [p.name for p in chosen], source.ticket):
        raise InputError(f"{name}={folder}: it holds another ticket, {stored.id}; give a new folder")
    if not took:
        stored.verify()
    return stored, took


def find_ticket(ticket: str) -> fetching.Fetched:
    """A ticket given by folder or by registry URI; for a folder, the parameters that lie in its measurements.json."""
    if ticket.startswith("models:/"):
        return fetching.fetch(tracking.connect(reading=True), ticket)
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


def title_of(spec: Spec) -> str:
    """The name of a run: what differs between tickets of one base, as short as it can be said."""
    words = [spec.target, f"{100 * spec.sparsity:g}%"]
    for name in ("method", "scope", "pattern", "quantize"):
        words += [getattr(spec, name)] if getattr(spec, name) != getattr(Spec(), name) else []
    return " ".join(words)


def first_tags(kind: str, ticket: str, base: str, setup: Setup) -> dict[str, str]:
    protocol = {"protocol": setup.protocol_id} if setup.wants else {}
    return {"kind": kind, "ticket": ticket, "base": base, "device": setup.device, **protocol}


def verdict(measured: Measured, spec: Spec, setup: Setup) -> dict[str, str]:
    """The tags that judge: `winner` where the interval of the ratio is known, `limited`, `outcome`."""
    tags = {"outcome": measured.outcome} if measured.outcome else {}
    if setup.protocol and spec.limit != "none":
        tags["limited"] = str(setup.protocol.windows)
    if "perplexity_ratio_hi" in measured.metrics:
        wins = measured.metrics["perplexity_ratio_hi"] <= 1 + spec.tolerance and "limited" not in tags
        tags["winner"] = "yes" if wins else "no"
    if "control_ratio_hi" in measured.metrics:
        tags["beats_control"] = "yes" if measured.metrics["control_ratio_hi"] < 1 else "no"
    return tags


def with_sizes(measured: Measured, stored: Stored, more: Mapping[str, float]) -> Measured:
    sizes = {
        **sparsities(stored.record),
        "disk_bytes": stored.disk_bytes,
        "disk_ratio": stored.disk_bytes / stored.origin["disk_bytes"],
    }
    return replace(measured, metrics={**measured.metrics, **sizes, **more})
