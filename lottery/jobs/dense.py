"""Measures and records a dense base without a ticket."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from lottery.errors import MachineError
from lottery.jobs.job import Job
from lottery.measuring.baseline import REUSED_MEASURES, measure_dense
from lottery.measuring.measurement import ModelResult
from lottery.measuring.work import Work
from lottery.registry import lookup, publishing, runs, store
from lottery.spec import dense_id


def run_dense(job: Job, study: str, extra_tags: Mapping[str, str]) -> tuple[ModelResult, str | None, bool]:
    """Measures and records the dense base, unless a run of the store holds its result under this protocol.

    Returns the result, the id of the run that holds it, and whether it was measured now. Raises MachineError where the
    tracking store fails.
    """
    client = store.connect()
    files, params = job.source.base_record["files"], job.spec.params()
    find_baseline = partial(lookup.load_dense_run, client)
    work = Work(cache=job.cache)
    with work.shown():
        dense, _, new_baseline = measure_dense(job.base, job.setup, files, params, job.cache, find_baseline, work)
    if new_baseline is None:
        measures = REUSED_MEASURES & set(job.setup.measures)
        known = lookup.find_dense_run(client, dense_id(files), job.setup.protocol_id, measures)
        return dense, known.info.run_id if known else None, False
    tags = new_baseline.tags | {"study": study} | dict(extra_tags)
    try:
        with runs.open_run(client, new_baseline.id, new_baseline.name, new_baseline.params, tags) as run:
            publishing.log_measurement(run, replace(new_baseline, tags=tags), new_baseline.tags["base"], None, {})
            return dense, run.id, True
    except store.STORE_ERRORS as e:
        raise MachineError(
            f"{store.store_name()} did not take the dense baseline ({store.first_line(e)}); the same command measures "
            f"it again"
        ) from e
