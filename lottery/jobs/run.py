"""The story of one ticket: `run`, from a spec to a registered version."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lottery.errors import InputError, MachineError, blame
from lottery.files.home import alone, home, make_folder, new_folder, resolved
from lottery.jobs.resolve import licence_of, open_choice
from lottery.measuring.baseline import KEPT, Measured, Setup, measure_dense, measure_pair, prepare
from lottery.measuring.control import control_metrics, measure_controls
from lottery.measuring.measurement import Measurement, new_id
from lottery.measuring.shared import Shared
from lottery.measuring.speed import timed
from lottery.models.checkpoint import Base, Source
from lottery.models.families import Place
from lottery.models.targets import notes
from lottery.progress import say
from lottery.pruning.stream import planned, prune_source, warm_up
from lottery.registry import finding, publishing, runs, store, versions
from lottery.spec import Spec, dense_id, ticket_id
from lottery.ticket.record import MEASUREMENTS, RECORD, sparsities
from lottery.ticket.stored import Stored


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
    return run(ready(Spec.parse(**parameters)), None if out is None else Path(out))


@dataclass(frozen=True)
class Ready:
    """A ticket that can be made: everything that may be refused was looked at."""

    spec: Spec
    source: Base | Stored
    chosen: list[Place]
    base: Base | None
    setup: Setup
    ticket: str
    shared: Shared
    tags: dict[str, str]  # the first ones of its run
    name: str | None  # of the registered model that will hold it


def ready(spec: Spec, shared: Shared | None = None) -> Ready:
    """What is wrong with a spec is found here, before any work. Raises InputError, and MachineError where a hub fails."""
    shared = shared or Shared()
    source, chosen, base = open_choice(spec, shared)
    about = source.origin
    name = versions.model_name(spec.register, about["id"]) if spec.register != "none" else None
    setup = prepare(source, spec, about["id"], spec.quantize, shared)
    id = ticket_id(spec, about["files"], [p.name for p in chosen], source.ticket)
    return Ready(spec, source, chosen, base, setup, id, shared, first_tags("ticket", id, about["id"], setup), name)


def find_made(client: store.Client, job: Ready, parent: str | None = None) -> Any | None:
    """The newest finished run that holds all that this ticket's would, with a version of the model that it is to be
    registered as; of the study's run `parent` alone, if given."""
    if job.name is not None and versions.registered_before(client, job.name, job.ticket) is None:
        return None
    return finding.find_finished(client, job.tags, job.spec, job.base is not None, parent)


