"""The story of one ticket. Read `run` first: it goes from a validated job to a registered version."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lottery.errors import InputError, MachineError, path_error
from lottery.files.atomic import atomic_folder
from lottery.files.home import home, make_folder, resolve_path
from lottery.files.locks import process_lock
from lottery.jobs.job import Job, prepare_job
from lottery.jobs.resolve import licence_of
from lottery.jobs.result import Ticket, verdict_tags, with_sizes
from lottery.measuring.baseline import measure_pair
from lottery.measuring.control import control_metrics, measure_controls
from lottery.measuring.measurement import Measurement, new_id
from lottery.measuring.speed import timed
from lottery.models.targets import tied_head_notes
from lottery.progress import say
from lottery.pruning.plan import plan_ticket
from lottery.pruning.stream import prune_source, warm_up
from lottery.registry import lookup, publishing, recovery, runs, store
from lottery.spec import Spec, ticket_id
from lottery.ticket.record import MEASUREMENTS, RECORD
from lottery.ticket.stored import StoredTicket


def prune(out: str | Path | None = None, **parameters: Any) -> Ticket:
    """Make, measure and register one ticket; the parameters of `lottery prune`, by name.

    Raises InputError (a ValueError) for what cannot be used, MachineError where a disk or the tracking store failed.
    """
    return run(prepare_job(Spec.parse(**parameters)), None if out is None else Path(out))


def run(
    job: Job, out: Path | None = None, study: str | None = None, extra_tags: Mapping[str, str] | None = None
) -> Ticket:
    """One ticket: pruned, measured as it lies on disk, and registered.

    `study` is the name of the study that the ticket belongs to; `extra_tags` holds further tags of its run alone.
    """
    for note in tied_head_notes(job.chosen, job.source.tied_head):
        say(note)
    client = store.connect()
    destination = choose_destination(job, out)
    recovery.close_killed_runs(client)
    job = replace(job, tags=job.tags | ({"study": study} if study else {}))
    record_pending(client, job, destination.folder)
    measuring, run_tags = new_id(), dict(extra_tags or {})
    opened = runs.open_run(client, measuring, job.spec.title, job.spec.params(), job.tags | run_tags, job.spec)
    # Two runs of one ticket take turns: else both would register it, and one would take the other's files away.
    with opened as run, process_lock(job.ticket):
        stored, seconds = make_ticket(job, destination)
        found = recover_measurement(client, job, destination.folder)
        if found is None:
            found = measure(client, job, stored, seconds)
        found = replace(found, id=measuring, tags=found.tags | job.tags, run_tags=run_tags)
        uri, labels = register(run, job, found, stored, destination)
    found = replace(found, tags=found.tags | labels)
    path = str(destination.folder) if destination.keep else None
    return Ticket(job.ticket, path, run.id, uri, found.metrics, found.tags, found, run.page)


@dataclass(frozen=True)
class Destination:
    """Where a ticket's folder comes to lie."""

    folder: Path
    parameter: str  # that an error about the folder names: out, or LOTTERY_HOME
    keep: bool  # after the run; what is registered and was not asked for by `out` is removed then


def choose_destination(job: Job, out: Path | None) -> Destination:
    """The folder that `out` names, else one in LOTTERY_HOME. Raises InputError for a folder that holds anything else."""
    if out is not None:
        folder = resolve_path(out, "out")
        if folder.exists() and not folder.is_dir():
            raise InputError(f"out={out}: it is a file; give a new folder")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).exists():
            raise InputError(f"out={out}: it is not empty, and no ticket; give a new folder")
        found = Destination(folder, "out", keep=True)
    elif job.name is None:
        found = Destination(home() / "tickets" / job.ticket, "LOTTERY_HOME", keep=True)
    else:  # one for each store: what one has not taken yet is not the other's to overwrite
        folder = home() / "unfinished" / f"{job.ticket}-{store.store_digest()[:8]}"
        found = Destination(folder, "LOTTERY_HOME", keep=False)
    make_folder(found.folder.parent, found.parameter)
    return found


def is_same_measurement(job: Job, found: Measurement) -> bool:
    """Whether this job would measure the same again."""
    return found.params == job.spec.params() and found.tags.get("protocol") == job.tags.get("protocol")


