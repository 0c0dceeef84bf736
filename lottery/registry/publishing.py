"""From a measuring on disk to MLflow: its run, its logged model, its version. Once, however often it is tried.

Everything is sent from the folder, in an order in which a kill at any moment leaves no half version, and a second try goes
on: first the run with its logged model and figures, then the version, then the alias, last of all the run is FINISHED.
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
from lottery.progress import progress_bar
from lottery.registry import cards, labels, lookup, runs, store, verdicts, versions
from lottery.registry.recovery import recover_logged_model
from lottery.ticket.folder import TicketFolder
from lottery.ticket.record import MEASUREMENTS


def artifacts(found: Measurement) -> dict[str, Any]:
    """A run's small files: name -> content."""
    files: dict[str, Any] = {MEASUREMENTS: found.json()}
    if found.nll_N is not None:
        files["nll_per_window.npy"] = found.nll_N
    if found.control_CN is not None:
        files["control_nll_per_window.npy"] = found.control_CN
    if found.samples:
        files["samples.json"] = found.samples
    return files


def log_measurement(run: runs.Run, found: Measurement, base: str, model_id: str | None, files: dict[str, Any]) -> None:
    """Everything that one run holds: tags, description, data set, metrics tied to the logged model, small artifacts."""
    run.log_params(found.params)
    run.set_tags(found.tags | found.run_tags | {"mlflow.note.content": cards.run_description(found, base)})
    if found.protocol:
        run.log_dataset(found.protocol)
    run.log_metrics(found.metrics, found.protocol, model_id, found.time_ms)
    run.log_files(artifacts(found) | files)


def log_dense(run: runs.Run, dense: Measurement) -> None:
    """A run of its own for the dense base, beside the one that needed it, where the next ticket finds it."""
    with runs.open_sibling_run(run, dense.id, dense.name, {"kind": "dense", "ticket": dense.ticket}) as own:
        if own is not None:
            log_measurement(own, dense, dense.tags["base"], None, {})


def log_ticket(
    run: runs.Run, found: Measurement, stored: TicketFolder, name: str | None, resumed: bool = False
) -> tuple[str | None, dict[str, str]]:
    """A ticket's run, and its version of the registered model `name` (None: no version). (URI, tags by a person).

    `resumed`: an earlier try may have sent a part of it.
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
                model_id = versions.log_model(run, stored, found.title, found.params, found.tags)
    person = labels.find_labels(client, found.tags, model_id if known else None)
    found = replace(found, tags=found.tags | person)
    targeted = [tensor for tensor, entry in stored.entries.items() if "requested" in entry]
    log_measurement(
        run, found, about["id"], model_id, {"layers.json": {"layers": stored.record["layers"], "tensors": targeted}}
    )
    if not name or not model_id:
        return None, person
    card, judged = cards.version_description(found, stored.record, model_id), dict(found.tags)
    if judged.keys() & {"winner", "outcome"}:
        judged[verdicts.JUDGED_BY] = run.id
    if uri is None:
        of_model = cards.model_description(about["id"], found.licence)
        uri, first_id = versions.register(client, model_id, name, of_model, judged, card)
        if first_id != model_id:  # another machine's, of the same ticket
            model_id = first_id
            versions.log_input_model(run, model_id)
            run.log_metrics(found.metrics, found.protocol, model_id, found.time_ms)
    elif may_judge(client, uri, found) and is_newest(client, model_id, found):
        verdicts.tag_version(client, uri, model_id, judged, card)
    if "winner" in found.tags:
        verdicts.set_winner_alias(client, name)
    return uri, person


def may_judge(client: store.Client, uri: str, found: Measurement) -> bool:
    """Whether the version takes this verdict: one that counts for the alias, or the first that is not of a few windows. A
    run by another tolerance or text says it of itself alone: the version would contradict its own alias."""
    if "winner" not in found.tags or "limited" in found.tags:
        return False
    name, version = uri.removeprefix("models:/").rsplit("/", 1)
    have = client.get_model_version(name, version).tags
    return verdicts.is_eligible(found.tags, found.params) or "winner" not in have or "limited" in have


def is_newest(client: store.Client, model_id: str, found: Measurement) -> bool:
    """Whether nothing was measured of that logged model later: what is published late does not judge over it."""
    times = [m.timestamp for m in client.get_logged_model(model_id).metrics or [] if m.key == "perplexity"]
    return max(times, default=0) <= found.time_ms


def log_evaluation(run: runs.Run, found: Measurement) -> dict[str, str]:
    """The run of a ticket that was measured again: beside what its logged model has, if it is registered, never over it.
    The tags that a person gave it."""
    if found.dense_run:
        log_dense(run, found.dense_run)
    if found.model_id:
        versions.log_input_model(run, found.model_id)
    person = labels.find_labels(run.client, found.tags, found.model_id)
    found = replace(found, tags=found.tags | person)
    log_measurement(run, found, found.tags["base"], found.model_id, {})
    return person


def publish(client: store.Client, folder: Path) -> tuple[str, str | None, bool]:
    """(run id, URI of the version, whether anything was sent) of a folder that holds a ticket and what was measured of it,
    or an evaluation. The run that was begun for it is finished, else a new one made.

    Raises InputError where the folder holds no measuring, MachineError where the store is away: then nothing is lost.
    """
    found = read_measurement(folder)
    if found is None or found.kind == "dense":
        raise InputError(f"dir={folder}: no {MEASUREMENTS} of a ticket there; give a folder that a run has kept")
    with process_lock(found.ticket), explain_store_errors(folder):
        return send(client, folder, found)


def send(client: store.Client, folder: Path, found: Measurement) -> tuple[str, str | None, bool]:
    """As `publish`, for a process that is alone with the ticket already."""
    stored, name = None, None
    if found.kind == "ticket":
        stored = TicketFolder(folder)
        if stored.id != found.ticket:
            raise InputError(f"dir={folder}: its {MEASUREMENTS} is of the ticket {found.ticket}, not of {stored.id}")
        register = found.params.get("register", "auto")
        name = versions.model_name(register, stored.base_record["id"]) if register != "none" else None
    before = lookup.find_run(client, found.id)
    if before is not None and before.info.status == "FINISHED":
        known = versions.find_version(client, name, found.ticket) if name else None
        return before.info.run_id, known[0] if known else None, False
    if stored is not None and not stored.is_mask_only:  # the hashes of masks cover the base, which need not be here
        stored.verify_hashes()
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
        shutil.rmtree(folder, ignore_errors=True)  # the registry has it
    return run.id, uri, True


@contextlib.contextmanager
def explain_store_errors(folder: Path) -> Iterator[None]:
    """What is to be said where the store fails while a measuring is being sent. Raises MachineError."""
    try:
        yield
    except store.STORE_ERRORS as e:
        raise MachineError(
            f"{store.store_name()} did not take all of it ({store.first_line(e)}); nothing is lost: the ticket and its "
            f"measurements are in {folder}, `lottery publish {folder}` records them when the store is back"
        ) from e
