"""The story of one ticket: `run` from a spec to a registered version, `evaluate` and `load` from there on."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lottery import models, registry, tracking
from lottery.baseline import Measured, Setup, files_of, measure_pair, prepare, record_of
from lottery.checkpoint import Base, read_json
from lottery.home import alone, home, make_folder, new_folder, write_file
from lottery.measure import timed
from lottery.progress import stage
from lottery.pruning import check_types, planned, prune_base, warm_up
from lottery.spec import InputError, MachineError, Spec, blame, ticket_id
from lottery.targets import Place, choose, classify
from lottery.text import Protocol
from lottery.ticket import MEASUREMENTS, RECORD, Stored, sparsities


@dataclass(frozen=True)
class Ticket:
    """What `prune` and `evaluate` give back: the fields of `--json`, and what the printed table needs beside them."""

    ticket: str
    path: str | None
    run_id: str
    model_uri: str | None
    metrics: dict[str, float]
    tags: dict[str, str]
    dense: dict[str, float] = field(default_factory=dict, repr=False)
    protocol: Protocol | None = field(default=None, repr=False)
    samples: list[dict[str, str]] = field(default_factory=list, repr=False)
    title: str = field(default="ticket", repr=False)
    tolerance: float = field(default=0.10, repr=False)

    def json(self) -> dict[str, Any]:
        names = ("ticket", "path", "run_id", "model_uri", "metrics", "tags")
        return {name: value for name, value in asdict(self).items() if name in names}


def prune(out: str | Path | None = None, **parameters: Any) -> Ticket:
    """Make, measure and register one ticket; the parameters of `lottery prune`, by name.

    Raises InputError (a ValueError) for what cannot be used, MachineError where a disk or the tracking store failed.
    """
    return run(Spec.parse(**parameters), None if out is None else Path(out))


def run(spec: Spec, out: Path | None) -> Ticket:
    """One ticket: found wrong before any work, or pruned, measured as it lies on disk, and registered."""
    base, places, chosen = locate(spec)
    name = registry.model_name(spec.register, base.id)
    setup = prepare(base, spec, base.id)
    id = ticket_id(spec, base.files, [p.name for p in chosen])
    keep = out is not None or spec.register == "none"
    if out is not None:
        folder, named = out.expanduser().resolve(), "out"
        if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).exists():
            raise InputError(f"out={out}: it is not empty, and no ticket; give a new folder")
    else:  # what will be registered is at home only until then
        folder, named = home() / ("tickets" if keep else "unfinished") / id, "LOTTERY_HOME"
    make_folder(folder.parent, named)
    client = tracking.connect()

    tags = first_tags("ticket", id, base.id, setup)
    name_of_run = title(spec.target, spec.sparsity, spec.method)
    uri = None
    # Two runs of one ticket take turns: else both would register it, and one would take the other's files away.
    with tracking.open_run(client, name_of_run, spec.params(), tags, spec) as run, alone(id):
        stored, took = make(base, spec, places, chosen, folder, named)
        ticket, dense = measure_pair(run, stored, base, setup, base.files)
        ticket = with_sizes(ticket, stored, took)
        tags |= verdict(ticket, spec, setup)
        record = record_of(ticket, dense, setup, spec.params(), tags)
        if setup.wants or not (folder / MEASUREMENTS).exists():
            write_file(folder / MEASUREMENTS, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
        known = registry.registered_before(client, name, id) if spec.register != "none" else None
        uri, model_id = known or (None, None)
        if model_id:
            registry.use_model(run, model_id)
        elif spec.register != "none":
            with stage(f"register {name}"):
                model_id = registry.log_model(run, stored, spec.params(), tags)
        layers = {"layers": stored.record["layers"], "tensors": [p.name for p in chosen]}
        report(run, ticket, setup, tags, record, model_id, {"layers.json": layers})
        if model_id and uri is None:
            uri = registry.register(client, model_id, name, tags)
        elif model_id and uri and "winner" in tags and "limited" not in tags:
            registry.tag_version(client, uri, model_id, tags)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)  # the registry has it
    path = str(folder) if keep else None
    return Ticket(
        id,
        path,
        run.id,
        uri,
        ticket.metrics,
        tags,
        dense.metrics,
        setup.protocol,
        ticket.samples,
        name_of_run,
        spec.tolerance,
    )


def evaluate(ticket: str, **parameters: Any) -> Ticket:
    """Measure a ticket again, in a run of its own; a registered one's logged model gets the new figures beside the old.

    The parameters of `lottery evaluate`, by name. Raises InputError and MachineError as `prune` does.
    """
    spec = Spec.parse(**parameters)
    found = find_ticket(ticket)
    stored = Stored(found.folder)
    models.check(stored, stored.tensors)
    about = stored.record["base"]
    setup = prepare(stored, spec, about["id"])
    base = base_of(found.params.get("model", about["id"]), about["files"])
    client = tracking.connect()
    names = ("dataset", "window", "limit", "measure", "runtime", "dtype", "device")
    params = {"ticket": ticket} | {name: value for name, value in spec.params().items() if name in names}
    tags = first_tags("evaluation", stored.id, about["id"], setup)
    with tracking.open_run(client, f"evaluate {ticket.removeprefix('models:/')}", params, tags) as run:
        measured, dense = measure_pair(run, stored, base, setup, about["files"])
        measured = with_sizes(measured, stored, {})
        tags |= verdict(measured, spec, setup)
        if found.model_id:
            registry.use_model(run, found.model_id)
        report(run, measured, setup, tags, record_of(measured, dense, setup, params, tags), found.model_id, {})
    uri = ticket if found.model_id else None
    return Ticket(
        stored.id,
        str(found.folder),
        run.id,
        uri,
        measured.metrics,
        tags,
        dense.metrics,
        setup.protocol,
        measured.samples,
        title(found.params.get("target", "ticket"), stored.record["spec"]["sparsity"], stored.record["spec"]["method"]),
    )


def load(uri_or_path: str | Path, device: str = "auto", dtype: str = "auto", runtime: str = "dense") -> tuple[Any, Any]:
    """(model, tokenizer or None) of a ticket: a folder, or models:/NAME/VERSION. Every hash is checked on the way.

    Raises InputError where there is no such ticket, or its files are not those that were measured.
    """
    spec = Spec.parse(device=device, dtype=dtype, runtime=runtime)
    stored = Stored(find_ticket(str(uri_or_path)).folder)
    where = models.pick_device(spec.device)
    model = models.build(stored, stored.tensors, models.arithmetic(spec.dtype, stored.dtype, where), where)
    return model, models.read_tokenizer(stored.folder)


def plan(**parameters: Any) -> dict[str, Any]:
    """What `prune` would do: the tensors and layers chosen, their counts, bytes before and after. Writes nothing."""
    spec = Spec.parse(**parameters)
    base, places, chosen = locate(spec)
    return {"base": base.id, "target": spec.target, "sparsity": spec.sparsity, **planned(base, spec, places, chosen)}


def locate(spec: Spec) -> tuple[Base, list[Place], list[Place]]:
    """(base, every tensor's place, the places chosen). All that can be wrong with model and target is found here."""
    base = Base(spec.model)
    places = classify(base.tensors, base.model_type)
    chosen = choose(spec.target, places)
    check_types(base, chosen)
    models.check(base, [p.name for p in places if p.role != "buffer"])
    return base, places, chosen


def make(
    base: Base, spec: Spec, places: list[Place], chosen: list[Place], folder: Path, name: str
) -> tuple[Stored, dict[str, float]]:
    """The ticket in `folder`: pruned now (and `prune_s`), or whole from an earlier run of the same spec, every hash checked.

    `name` is the parameter to blame for the place.
    """
    took = {}
    warm_up(base, chosen)
    with new_folder(folder, name) as partial:
        if partial is not None:
            need, free = planned(base, spec, places, chosen)["disk_bytes_after"], shutil.disk_usage(partial).free
            if need > free:
                raise MachineError(
                    f"{name}={folder}: the ticket takes {need:,} bytes, the disk has {free:,} free; "
                    f"make room, or give another folder"
                )
            try:
                _, took["prune_s"] = timed(lambda: prune_base(base, spec, places, chosen, partial))
            except OSError as e:
                raise blame(e, f"{name}={folder}: {e.strerror}; make room, or give another folder") from e
    stored = Stored(folder)
    if stored.id != ticket_id(spec, base.files, [p.name for p in chosen]):
        raise InputError(f"{name}={folder}: it holds another ticket, {stored.id}; give a new folder")
    if not took:
        stored.verify()
    return stored, took


def find_ticket(ticket: str) -> registry.Fetched:
    """A ticket given by folder or by registry URI; for a folder, the parameters that lie in its measurements.json."""
    if ticket.startswith("models:/"):
        return registry.fetch(tracking.connect(reading=True), ticket)
    folder = Path(ticket).expanduser().resolve()
    beside = read_json(folder / MEASUREMENTS) if (folder / MEASUREMENTS).is_file() else {}
    params = beside.get("params")
    return registry.Fetched(folder, None, params if isinstance(params, dict) else {})


def base_of(model: str, files: Mapping[str, str]) -> Base | None:
    """The dense base of a ticket, where it still lies where it was and is the same to the byte."""
    try:
        base = Base(model)
    except InputError:
        return None
    return base if base.files == dict(files) else None


def title(target: str, sparsity: float, method: str) -> str:
    """The name of a run: what differs between tickets of one base, as short as it can be said."""
    return f"{target} {100 * sparsity:g}%" + ("" if method == "magnitude" else f" {method}")


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
    return tags


def with_sizes(measured: Measured, stored: Stored, more: Mapping[str, float]) -> Measured:
    sizes = {
        **sparsities(stored.record),
        "disk_bytes": stored.disk_bytes,
        "disk_ratio": stored.disk_bytes / stored.record["base"]["disk_bytes"],
    }
    return replace(measured, metrics={**measured.metrics, **sizes, **more})


def report(
    run: tracking.Run,
    measured: Measured,
    setup: Setup,
    tags: Mapping[str, str],
    record: dict[str, Any],
    model_id: str | None,
    more: Mapping[str, Any],
) -> None:
    """Everything that one run holds: tags, data set, metrics tied to the logged model, small artifacts."""
    run.tag(tags)
    if setup.protocol:
        run.log_dataset(setup.protocol)
    run.log_metrics(measured.metrics, setup.protocol, model_id)
    run.log_files(files_of(measured, record) | dict(more))