def record_pending(client: store.Client, job: Job, folder: Path) -> None:
    """Record what was measured of this ticket under other parameters and did not reach the store: before it is measured
    again. What was measured under the same ones, the run that asks for them again takes over."""
    with process_lock(job.ticket), publishing.explain_store_errors(folder):
        found = recovery.find_pending(client, folder)
        if found is not None and not is_same_measurement(job, found):
            say(f"{folder}: an earlier measuring that was not recorded is recorded first")
            publishing.send(client, folder, found)


def make_ticket(job: Job, destination: Destination) -> tuple[StoredTicket, dict[str, float]]:
    """The ticket in its folder: pruned now (and `prune_s`), or whole from an earlier run of the same spec, every hash
    checked."""
    source, spec, seconds = job.source, job.spec, {}
    where = f"{destination.parameter}={destination.folder}"
    warm_up(source, spec, job.chosen)
    with atomic_folder(destination.folder, destination.parameter) as partial_folder:
        if partial_folder is not None:
            need = plan_ticket(source, spec, job.chosen)["disk_bytes_after"]
            if need > (free := shutil.disk_usage(partial_folder).free):
                raise MachineError(
                    f"{where}: the ticket takes {need:,} bytes, the disk has {free:,} free; "
                    f"make room, or give another folder"
                )
            try:
                _, seconds["prune_s"] = timed(lambda: prune_source(source, spec, job.chosen, partial_folder))
            except OSError as e:
                raise path_error(e, f"{where}: {e.strerror}; make room, or give another folder") from e
    stored = StoredTicket(destination.folder, job.base if spec.storage == "mask" else None)
    if stored.id != ticket_id(spec, source.base_record["files"], [p.name for p in job.chosen], source.ticket):
        raise InputError(f"{where}: it holds another ticket, {stored.id}; give a new folder")
    if not seconds:
        stored.verify()
    return stored, seconds


def recover_measurement(client: store.Client, job: Job, folder: Path) -> Measurement | None:
    """What a process that did not come to record it has measured for the same job, None where there is none."""
    found = recovery.find_pending(client, folder)
    if found is None or not is_same_measurement(job, found):
        return None
    say("it was measured already by a process that did not come to record it")
    if (left := lookup.find_run(client, found.id)) is not None:
        recovery.delete_unregistered(client, left)
    return found


def measure(client: store.Client, job: Job, stored: StoredTicket, seconds: Mapping[str, float]) -> Measurement:
    """The ticket measured beside its dense base and its controls, and judged."""
    spec, setup, base = job.spec, job.setup, job.base
    params, files = spec.params(), job.source.base_record["files"]
    known = partial(lookup.load_dense_run, client)
    ticket, dense, dense_run = measure_pair(stored, base, setup, files, params, job.cache, known)
    if spec.control and ticket.outcome:
        say(f"warning: control={spec.control}: no control is measured, the ticket has no perplexity ({ticket.outcome})")
    control_CN = None if ticket.outcome else measure_controls(job.source, spec, job.chosen, stored, setup)
    ticket = with_sizes(ticket, stored, {**seconds, **control_metrics(ticket, control_CN)})
    return Measurement(
        kind="ticket",
        ticket=job.ticket,
        name=spec.title,
        title=spec.title,
        params=params,
        tags=job.tags | verdict_tags(ticket, spec, setup),
        metrics=ticket.metrics,
        dense=dense.metrics,
        protocol=setup.protocol,
        nll_N=ticket.nll_N,
        control_CN=control_CN,
        samples=ticket.samples,
        quantize=spec.quantize,
        base=base.name_or_path if base else None,
        licence=licence_of(job.source),
        store=store.store_digest(),
        dense_run=dense_run,
    )


def register(
    run: runs.Run, job: Job, found: Measurement, stored: StoredTicket, destination: Destination
) -> tuple[str | None, dict[str, str]]:
    """What was found goes to the disk first, and from there to MLflow: (the version's URI, what a person said of it)."""
    folder = destination.folder
    older = not job.setup.measures and (folder / MEASUREMENTS).exists()  # it has more to say
    if not older:
        found.save(folder)
    try:
        with publishing.explain_store_errors(folder):
            recorded = publishing.log_ticket(run, found, stored, job.name)
            run.finish()
    except MachineError:
        if older:
            found.save(folder)
        raise
    if not destination.keep:
        shutil.rmtree(folder, ignore_errors=True)  # the registry has it
    return recorded
