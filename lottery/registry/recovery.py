"""This file cleans up after killed processes.

It closes their runs, deletes their incomplete logged models, and finds complete logged models and measurements again.
"""

from pathlib import Path
from typing import Any

from lottery.files.hashes import file_sha256
from lottery.files.locks import killed_runs
from lottery.measuring.measurement import Measurement, read_measurement
from lottery.progress import say
from lottery.registry import logged_models, lookup, runs, store, versions
from lottery.ticket.folder import TicketFolder
from lottery.ticket.record import RECORD


def recover_logged_model(run: runs.Run, stored: TicketFolder) -> str | None:
    """Returns the id of the complete logged model that an earlier try of this run left without a version, or None.

    Incomplete logged models of the run are deleted.
    """
    complete, sha256 = None, file_sha256(stored.folder / RECORD)
    for model in logged_models.unregistered(run.client, run.client.get_run(run.id)):
        here = logged_models.local_path(model.artifact_location)
        if str(model.status) == "READY" and (
            here is None or versions.holds_ticket(here / "data" / "ticket", stored.id, sha256)
        ):
            complete = model.model_id
        else:
            logged_models.delete_model(run.client, model.model_id)
    return complete


def close_killed_runs(client: store.Client) -> None:
    """Closes the runs of killed processes and deletes the logged models that they had not registered yet.

    A lock in LOTTERY_HOME shows whether a process is alive, so runs of another LOTTERY_HOME are left alone.
    """
    for id, life, about in killed_runs():
        if about.get("store") != store.store_digest():
            continue
        try:
            run = lookup.find_run(client, id, about.get("run"))
            if run is not None and run.info.status == "RUNNING":
                client.set_tag(run.info.run_id, "outcome", "killed")
                client.set_tag(run.info.run_id, "reason", "its process, or its tracking store, went away")
                client.set_terminated(run.info.run_id, "KILLED")
                say(f"the run {run.info.run_id}, whose process was killed or had lost its store, is closed")
            if run is not None and run.info.status != "FINISHED":
                delete_unregistered(client, run)
        except store.STORE_ERRORS as e:  # the next command tries again
            say(f"warning: a run that was left behind cannot be closed: {store.first_line(e)}")
            continue
        life.unlink(missing_ok=True)


def delete_unregistered(client: store.Client, run: Any) -> None:
    """Deletes the logged models that a run made and did not register."""
    for model in logged_models.unregistered(client, run):
        logged_models.delete_model(client, model.model_id)


def find_pending(client: store.Client, folder: Path) -> Measurement | None:
    """Returns an earlier measurement of the ticket in `folder` that this store has not recorded completely, or None."""
    found = read_measurement(folder) if (folder / RECORD).exists() else None
    if found is None or found.store != store.store_digest():
        return None
    run = lookup.find_run(client, found.id)
    return None if run is not None and run.info.status == "FINISHED" else found
