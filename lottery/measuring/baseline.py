"""A ticket measured beside its dense base: under one protocol, each loaded anew from its files, never both at once."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import replace

from lottery.measuring import perplexity
from lottery.measuring.cache import Cache
from lottery.measuring.measurement import Measurement, ModelResult
from lottery.measuring.model import measure_model
from lottery.measuring.setup import Setup
from lottery.models.checkpoint import Base
from lottery.models.hub import read_licence
from lottery.progress import say
from lottery.spec import dense_id
from lottery.ticket.stored import StoredTicket

PROTOCOL_PARAMS = ("model", "dataset", "window", "limit", "dtype", "runtime", "measure", "device")
REUSED_MEASURES = frozenset(
    ("perplexity", "samples")
)  # of the dense base: measured once a protocol, found again in MLflow

# (id of the dense base, id of the protocol, what is asked for) -> what an earlier run holds of it, None where there is none
FindBaseline = Callable[[str, str, frozenset[str]], ModelResult | None]


def measure_pair(
    stored: StoredTicket,
    base: Base | None,
    setup: Setup,
    base_files: Mapping[str, str],
    params: Mapping[str, str],
    cache: Cache,
    find_baseline: FindBaseline,
) -> tuple[ModelResult, ModelResult, Measurement | None]:
    """(ticket, dense base) under the same protocol, and what is to be recorded of the base where it was measured anew.

    A base measured before is not measured again (`measure_dense`), but loaded once more, to read the ticket's samples.
    """
    if not setup.measures:
        return ModelResult(), ModelResult(), None
    source_bytes = sum(stored.info(name).nbytes for name in stored.tensors)
    ticket, _ = measure_model("ticket", stored, list(stored.tensors), setup, source_bytes)
    gc.collect()  # one model at a time
    dense, sample_nll, new_baseline = measure_dense(base, setup, base_files, params, cache, find_baseline, ticket)
    if sample_nll is not None:
        ticket = replace(ticket, metrics={**ticket.metrics, **perplexity.finite_metrics({"dense_nll": sample_nll})})
    if ticket.samples and dense.samples:
        of_dense = {sample["prompt"]: sample["text"] for sample in dense.samples}
        beside = [{**sample, "dense": of_dense.get(sample["prompt"], "")} for sample in ticket.samples]
        ticket = replace(ticket, samples=beside)
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
    ticket: ModelResult | None = None,
) -> tuple[ModelResult, float | None, Measurement | None]:
    """(the dense base, its NLL of a ticket's samples, what is to be recorded of it where it was measured anew).

    Once a process for the tickets that share it. Its perplexity and samples come from an earlier run where there is one;
    its speed and memory are measured again, by the process that measures the tickets. Without the base at hand only an
    earlier run can serve. A tracking store that is away by now costs no measurement: the base is then measured here.
    """
    key = ("dense", dense_id(base_files), setup.protocol_id, setup.measures, setup.eager)
    if (dense := cache.values.get(key)) is not None:
        if base is None or ticket is None or not ticket.samples:
            return dense, None, None
        only_read = replace(setup, measures=(), ids_NT=None)
        _, sample_nll = measure_model("dense", base, list(base.tensors), only_read, base.disk_bytes, ticket)
        return dense, sample_nll, None
    measures, sample_nll, new_baseline = REUSED_MEASURES & set(setup.measures), None, None
    known = find_baseline(dense_id(base_files), setup.protocol_id, measures) if measures else None
    dense = known or ModelResult()
    if base is None:
        if measures and known is None:
            say("warning: the dense base is not at hand, and no run measured it so: there is no ratio to it")
    elif known is None or (ticket and ticket.samples) or set(setup.measures) - REUSED_MEASURES:
        again = (
            replace(setup, measures=tuple(w for w in setup.measures if w not in REUSED_MEASURES), ids_NT=None)
            if known
            else setup
        )
        source_bytes = sum(info.nbytes for info in base.tensors.values())
        fresh, sample_nll = measure_model("dense", base, list(base.tensors), again, source_bytes, ticket)
        if known:
            fresh.metrics.pop("peak_bytes", None)  # of less work than the ticket's: no two peaks to compare
            dense = replace(dense, metrics={**dense.metrics, **fresh.metrics})
        else:
            sizes = {"disk_bytes": base.disk_bytes, "disk_ratio": 1.0}
            dense = replace(fresh, metrics={**fresh.metrics, **sizes})
            new_baseline = dense_measurement(base, dense, setup, params) if measures else None
    cache.values[key] = dense
    return dense, sample_nll, new_baseline


def dense_measurement(base: Base, dense: ModelResult, setup: Setup, params: Mapping[str, str]) -> Measurement:
    """What a run of its own will hold of the dense base, for the next ticket to find. Nothing is removed from it."""
    protocol = replace(setup.protocol, int8_arithmetic="none") if setup.protocol else None
    setup = replace(setup, protocol=protocol)
    tags = {
        "kind": "dense",
        "ticket": dense_id(base.files),
        "base": base.id,
        "protocol": setup.protocol_id,
        "measured": ",".join(setup.measures),
        "device": setup.device,
        "hardware": setup.hardware,
        "family": setup.family,
        **({"outcome": dense.outcome} if dense.outcome else {}),
    }
    nothing_removed = {"sparsity_target": 0.0, "sparsity_prunable": 0.0, "sparsity_model": 0.0}
    return Measurement(
        kind="dense",
        ticket=dense_id(base.files),
        name=f"dense {base.id}{f' w{protocol.window}' if protocol else ''}",
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
