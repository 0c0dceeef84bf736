"""Finds the ticket that holds what a method has found already: the same one without 8 bits."""

from dataclasses import replace
from pathlib import Path

from lottery.errors import InputError, MachineError
from lottery.files.home import home
from lottery.jobs.job import Job
from lottery.progress import say
from lottery.pruning.given import SolvedSelection
from lottery.pruning.samples import Samples
from lottery.registry import fetching, store, versions
from lottery.spec import ticket_id
from lottery.ticket.stored import StoredTicket


def find_solved(client: store.Client, job: Job, samples: Samples | None) -> StoredTicket | None:
    """Returns the ticket of this job in 16 bits, with every hash checked; None if there is none that was made from the same
    samples, or if the method looks at no data and is quick.

    8 bits are the last step, so that both tickets lose the same weights and keep the same values. Nothing fails here: what
    cannot be read is pruned again, and a line says so.
    """
    if not job.spec.is_calibrated or job.spec.quantize == "none" or samples is None:
        return None
    try:
        folder, where = find_folder(client, job)
        if folder is None:
            return None
        found = StoredTicket(folder)
        found.verify()
    except (InputError, MachineError, *store.STORE_ERRORS) as e:
        say(f"warning: quantize={job.spec.quantize}: the weights are pruned again ({store.first_line(e)})")
        return None
    # A text that the model writes itself may differ between machines, and its tokens are not part of a ticket's id.
    if found.record.get("samples") != samples.sha256 or not SolvedSelection.can_take(found):
        return None
    say(f"the weights are those of {where}, in {job.spec.quantize}")
    return found


def find_folder(client: store.Client, job: Job) -> tuple[Path | None, str]:
    """Returns the folder of the ticket in 16 bits, None where there is none, and its name for a person."""
    plain = replace(job.spec, quantize="none")
    files, names = job.source.base_record["files"], [p.name for p in job.chosen]
    id = ticket_id(plain, files, names, job.source.ticket, job.identity)
    if job.name and (registered := versions.find_version(client, job.name, id)):
        return fetching.fetch(client, registered[0]).folder, registered[0]
    folder = home() / "tickets" / id
    return (folder if folder.is_dir() else None), str(folder)
