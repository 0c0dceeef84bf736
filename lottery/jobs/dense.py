"""Measures and records a dense base without a ticket."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from lottery.errors import MachineError
from lottery.jobs.job import Job
from lottery.jobs.resolve import warn_of_runtime
from lottery.jobs.result import Ticket
from lottery.measuring.baseline import REUSED_MEASURES, dense_measurement, measure_base, measure_dense
from lottery.measuring.cache import Cache
from lottery.measuring.measurement import Measurement, ModelResult
from lottery.measuring.setup import make_setup
from lottery.measuring.work import Work
from lottery.models.checkpoint import Base
from lottery.registry import lookup, publishing, recovery, runs, store
from lottery.runtime import load
from lottery.spec import Spec, dense_id


def run_dense(job: Job, study: str, extra_tags: Mapping[str, str]) -> tuple[ModelResult, str | None, bool]:
    """Measures and records the dense base, unless a run of the store holds its result under this protocol.

    Returns the result, the id of the run that holds it, and whether it was measured now. Raises MachineError where the
    tracking store fails.
    """
    client = store.connect()
    files, params = job.source.base_record["files"], job.spec.params()
    find_baseline = partial(lookup.load_dense_run, client)
    work = Work("the dense base", cache=job.cache)
    with work.shown():
        dense, _, new_baseline = measure_dense(job.base, job.setup, files, params, job.cache, find_baseline, work)
    if new_baseline is None:
        measures = REUSED_MEASURES & set(job.setup.measures)
        known = lookup.find_dense_run(client, dense_id(files), job.setup.protocol_id, measures)
        return dense, known.info.run_id if known else None, False
    tags = new_baseline.tags | {"study": study} | dict(extra_tags)
    return dense, record(client, replace(new_baseline, tags=tags)).id, True


def evaluate_dense(base: Base, spec: Spec, asked: dict[str, str]) -> Ticket:
    """Measures a dense base in a run of its own, of kind `dense`: later tickets find it as their baseline.

    `asked` are the parameters that the user gave to the run. Raises InputError and MachineError as `prune` does.
    """
    warn_of_runtime(spec.runtime)
    load.check_loadable(base, base.tensors)
    setup = make_setup(base, spec, base.id, "none", Cache())
    client = store.connect()
    recovery.close_killed_runs(client)
    work = Work("the dense base")
    work.add("dense", setup)
    with work.shown():
        result, _ = measure_base(base, setup, work)
    found = dense_measurement(base, result, setup, spec.params())
    run = record(client, replace(found, params=found.params | asked))
    return Ticket(found.ticket, str(base.folder), run.id, None, found.metrics, found.tags, found, run.page)


def record(client: store.Client, found: Measurement) -> runs.Run:
    """Writes the measurement of a dense base to a run of its own. Raises MachineError where the tracking store fails."""
    try:
        with runs.open_run(client, found.id, found.name, found.params, found.tags) as run:
            publishing.log_measurement(run, found, found.tags["base"], None, {})
            return run
    except store.STORE_ERRORS as e:
        raise MachineError(
            f"{store.store_name()} did not take the dense baseline ({store.first_line(e)}); the same command measures "
            f"it again"
        ) from e
