"""Tells the story of one ticket. Read `run` first: it goes from a checked job to a registered version."""

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
from lottery.jobs import calibrate
from lottery.jobs.job import Job, prepare_job
from lottery.jobs.resolve import licence_of, origin_tags
from lottery.jobs.result import Ticket, verdict_tags, with_sizes
from lottery.jobs.solved import find_solved
from lottery.measuring.baseline import measure_pair, plan_pair
from lottery.measuring.control import control_metrics, measure_controls, plan_controls
from lottery.measuring.measurement import Measurement, new_id
from lottery.measuring.speed import timed
from lottery.models.targets import tied_head_notes
from lottery.progress import say
from lottery.pruning.plan import plan_ticket
from lottery.pruning.samples import Samples
from lottery.pruning.stream import prune_source, warm_up
from lottery.registry import fetching, lookup, publishing, recovery, runs, store, versions
from lottery.spec import Spec, ticket_id
from lottery.ticket.comparing import count_differences
from lottery.ticket.record import MEASUREMENTS, RECORD
from lottery.ticket.stored import StoredTicket


def prune(out: str | Path | None = None, **parameters: Any) -> Ticket:
    """Makes, measures and registers one ticket. The parameters are those of `lottery prune`, by name.

    Raises InputError (a ValueError) for an input that cannot be used, MachineError where a disk or the tracking store
    fails.
    """
    return run(prepare_job(Spec.parse(**parameters)), None if out is None else Path(out))


def run(
    job: Job, out: Path | None = None, study: str | None = None, extra_tags: Mapping[str, str] | None = None
) -> Ticket:
    """Prunes one ticket, measures it as it lies on disk, and registers it.

    `study` names the study that the ticket belongs to. The tags of the job go to the run, the logged model and the version;
    `extra_tags` go to the run alone. Raises as `prune` does.
    """
    for note in tied_head_notes(job.chosen, job.source.tied_head):
        say(note)
    client = store.connect()
    destination = choose_destination(job, out)
    samples, tags = calibrate.draw(job.calibration, job.spec, job.source, job.base, job.setup, job.cache)
    job = replace(job, tags=job.tags | tags)
    recovery.close_killed_runs(client)
    job = replace(job, tags=job.tags | ({"study": study} if study else {}))
    record_other_measurement(client, job, destination.folder)
    id, run_tags = new_id(), dict(extra_tags or {})
    opened = runs.open_run(client, id, job.run_name, job.spec.params(), job.tags | run_tags, job.spec)
    # Two runs of one ticket take turns. Otherwise both would register it, and one would delete the other's files.
    with opened as mlflow_run, process_lock(job.ticket):
        stored, timings = make_ticket(client, job, destination, samples)
        stored = prefer_registered(client, job, stored, destination)
        measurement = recover_same_measurement(client, job, destination.folder)
        if measurement is None:
            measurement = measure(client, job, stored, timings)
        measurement = replace(measurement, id=id, tags=measurement.tags | job.tags, run_tags=run_tags)
        uri, labels = register(mlflow_run, job, measurement, stored, destination)
    measurement = replace(measurement, tags=measurement.tags | labels)
    path = str(destination.folder) if destination.keep else None
    return Ticket(
        job.ticket, path, mlflow_run.id, uri, measurement.metrics, measurement.tags, measurement, mlflow_run.page
    )


@dataclass(frozen=True)
class Destination:
    """Where a ticket's folder will lie."""

    folder: Path
    parameter: str  # out or LOTTERY_HOME: errors about the folder name it
    keep: bool  # whether the folder stays after the run: it does if `out` names it, or if nothing is registered


