"""Measures a ticket and its dense base under one protocol. Each is loaded from its files, one after the other."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lottery.measuring import perplexity
from lottery.measuring.cache import Cache
from lottery.measuring.hardware import machine_of
from lottery.measuring.measurement import Measurement, ModelResult
from lottery.measuring.model import measure_model
from lottery.measuring.setup import Setup
from lottery.measuring.work import Work
from lottery.models.checkpoint import Base
from lottery.models.hub import read_licence
from lottery.progress import say
from lottery.runtime.load import TensorSource
from lottery.spec import dense_id, short_base
from lottery.ticket.stored import StoredTicket

PROTOCOL_PARAMS = ("model", "dataset", "window", "limit", "dtype", "runtime", "measure", "device")
# The dense base is measured for these once per protocol; later runs read the result from MLflow.
REUSED_MEASURES = frozenset(("perplexity", "samples"))
# (id of the dense base, id of the protocol, measures) -> the result of an earlier run, None if there is none
FindBaseline = Callable[[str, str, frozenset[str]], ModelResult | None]


def plan_pair(
    base: Base | None, setup: Setup, base_files: Mapping[str, str], cache: Cache, find_baseline: FindBaseline
) -> Work:
    """Returns the work of measuring a ticket and its dense base: less for a base that was measured before."""
    work = Work(cache=cache)
    if setup.measures:
        work.add("ticket", setup)
        if base is not None and dense_key(setup, base_files) not in cache.values:
            known = find_known(setup, base_files, cache, find_baseline)
            work.add("dense", without_reused(setup) if known else setup)
    return work


def dense_key(setup: Setup, base_files: Mapping[str, str]) -> tuple[Any, ...]:
    return ("dense", dense_id(base_files), setup.protocol_id, setup.measures, setup.eager)


def find_known(
    setup: Setup, base_files: Mapping[str, str], cache: Cache, find_baseline: FindBaseline
) -> ModelResult | None:
    """Returns what an earlier run measured of the dense base. What is not found is searched again the next time."""
    measures = REUSED_MEASURES & set(setup.measures)
    key = ("earlier", dense_id(base_files), setup.protocol_id, measures)
    if measures and cache.values.get(key) is None:
        cache.values[key] = find_baseline(dense_id(base_files), setup.protocol_id, measures)
    return cache.values.get(key)


def without_reused(setup: Setup) -> Setup:
    """Returns the setup for what no earlier run can tell of the dense base."""
    return replace(setup, measures=tuple(m for m in setup.measures if m not in REUSED_MEASURES), ids_NT=None)


def measure_pair(
    stored: StoredTicket,
    base: Base | None,
    setup: Setup,
    base_files: Mapping[str, str],
    params: Mapping[str, str],
    cache: Cache,
    find_baseline: FindBaseline,
    work: Work,
) -> tuple[ModelResult, ModelResult, Measurement | None]:
    """Returns the results of ticket and dense base under the same protocol, and a measurement of the base if it is new.

    A base that was measured before is not measured again (`measure_dense`), but loaded once more to score the ticket's
    samples.
    """
    if not setup.measures:
        return ModelResult(), ModelResult(), None
    ticket, _ = measure_model("ticket", stored, list(stored.tensors), setup, bytes_of_tensors(stored), work)
    gc.collect()  # only one model may be in memory at a time
    dense, sample_nll, new_baseline = measure_dense(base, setup, base_files, params, cache, find_baseline, work, ticket)
    if sample_nll is not None:
        ticket = replace(ticket, metrics={**ticket.metrics, **perplexity.finite_metrics({"dense_nll": sample_nll})})
    if ticket.samples and dense.samples:
        of_dense = {sample["prompt"]: sample["text"] for sample in dense.samples}
        samples = [{**sample, "dense": of_dense.get(sample["prompt"], "")} for sample in ticket.samples]
        ticket = replace(ticket, samples=samples)
    if ticket.nll_N is not None and dense.nll_N is not None:
        ticket = replace(ticket, metrics={**ticket.metrics, **perplexity.ratio_metrics(ticket.nll_N, dense.nll_N)})
    return ticket, dense, new_baseline


def measure_dense(
    base: Base | None,
    setup: Setup,
    base_files: Mapping[str, str],
    params: Mapping[str, str],
    cache: Cache,
    find_baseline: FindBaseline,
    work: Work,
    ticket: ModelResult | None = None,
) -> tuple[ModelResult, float | None, Measurement | None]:
    """Returns the dense base's result, its NLL of a ticket's samples, and a measurement to record if it is new.

    Tickets of one process share the result. Perplexity and samples come from an earlier run if there is one; speed and
    memory are measured again, by the process that measures the tickets. Without `base`, only an earlier run can serve.
    A tracking store that fails by now costs no measurement: the base is then measured here.
    """
    key = dense_key(setup, base_files)
    if (dense := cache.values.get(key)) is not None:
        work.drop("dense")
        return dense, score_samples(base, setup, work, ticket), None
    measures, sample_nll, new_baseline = REUSED_MEASURES & set(setup.measures), None, None
    known = find_known(setup, base_files, cache, find_baseline)
    dense, rest = known or ModelResult(), without_reused(setup)
    work.drop("dense")
    if base is not None:
        work.add("dense", rest if known else setup)
    if base is None:
        if measures and known is None:
            say(
                "warning: the dense base was not found, and no run has measured it under this protocol: there is no "
                "ratio to it"
            )
    elif known is None:
        dense, sample_nll = measure_base(base, setup, work, ticket)
        new_baseline = dense_measurement(base, dense, setup, params) if measures else None
    elif (ticket and ticket.samples) or set(setup.measures) - REUSED_MEASURES:
        fresh, sample_nll = measure_model("dense", base, list(base.tensors), rest, bytes_of_tensors(base), work, ticket)
        fresh.metrics.pop("peak_bytes", None)  # this did less than the ticket's measuring, so the peaks do not compare
        dense = replace(known, metrics={**known.metrics, **fresh.metrics})
    cache.values[key] = dense
    return dense, sample_nll, new_baseline


def measure_base(
    base: Base, setup: Setup, work: Work, ticket: ModelResult | None = None
) -> tuple[ModelResult, float | None]:
    """Returns what is measured of the dense base now, with its sizes, and its NLL of a ticket's samples.

    Nothing is loaded if there is nothing to measure.
    """
    if not setup.measures and not (ticket and ticket.samples):
        return ModelResult(metrics={"disk_bytes": base.disk_bytes, "disk_ratio": 1.0}), None
    fresh, sample_nll = measure_model("dense", base, list(base.tensors), setup, bytes_of_tensors(base), work, ticket)
    sizes = {"disk_bytes": base.disk_bytes, "disk_ratio": 1.0}
    return replace(fresh, metrics={**fresh.metrics, **sizes}), sample_nll


def score_samples(base: Base | None, setup: Setup, work: Work, ticket: ModelResult | None) -> float | None:
    """Returns the dense base's NLL of a ticket's samples, None where one of them is missing. Measures nothing else."""
    if base is None or ticket is None or not ticket.samples:
        return None
    nothing = replace(setup, measures=(), ids_NT=None)
    return measure_model("dense", base, list(base.tensors), nothing, base.disk_bytes, work, ticket)[1]


def bytes_of_tensors(source: TensorSource) -> int:
    """Returns the bytes of a model's tensors in their own types."""
    return sum(source.info(name).nbytes for name in source.tensors)


