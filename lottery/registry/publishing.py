"""This file sends a measurement from the disk to MLflow once: its run, its logged model and its model version.

A process that is killed at any moment leaves no incomplete version, and a second try continues, because of the order of
the steps: first come the run, its logged model and its metrics, then the version, then the alias. Last of all the run
becomes FINISHED.
"""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lottery.errors import InputError, MachineError
from lottery.files.home import home
from lottery.files.locks import process_lock
from lottery.measuring.measurement import Measurement, read_measurement
from lottery.measuring.verdict import is_judged
from lottery.progress import progress_bar
from lottery.registry import cards, labels, lookup, runs, store, verdicts, versions
from lottery.registry.recovery import recover_logged_model
from lottery.registry.views import NOTE_TAG
from lottery.spec import run_name
from lottery.ticket.folder import TicketFolder
from lottery.ticket.record import MEASUREMENTS, layer_shares


def artifacts(found: Measurement) -> dict[str, Any]:
    """Returns a run's small files: name -> content."""
    files: dict[str, Any] = {MEASUREMENTS: found.json()}
    if found.nll_N is not None:
        files["nll_per_window.npy"] = found.nll_N
    if found.control_CN is not None:
        files["control_nll_per_window.npy"] = found.control_CN
    if found.samples:
        files["samples.json"] = found.samples
    return files


def log_measurement(run: runs.Run, found: Measurement, base: str, model_id: str | None, files: dict[str, Any]) -> None:
    """Writes everything that one run holds: params, tags, description, data set, metrics and small artifacts.

    The metrics are linked to the logged model `model_id`, if given.
    """
    run.log_params(found.params)
    run.set_tags(found.tags | found.run_tags | {NOTE_TAG: cards.run_description(found, base)})
    if found.protocol:
        run.log_dataset(found.protocol)
    run.log_metrics(found.metrics, found.protocol, model_id, found.time_ms)
    run.log_files(artifacts(found) | files)


def log_dense(run: runs.Run, dense: Measurement) -> None:
    """Writes the dense base's measurement to a run of its own, so that the next ticket finds it."""
    with runs.open_sibling_run(run, dense.id, dense.name, {"kind": "dense", "ticket": dense.ticket}) as own:
        if own is not None:
            log_measurement(own, dense, dense.tags["base"], None, {})


def log_ticket(
    run: runs.Run, found: Measurement, stored: TicketFolder, name: str | None, resumed: bool = False
) -> tuple[str | None, dict[str, str]]:
    """Writes a ticket's run and its version of the registered model `name` (None: no version is made).

    Returns the URI of the version and the label that a person gave the ticket. `resumed` says that an earlier try may
    have sent a part of this.
    """
    client, about = run.client, stored.base_record
    if found.dense_run:
        log_dense(run, found.dense_run)
    known = versions.find_version(client, name, stored.id) if name else None
    uri, model_id = known or (None, None)
    if model_id:
        versions.log_input_model(run, model_id)
    elif name:
        model_id = recover_logged_model(run, stored) if resumed else None
        if model_id is None:
            with progress_bar(f"register {name}"):
                model_id = versions.log_model(run, stored, run_name(about["id"], found.title), found.params, found.tags)
    person = labels.find_labels(client, found.tags, model_id if known else None)
    found = replace(found, tags=found.tags | person)
    layers = {
        "layers": stored.record["layers"],
        "tensors": [tensor for tensor, entry in stored.entries.items() if "requested" in entry],
        "shares": layer_shares(stored.entries.values()),
    }
    log_measurement(run, found, about["id"], model_id, {"layers.json": layers})
    if not name or not model_id:
        return None, person
    card, judged = cards.version_description(found, stored.record, model_id), dict(found.tags)
    if judged.keys() & {"winner", "outcome"}:
        judged[verdicts.JUDGED_BY] = run.id
    if uri is None:
        of_model = cards.model_description(about["id"], found.licence)
        uri, first_id = versions.register(client, model_id, name, of_model, judged, card)
        if first_id != model_id:  # another machine registered the same ticket first
            model_id = first_id
            versions.log_input_model(run, model_id)
            run.log_metrics(found.metrics, found.protocol, model_id, found.time_ms)
    elif may_judge(client, uri, found) and is_newest(client, model_id, found):
        verdicts.tag_version(client, uri, model_id, judged, card)
    if "winner" in found.tags:
        verdicts.set_winner_alias(client, name)
    return uri, person


