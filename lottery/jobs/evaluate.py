"""A ticket that is there: measured again, or loaded."""

import shutil
from dataclasses import replace
from functools import partial
from typing import Any

from lottery.files.home import home, make_folder
from lottery.jobs.resolve import find_local_base, find_ticket, licence_of
from lottery.jobs.result import Ticket, identity_tags, verdict_tags, with_sizes
from lottery.measuring.baseline import measure_pair
from lottery.measuring.cache import Cache
from lottery.measuring.measurement import Measurement, new_id
from lottery.measuring.setup import make_setup
from lottery.registry import lookup, publishing, recovery, runs, store
from lottery.runtime import load
from lottery.spec import Spec
from lottery.ticket.opening import open_ticket


def evaluate(ticket: str, base: str = "auto", **parameters: Any) -> Ticket:
    """Measure a ticket again, in a run of its own; a registered one's logged model gets the new figures beside the old.

    The parameters of `lottery evaluate`, by name. Raises InputError and MachineError as `prune` does.
    """
    spec = Spec.parse(**parameters)
    where = find_ticket(ticket)
    stored = open_ticket(where.folder, base)
    load.check_loadable(stored, stored.tensors)
    about = stored.base_record
    cache = Cache()
    setup = make_setup(stored, spec, about["id"], stored.record["spec"]["quantize"], cache)
    dense_base = stored.base or find_local_base(stored, base)
    client = store.connect()
    recovery.close_killed_runs(client)
    names = ("dataset", "window", "limit", "measure", "runtime", "dtype", "device")
    params = {"ticket": ticket, "base": base} | {name: value for name, value in spec.params().items() if name in names}
    tags = identity_tags("evaluation", stored.id, about["id"], setup)
    title, measuring = f"evaluate {ticket.removeprefix('models:/')}", new_id()
    made_by = Spec.parse(**{"target": where.params.get("target", "ticket"), **stored.record["spec"]})
    folder = make_folder(home() / "unfinished", "LOTTERY_HOME") / f"evaluation-{measuring}"
    with runs.open_run(client, measuring, title, params, tags) as run:
        find_baseline = partial(lookup.load_dense_run, client)
        measured, dense, dense_run = measure_pair(
            stored, dense_base, setup, about["files"], spec.params(), cache, find_baseline
        )
        measured = with_sizes(measured, stored, {})
        found = Measurement(
            kind="evaluation",
            ticket=stored.id,
            name=title,
            title=made_by.title,
            params=params,
            tags=tags | verdict_tags(measured, spec, setup),
            metrics=measured.metrics,
            dense=dense.metrics,
            protocol=setup.protocol,
            nll_N=measured.nll_N,
            samples=measured.samples,
            quantize=made_by.quantize,
            base=dense_base.name_or_path if dense_base else None,
            licence=licence_of(stored),
            store=store.store_digest(),
            model_id=where.model_id,
            dense_run=dense_run,
            id=measuring,
        )
        found.save(make_folder(folder, "LOTTERY_HOME"))
        with publishing.explain_store_errors(folder):
            person = publishing.log_evaluation(run, found)
            run.finish()
    shutil.rmtree(folder, ignore_errors=True)
    found = replace(found, tags=found.tags | person)
    uri = ticket if where.model_id else None
    return Ticket(stored.id, str(where.folder), run.id, uri, found.metrics, found.tags, found, run.page)
