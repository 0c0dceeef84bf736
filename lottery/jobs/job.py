"""Prepares a job: resolves the spec of a ticket, and checks everything before any work begins."""

from dataclasses import dataclass, replace
from typing import Any

from lottery.jobs.calibrate import find_calibration
from lottery.jobs.resolve import resolve
from lottery.jobs.result import identity_tags
from lottery.measuring.cache import Cache
from lottery.measuring.setup import Setup, make_setup
from lottery.models.checkpoint import Base
from lottery.models.families import Place
from lottery.pruning.allocation import Allocation, resolve_allocation
from lottery.pruning.calibration import Calibration
from lottery.registry import lookup, store, versions
from lottery.spec import Spec, run_name, ticket_id
from lottery.ticket.stored import StoredTicket


@dataclass(frozen=True)
class Job:
    """A ticket that can be made. All its inputs are checked."""

    spec: Spec
    source: Base | StoredTicket
    chosen: list[Place]
    base: Base | None
    setup: Setup
    ticket: str
    cache: Cache
    tags: dict[str, str]  # the tags with which its run begins
    name: str | None  # the registered model that will hold it
    allocation: Allocation  # how many weights each tensor loses, as far as it is known
    calibration: Calibration | None = None  # what the method or the allocation looks at, if it looks at data

    @property
    def identity(self) -> dict[str, Any]:
        """What of calibration and allocation goes into the ticket's id."""
        return (self.calibration.identity if self.calibration else {}) | self.allocation.identity

    @property
    def run_name(self) -> str:
        return run_name(self.tags["base"], self.spec.title)


def prepare_job(spec: Spec, cache: Cache | None = None) -> Job:
    """Checks a spec before any work begins. Raises InputError for what is wrong, MachineError where a hub fails."""
    cache = cache or Cache()
    source, chosen, base = resolve(spec, cache)
    about = source.base_record
    name = versions.model_name(spec.register, about["id"]) if spec.register != "none" else None
    setup = make_setup(source, spec, about["id"], spec.quantize, cache)
    calibration = find_calibration(spec, source, cache)
    allocation = resolve_allocation(spec, source, chosen)
    job = Job(spec, source, chosen, base, setup, "", cache, {}, name, allocation, calibration)
    id = ticket_id(spec, about["files"], [p.name for p in chosen], source.ticket, job.identity)
    return replace(job, ticket=id, tags=identity_tags("ticket", id, about["id"], setup))


def find_existing_run(client: store.Client, job: Job, parent: str | None = None) -> Any | None:
    """Returns the newest finished run that holds everything that this job would find, None if there is none.

    If the job registers its ticket, the registered model must have a version of it. With `parent`, only runs below that
    run of a study count.
    """
    if job.name is not None and versions.find_version(client, job.name, job.ticket) is None:
        return None
    # What this model cannot be measured for, no run has.
    spec = replace(job.spec, measure=",".join(job.setup.measures) or "none")
    return lookup.find_finished(client, job.tags, spec, job.base is not None, parent)