def choose_destination(job: Job, out: Path | None) -> Destination:
    """Returns the folder that `out` names, else one in LOTTERY_HOME. Raises InputError if it holds anything else."""
    if out is not None:
        folder = resolve_path(out, "out")
        if folder.exists() and not folder.is_dir():
            raise InputError(f"out={out}: it is a file; give a new folder")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).exists():
            raise InputError(f"out={out}: it is not empty and holds no ticket; give a new folder")
        destination = Destination(folder, "out", keep=True)
    elif job.name is None:
        destination = Destination(home() / "tickets" / job.ticket, "LOTTERY_HOME", keep=True)
    else:  # one folder per store: a ticket that one store does not have yet must not be overwritten for another
        folder = home() / "unfinished" / f"{job.ticket}-{store.store_digest()[:8]}"
        destination = Destination(folder, "LOTTERY_HOME", keep=False)
    make_folder(destination.folder.parent, destination.parameter)
    return destination


def is_same_measurement(job: Job, found: Measurement) -> bool:
    """Returns whether this job would measure the same again."""
    return found.params == job.spec.params() and found.tags.get("protocol") == job.tags.get("protocol")


def record_other_measurement(client: store.Client, job: Job, folder: Path) -> None:
    """Records an earlier measurement of this ticket that did not reach the store, before the ticket is measured again.

    A measurement under the same parameters is left alone: `recover_same_measurement` makes it this run's own.
    """
    with process_lock(job.ticket), publishing.explain_store_errors(folder):
        pending = recovery.find_pending(client, folder)
        if pending is not None and not is_same_measurement(job, pending):
            say(f"{folder}: an earlier measurement did not reach the store and is recorded first")
            publishing.send(client, folder, pending)


def make_ticket(
    client: store.Client, job: Job, destination: Destination, samples: Samples | None
) -> tuple[StoredTicket, dict[str, float]]:
    """Returns the ticket in its folder, and `prune_s` and `calibrate_s` (seconds) if it was pruned now.

    An earlier run of the same spec may have left the ticket complete; then every hash is checked. Raises InputError if
    the folder holds another ticket, MachineError for a full disk.
    """
    where, timings = f"{destination.parameter}={destination.folder}", {}
    warm_up(job.source, job.spec, job.chosen)
    clear_unreadable(destination)
    with atomic_folder(destination.folder, destination.parameter) as partial_folder:
        if partial_folder is not None:
            check_free_space(job, partial_folder, where)
            timings = prune_into(job, partial_folder, where, samples, find_solved(client, job, samples))
    stored = StoredTicket(destination.folder, job.base if job.spec.storage == "mask" else None)
    chosen = [p.name for p in job.chosen]
    if stored.id != ticket_id(job.spec, job.source.base_record["files"], chosen, job.source.ticket, job.identity):
        raise InputError(f"{where}: it holds another ticket, {stored.id}; give a new folder")
    if not timings:
        stored.verify()
    return stored, timings


def clear_unreadable(destination: Destination) -> None:
    """Deletes an unfinished ticket of an earlier run that cannot be opened. Raises InputError for a ticket that was to
    be kept, which only its owner deletes."""
    folder = destination.folder
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        StoredTicket(folder)
    except InputError as e:
        if destination.keep:
            raise InputError(f"{e}; or delete {folder}, and it is made anew") from e
        say(f"{folder}: what an earlier run left there is no whole ticket and is made again ({e})")
        shutil.rmtree(folder, ignore_errors=True)


def check_free_space(job: Job, folder: Path, where: str) -> None:
    """Raises MachineError that begins with `where` if the disk has not enough room for the ticket."""
    need = plan_ticket(job.source, job.spec, job.chosen, False, allocation=job.allocation)["disk_bytes_after"]
    if need > (free := shutil.disk_usage(folder).free):
        raise MachineError(
            f"{where}: the ticket takes {need:,} bytes, the disk has {free:,} free; make room, or give another folder"
        )


def prune_into(
    job: Job, folder: Path, where: str, samples: Samples | None, solved: StoredTicket | None
) -> dict[str, float]:
    """Writes the ticket into the empty folder. Returns the seconds that samples took to go through the blocks
    (`calibrate_s`, for a method that looks at data), and those of the rest (`prune_s`); neither for a ticket that takes
    the weights of another one (`solved`)."""
    try:
        calibrate_s, seconds = timed(
            lambda: prune_source(job.source, job.spec, job.chosen, folder, job.allocation, None, samples, solved)
        )
    except OSError as e:
        raise path_error(e, f"{where}: {e.strerror}; make room, or give another folder") from e
    if solved:
        return {}
    return {"prune_s": seconds - calibrate_s} | ({"calibrate_s": calibrate_s} if samples else {})


