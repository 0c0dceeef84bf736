"""Finds the ticket that holds what a method has found already: the same one without 8 bits."""

from dataclasses import replace

from lottery.errors import InputError
from lottery.files.home import home
from lottery.jobs.job import Job
from lottery.progress import say
from lottery.pruning.given import SolvedSelection
from lottery.registry import fetching, publishing, store, versions
from lottery.spec import ticket_id
from lottery.ticket.stored import StoredTicket


def find_solved(client: store.Client, job: Job) -> StoredTicket | None:
    """Returns the ticket of this job in 16 bits, with every hash checked; None if it was not made here, or if the method
    looks at no data and is quick.

    8 bits are the last step, so that both tickets lose the same weights and keep the same values.
    """
    if not job.spec.is_calibrated or job.spec.quantize == "none":
        return None
    plain = replace(job.spec, quantize="none")
    files, names = job.source.base_record["files"], [p.name for p in job.chosen]
    id = ticket_id(plain, files, names, job.source.ticket, job.identity)
    folder = home() / "tickets" / id
    with publishing.explain_store_errors(folder):
        registered = versions.find_version(client, job.name, id) if job.name else None
    try:
        if registered is not None:
            folder = fetching.fetch(client, registered[0]).folder
        elif not folder.is_dir():
            return None
        found = StoredTicket(folder)
        found.verify()
    except InputError as e:
        say(f"warning: quantize={job.spec.quantize}: the weights are pruned again ({e})")
        return None
    if found.id != id or not SolvedSelection.can_take(found):
        return None
    say(f"the weights are those of {registered[0] if registered else folder}, in {job.spec.quantize}")
    return found
