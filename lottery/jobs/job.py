"""A ticket that can be made: its spec resolved, and everything that may be refused looked at."""

from dataclasses import dataclass
from typing import Any

from lottery.jobs.resolve import resolve
from lottery.jobs.result import identity_tags
from lottery.measuring.cache import Cache
from lottery.measuring.setup import Setup, make_setup
from lottery.models.checkpoint import Base
from lottery.models.families import Place
from lottery.registry import lookup, store, versions
from lottery.spec import Spec, ticket_id
from lottery.ticket.stored import StoredTicket


@dataclass(frozen=True)
class Job:
    """A ticket that can be made: everything that may be refused was looked at."""

    spec: Spec
    source: Base | StoredTicket
    chosen: list[Place]
    base: Base | None
    setup: Setup
    ticket: str
    cache: Cache
    tags: dict[str, str]  # the first ones of its run
    name: str | None  # of the registered model that will hold it


def prepare_job(spec: Spec, cache: Cache | None = None) -> Job:
    """What is wrong with a spec is found here, before any work. Raises InputError, and MachineError where a hub fails."""
    cache = cache or Cache()
    source, chosen, base = resolve(spec, cache)
    about = source.base_record
    name = versions.model_name(spec.register, about["id"]) if spec.register != "none" else None
    setup = make_setup(source, spec, about["id"], spec.quantize, cache)
    id = ticket_id(spec, about["files"], [p.name for p in chosen], source.ticket)
    return Job(spec, source, chosen, base, setup, id, cache, identity_tags("ticket", id, about["id"], setup), name)


def find_existing_run(client: store.Client, job: Job, parent: str | None = None) -> Any | None:
    """The newest finished run that holds all that this ticket's would, with a version of the model that it is to be
    registered as; of the study's run `parent` alone, if given."""
    if job.name is not None and versions.find_version(client, job.name, job.ticket) is None:
        return None
    return lookup.find_finished(client, job.tags, job.spec, job.base is not None, parent)