def prefer_registered(client: store.Client, job: Job, stored: StoredTicket, destination: Destination) -> StoredTicket:
    """Returns the ticket that will be measured: the registered one, where it is of this spec and has other bytes. It then
    takes the place of the other in its folder.

    Of what looks at data, or at spectra, the last bits of a sum depend on processor, threads and device, and may decide
    which of two nearly equal weights goes. A line then says how many did.
    """
    may_differ = job.calibration is not None or job.allocation.is_open
    with publishing.explain_store_errors(destination.folder):
        known = versions.find_version(client, job.name, job.ticket) if job.name and may_differ else None
        if known is None or versions.is_registered_as(client, known[1], stored.folder):
            return stored
        registered = StoredTicket(fetching.fetch(client, known[0]).folder, stored.base)
    bits, total = count_differences(registered, stored)
    say(
        f"{known[0]} is this ticket, made elsewhere or with other threads: {bits:,} of {total:,} mask bits differ from those "
        f"that are found here; the registered ticket stands and is measured"
    )
    shutil.rmtree(destination.folder)
    make_folder(destination.folder, destination.parameter)
    for path in registered.folder.iterdir():
        versions.link_or_copy(path, destination.folder / path.name)
    return StoredTicket(destination.folder, stored.base)


def recover_same_measurement(client: store.Client, job: Job, folder: Path) -> Measurement | None:
    """Returns what a process measured for the same job but could not record; None if there is no such measurement."""
    pending = recovery.find_pending(client, folder)
    if pending is None or not is_same_measurement(job, pending):
        return None
    say("this ticket was measured already, by a process that stopped before it recorded the result")
    if (unfinished := lookup.find_run(client, pending.id)) is not None:
        recovery.delete_unregistered(client, unfinished)
    return pending


def measure(client: store.Client, job: Job, stored: StoredTicket, timings: Mapping[str, float]) -> Measurement:
    """Measures the ticket, its dense base and its controls, and judges the ticket."""
    spec, setup, base = job.spec, job.setup, job.base
    params, files = spec.params(), job.source.base_record["files"]
    find_baseline = partial(lookup.load_dense_run, client)
    work = plan_pair(base, setup, files, job.cache, find_baseline)
    prune_s = 0.0 if job.calibration else timings.get("prune_s", 0.0)
    plan_controls(job.source, spec, job.chosen, stored, setup, work, prune_s)
    with work.shown():
        ticket, dense, dense_run = measure_pair(stored, base, setup, files, params, job.cache, find_baseline, work)
        if spec.control and ticket.outcome:
            reason = f"the ticket has no perplexity ({ticket.outcome})"
            say(f"warning: control={spec.control}: no control is measured, {reason}")
        control_CN = None if ticket.outcome else measure_controls(job.source, spec, job.chosen, stored, setup, work)
    ticket = with_sizes(ticket, stored, {**timings, **control_metrics(ticket, control_CN)})
    return Measurement(
        kind="ticket",
        ticket=job.ticket,
        name=job.run_name,
        title=spec.title,
        params=params,
        tags=job.tags | origin_tags(job.source) | verdict_tags(ticket, spec, setup),
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
    """Saves the measurement on disk, then logs it and the ticket to MLflow.

    Returns the URI of the model version, and the tags that a person gave to the ticket. Raises MachineError where
    the store fails; the measurement is then on disk for a later run.
    """
    folder = destination.folder
    # An earlier measurements.json says more than this one if this run measures nothing.
    older = not job.setup.measures and (folder / MEASUREMENTS).exists()
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
        shutil.rmtree(folder, ignore_errors=True)  # the registry holds it now
    return recorded