def dense_measurement(base: Base, dense: ModelResult, setup: Setup, params: Mapping[str, str]) -> Measurement:
    """Returns the dense base's measurement, which a run of its own records so that the next ticket can find it."""
    protocol = replace(setup.protocol, int8_arithmetic="none") if setup.protocol else None
    setup = replace(setup, protocol=protocol)
    tags = {
        "kind": "dense",
        "ticket": dense_id(base.files),
        "base": base.id,
        "protocol": setup.protocol_id,
        "measured": ",".join(setup.measures),
        "device": setup.device,
        "hardware": machine_of(setup.hardware),  # torch multiplies, and none of our kernels
        "family": setup.family,
        **({"outcome": dense.outcome} if dense.outcome else {}),
    }
    nothing_removed = {"sparsity_target": 0.0, "sparsity_prunable": 0.0, "sparsity_model": 0.0}
    return Measurement(
        kind="dense",
        ticket=dense_id(base.files),
        name=f"dense {short_base(base.id)}{f' w{protocol.window}' if protocol else ''}",
        title="dense",
        params={k: v for k, v in params.items() if k in PROTOCOL_PARAMS} | {"sparsity": "0"},
        tags=tags,
        metrics={**dense.metrics, **nothing_removed, "parameters": sum(i.numel for i in base.tensors.values())},
        protocol=protocol,
        nll_N=dense.nll_N,
        samples=dense.samples,
        base=base.name_or_path,
        licence=read_licence(base.folder),
    )
