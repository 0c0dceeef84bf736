"""Measures an existing ticket again, or a dense base."""

import shutil
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lottery.files.home import home, make_folder
from lottery.jobs.dense import evaluate_dense
from lottery.jobs.resolve import find_dense, find_local_base, find_ticket, licence_of
from lottery.jobs.result import Ticket, identity_tags, verdict_tags, with_sizes
from lottery.measuring.baseline import measure_pair, plan_pair
from lottery.measuring.cache import Cache
from lottery.measuring.measurement import Measurement, new_id
from lottery.measuring.setup import Setup, make_setup
from lottery.models.checkpoint import Base
from lottery.pruning.calibration import SETTINGS
from lottery.registry import lookup, publishing, recovery, runs, store
from lottery.runtime import load
from lottery.spec import Spec
from lottery.ticket.folder import LocalTicket
from lottery.ticket.opening import open_ticket
from lottery.ticket.stored import StoredTicket


def evaluate(ticket: str, base: str = "auto", **parameters: Any) -> Ticket:
    """Measures an existing ticket again, in a run of its own. If it is registered, its logged model gets the new
    metrics. A dense base is measured as the baseline of its tickets is.

    The parameters are those of `lottery evaluate`, by name. Raises InputError and MachineError as `prune` does.
    """
    spec = Spec.parse(**parameters)
    if (dense := find_dense(ticket, base)) is not None:
        return evaluate_dense(dense, replace(spec, model=ticket), {"ticket": ticket, "base": base})
    evaluation = prepare_evaluation(ticket, base, spec)
    client = store.connect()
    recovery.close_killed_runs(client)
    made_by = read_ticket_spec(evaluation)
    folder = make_folder(home() / "unfinished", "LOTTERY_HOME") / f"evaluation-{evaluation.id}"
    with runs.open_run(client, evaluation.id, evaluation.name, evaluation.params, evaluation.tags) as run:
        measurement = measure(client, evaluation, made_by)
        measurement.save(make_folder(folder, "LOTTERY_HOME"))
        with publishing.explain_store_errors(folder):
            labels = publishing.log_evaluation(run, measurement)
            run.finish()
    shutil.rmtree(folder, ignore_errors=True)
    measurement = replace(measurement, tags=measurement.tags | labels)
    path, uri = str(evaluation.where.folder), ticket if evaluation.where.model_id else None
    return Ticket(measurement.ticket, path, run.id, uri, measurement.metrics, measurement.tags, measurement, run.page)


@dataclass(frozen=True)
class Evaluation:
    """A ticket that can be measured again, and what its run will say of it. All inputs are checked."""

    spec: Spec
    where: LocalTicket
    stored: StoredTicket
    dense_base: Base | None
    setup: Setup
    cache: Cache
    id: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]


def prepare_evaluation(ticket: str, base: str, spec: Spec) -> Evaluation:
    """Opens the ticket and its dense base, and checks that both can be measured. Raises InputError and MachineError."""
    where = find_ticket(ticket)
    stored = open_ticket(where.folder, base)
    load.check_loadable(stored, stored.tensors)
    about, cache = stored.base_record, Cache()
    setup = make_setup(stored, spec, about["id"], stored.record["spec"]["quantize"], cache)
    names = ("dataset", "window", "limit", "measure", "runtime", "dtype", "device")
    return Evaluation(
        spec=spec,
        where=where,
        stored=stored,
        dense_base=stored.base or find_local_base(stored, base),
        setup=setup,
        cache=cache,
        id=new_id(),
        name=f"evaluate {ticket.removeprefix('models:/')}",
        params={"ticket": ticket, "base": base} | {k: v for k, v in spec.params().items() if k in names},
        tags=identity_tags("evaluation", stored.id, about["id"], setup),
    )


def read_ticket_spec(evaluation: Evaluation) -> Spec:
    """Returns the spec that made the ticket."""
    params, made = evaluation.where.params, evaluation.stored.record["spec"]
    # The record holds the hash of a text, and the content of an allocation's file.
    asked = {name: params.get(name, getattr(Spec(), name)) for name in (*SETTINGS, "allocation")}
    return Spec.parse(**{"target": params.get("target", "ticket"), **made, **asked})


def measure(client: store.Client, evaluation: Evaluation, made_by: Spec) -> Measurement:
    """Measures the ticket and its dense base, and judges the ticket."""
    stored, setup, spec, base = evaluation.stored, evaluation.setup, evaluation.spec, evaluation.dense_base
    find_baseline = partial(lookup.load_dense_run, client)
    files, cache = stored.base_record["files"], evaluation.cache
    work = plan_pair(base, setup, files, cache, find_baseline)
    with work.shown():
        ticket, dense, dense_run = measure_pair(stored, base, setup, files, spec.params(), cache, find_baseline, work)
    ticket = with_sizes(ticket, stored, {})
    return Measurement(
        kind="evaluation",
        ticket=stored.id,
        name=evaluation.name,
        title=made_by.title,
        params=evaluation.params,
        tags=evaluation.tags | verdict_tags(ticket, spec, setup),
        metrics=ticket.metrics,
        dense=dense.metrics,
        protocol=setup.protocol,
        nll_N=ticket.nll_N,
        samples=ticket.samples,
        quantize=made_by.quantize,
        base=base.name_or_path if base else None,
        licence=licence_of(stored),
        store=store.store_digest(),
        model_id=evaluation.where.model_id,
        dense_run=dense_run,
        id=evaluation.id,
    )