def run(
    job: Ready, out: Path | None = None, study: str | None = None, within: Mapping[str, str] | None = None
) -> Ticket:
    """One ticket: pruned, measured as it lies on disk, and registered. `study`: the name of the one that it belongs to;
    `within`: further tags of its run alone."""
    spec, source, chosen, base, setup, id = job.spec, job.source, job.chosen, job.base, job.setup, job.ticket
    about, name = source.origin, job.name
    for note in notes(chosen, source.tied_head):
        say(note)
    keep = out is not None or name is None
    client = store.connect()
    if out is not None:
        folder, named = resolved(out, "out"), "out"
        if folder.exists() and not folder.is_dir():
            raise InputError(f"out={out}: it is a file; give a new folder")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).exists():
            raise InputError(f"out={out}: it is not empty, and no ticket; give a new folder")
    else:  # what will be registered is at home only until then
        folder, named = home() / "tickets" / id, "LOTTERY_HOME"
        if not keep:  # one for each store: what one has not taken yet is not the other's to overwrite
            folder = home() / "unfinished" / f"{id}-{store.store_digest()[:8]}"
    make_folder(folder.parent, named)
    publishing.close_dead(client)
    tags, run_tags = job.tags | ({"study": study} if study else {}), dict(within or {})

    def is_this(found: Measurement) -> bool:
        return found.params == spec.params() and found.tags.get("protocol") == tags.get("protocol")

    send_what_is_pending(client, folder, id, is_this)
    title, measuring = spec.title, new_id()
    # Two runs of one ticket take turns: else both would register it, and one would take the other's files away.
    with runs.open_run(client, measuring, title, spec.params(), tags | run_tags, spec) as run, alone(id):
        stored, took = make(source, spec, chosen, base, folder, named)
        found = publishing.pending(client, folder)
        if found is not None and is_this(found):
            say("it was measured already by a process that did not come to record it")
            if (left := finding.find_run(client, found.id)) is not None:
                publishing.drop_begun(client, left)
            found = replace(found, id=measuring, tags=found.tags | tags, run_tags=run_tags)
        else:
            ticket, dense, dense_run = measure_pair(
                client, stored, base, setup, about["files"], spec.params(), job.shared
            )
            if spec.control and ticket.outcome:
                say(
                    f"warning: control={spec.control}: no control is measured, the ticket has no perplexity ({ticket.outcome})"
                )
            control_CN = None if ticket.outcome else measure_controls(source, spec, chosen, stored, setup)
            ticket = with_sizes(ticket, stored, took | control_metrics(ticket, control_CN))
            found = Measurement(
                kind="ticket",
                ticket=id,
                name=title,
                title=title,
                params=spec.params(),
                tags=tags | verdict(ticket, spec, setup),
                run_tags=run_tags,
                metrics=ticket.metrics,
                dense=dense.metrics,
                protocol=setup.protocol,
                nll_N=ticket.nll_N,
                control_CN=control_CN,
                samples=ticket.samples,
                quantize=spec.quantize,
                base=base.place if base else None,
                licence=licence_of(source),
                store=store.store_digest(),
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


def run_dense(job: Ready, study: str, within: Mapping[str, str]) -> tuple[Measured, str | None, bool]:
    """The dense base of a ticket alone, measured and recorded if no run of the store holds it under this protocol: (what
    was found, its run, whether it was measured now)."""
    client = store.connect()
    files, params = job.source.origin["files"], job.spec.params()
    dense, _, to_record = measure_dense(client, job.base, job.setup, files, params, job.shared)
    if to_record is None:
        wants = KEPT & set(job.setup.wants)
        known = finding.find_dense_run(client, dense_id(files), job.setup.protocol_id, wants)
        return dense, known.info.run_id if known else None, False
    tags = to_record.tags | {"study": study} | dict(within)
    try:
        with runs.open_run(client, to_record.id, to_record.name, to_record.params, tags) as run:
            publishing.record(run, replace(to_record, tags=tags), to_record.tags["base"], None, {})
            return dense, run.id, True
    except store.STORE_ERRORS as e:
        raise MachineError(
            f"{store.store_name()} did not take the dense baseline ({store.first_line(e)}); the same command measures "
            f"it again"
        ) from e


def send_what_is_pending(client: store.Client, folder: Path, id: str, is_this: Callable[[Measurement], bool]) -> None:
    """Record what was measured of this ticket under other parameters and did not reach the store: before it is measured
    again. What was measured under the same ones, the run that asks for them again takes over."""
    with alone(id), publishing.kept(folder):
        found = publishing.pending(client, folder)
        if found is not None and not is_this(found):
            say(f"{folder}: an earlier measuring that was not recorded is recorded first")
            publishing.send(client, folder, found)


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


def first_tags(kind: str, ticket: str, base: str, setup: Setup) -> dict[str, str]:
    protocol = {"protocol": setup.protocol_id} if setup.wants else {}
    if setup.protocol:
        protocol["arithmetic"] = setup.protocol.arithmetic
    about = {"device": setup.device, "hardware": setup.hardware, "family": setup.family}
    return {"kind": kind, "ticket": ticket, "base": base, **about, **protocol}


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
        "parameters": sum(
            math.prod(e["shape"]) for e in stored.record["tensors"].values() if "copy_of" not in e
        ),  # the base's
    }
    return replace(measured, metrics={**measured.metrics, **sizes, **more})
