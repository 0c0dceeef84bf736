"""The dense base of a ticket alone: measured and recorded."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from lottery.errors import MachineError
from lottery.jobs.job import Job
from lottery.measuring.baseline import KEPT, measure_dense
from lottery.measuring.measurement import Measured
from lottery.registry import finding, publishing, runs, store
from lottery.spec import dense_id


def run_dense(job: Job, study: str, within: Mapping[str, str]) -> tuple[Measured, str | None, bool]:
    """The dense base of a ticket alone, measured and recorded if no run of the store holds it under this protocol: (what
    was found, its run, whether it was measured now)."""
    client = store.connect()
    files, params = job.source.origin["files"], job.spec.params()
    find_known = partial(finding.find_dense, client)
    dense, _, to_record = measure_dense(job.base, job.setup, files, params, job.shared, find_known)
    if to_record is None:
        wants = KEPT & set(job.setup.wants)
        known = finding.find_dense_run(client, dense_id(files), job.setup.protocol_id, wants)
        return dense, known.info.run_id if known else None, False
    tags = to_record.tags | {"study": study} | dict(within)
    try:
        with runs.open_run(client, to_record.id, to_record.name, to_record.params, tags) as run:
            publishing.record(run, replace(to_record, tags=tags), to_record.tags["base"], None, {})
            return dense, run.id, True
    except store.STORE_ERRORS as e:
        raise MachineError(
            f"{store.store_name()} did not take the dense baseline ({store.first_line(e)}); the same command measures "
            f"it again"
        ) from e