def may_judge(client: store.Client, uri: str, found: Measurement) -> bool:
    """Returns whether the version takes over this verdict.

    It does so if the verdict counts for the alias, or if it is the first that was measured on all windows. A run with
    another tolerance or text keeps its verdict to itself; otherwise the version would contradict its own alias. A run
    that does not judge the ticket says so in a version that was registered without figures.
    """
    name, version = uri.removeprefix("models:/").rsplit("/", 1)
    have = client.get_model_version(name, version).tags
    if not is_judged(found.tags):
        return "winner" in found.tags and not have.keys() & {*verdicts.VERDICT, verdicts.JUDGED_BY}
    return verdicts.is_eligible(found.tags, found.params) or not is_judged(have)


def is_newest(client: store.Client, model_id: str, found: Measurement) -> bool:
    """Returns whether the logged model has no later measurement, whose verdict a late publication must not replace."""
    times = [m.timestamp for m in client.get_logged_model(model_id).metrics or [] if m.key == "perplexity"]
    return max(times, default=0) <= found.time_ms


def log_evaluation(run: runs.Run, found: Measurement) -> dict[str, str]:
    """Writes the run of a ticket that was measured again; returns the label that a person gave the ticket.

    If the ticket is registered, its logged model gets the new metrics in addition to its earlier ones.
    """
    if found.dense_run:
        log_dense(run, found.dense_run)
    if found.model_id:
        versions.log_input_model(run, found.model_id)
    person = labels.find_labels(run.client, found.tags, found.model_id)
    found = replace(found, tags=found.tags | person)
    log_measurement(run, found, found.tags["base"], found.model_id, {})
    return person


def publish(client: store.Client, folder: Path) -> tuple[str, str | None, bool]:
    """Sends a folder that holds a measured ticket or an evaluation.

    An unfinished run of this measurement is continued; otherwise a new run is made. Returns the run id, the URI of the
    version and whether anything was sent. Raises InputError if the folder holds no measurement, and MachineError if the
    store does not answer; then nothing is lost.
    """
    found = read_measurement(folder)
    if found is None or found.kind == "dense":
        raise InputError(f"dir={folder}: it has no {MEASUREMENTS} of a ticket; give a folder that a run has kept")
    with process_lock(found.ticket), explain_store_errors(folder):
        return send(client, folder, found)


def send(client: store.Client, folder: Path, found: Measurement) -> tuple[str, str | None, bool]:
    """Does the work of `publish`. The caller holds the ticket's lock."""
    stored, name = None, None
    if found.kind == "ticket":
        stored = TicketFolder(folder)
        if stored.id != found.ticket:
            raise InputError(
                f"dir={folder}: its {MEASUREMENTS} is of the ticket {found.ticket}, but the folder holds {stored.id}; "
                f"give a folder that a run has kept"
            )
        register = found.params.get("register", "auto")
        name = versions.model_name(register, stored.base_record["id"]) if register != "none" else None
    before = lookup.find_run(client, found.id)
    if before is not None and before.info.status == "FINISHED":
        known = versions.find_version(client, name, found.ticket) if name else None
        return before.info.run_id, known[0] if known else None, False
    if stored is not None and not stored.is_mask_only:  # the hashes of masks need the base, which may not be here
        stored.verify()
    uri = None
    resume = before.info.run_id if before is not None else None
    opened = runs.open_run(
        client, found.id, found.name, found.params, found.tags | found.run_tags, resume=resume, adopt=False
    )
    with opened as run:
        if stored is not None:
            uri, _ = log_ticket(run, found, stored, name, resumed=before is not None)
        else:
            log_evaluation(run, found)
    if folder.parent == home() / "unfinished":
        shutil.rmtree(folder, ignore_errors=True)  # the registry holds it now
    return run.id, uri, True


@contextlib.contextmanager
def explain_store_errors(folder: Path) -> Iterator[None]:
    """Turns a failure of the store into a MachineError that says where the measurement is kept."""
    try:
        yield
    except store.STORE_ERRORS as e:
        raise MachineError(
            f"{store.store_name()} did not record everything ({store.first_line(e)}); nothing is lost: the ticket and "
            f"its measurements are in {folder}; when the store is back, `lottery publish {folder}` records them"
        ) from e
