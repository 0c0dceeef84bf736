"""A ticket measured beside its dense base: under one protocol, each loaded anew from its files, never both at once."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lottery.errors import InputError
from lottery.measuring import memory, perplexity, samples, speed
from lottery.measuring.measurement import Measurement
from lottery.measuring.shared import Shared
from lottery.measuring.text import Protocol, pick_window, windows
from lottery.models import architecture, devices
from lottery.models.checkpoint import Base
from lottery.models.hub import licence
from lottery.progress import mention, say, stage
from lottery.registry import finding, store
from lottery.runtime import load
from lottery.runtime.layers import check_int8
from lottery.spec import Spec, dense_id, digest
from lottery.ticket.stored import Stored

PROTOCOL_PARAMS = ("model", "dataset", "window", "limit", "dtype", "runtime", "measure", "device")
KEPT = frozenset(("perplexity", "samples"))  # of the dense base: measured once a protocol, found again in MLflow


@dataclass(frozen=True)
class Setup:
    """How models are measured in one run: the same for the ticket and for its dense base."""

    wants: tuple[str, ...]
    tokenizer: Any
    dtype: str
    device: str
    ids_NT: np.ndarray | None
    protocol: Protocol | None
    runtime: str
    eager: bool = False  # the ticket decodes without a graph on a GPU: then the dense base does, too
    family: str = ""  # of architectures, by config.json
    hardware: str = ""  # what its speeds are of

    @property
    def protocol_id(self) -> str:
        """Without a data set, what is left of a protocol: arithmetic, runtime, device."""
        return self.protocol.id if self.protocol else digest([self.dtype, self.runtime, self.device])[:12]


@dataclass(frozen=True)
class Measured:
    metrics: dict[str, float] = field(default_factory=dict)
    nll_N: np.ndarray | None = None
    samples: list[dict[str, str]] = field(default_factory=list)
    outcome: str | None = None


def dataset_of(spec: Spec, base_id: str) -> str:
    """What `auto` means."""
    return spec.dataset if spec.dataset != "auto" else "builtin" if base_id == "builtin" else "wikitext2"


def prepare(source: load.Tensors, spec: Spec, base_id: str, quantize: str, shared: Shared) -> Setup:
    """Read and tokenize once what will be measured on. Everything that may be refused is refused here. `quantize`: the
    ticket's.

    Raises InputError for a device, window, data set or tokenizer that cannot serve, or where memory will not do.
    """
    device = devices.pick_device(spec.device)
    dtype = devices.arithmetic(spec.dtype, source.dtype, device)
    tokenizer = shared.once(("tokenizer", source.folder), lambda: architecture.read_tokenizer(source.folder))
    config = architecture.read_config(source.folder)
    window = pick_window(spec.window, architecture.context_length(config))
    if tokenizer is None and set(spec.measures) - {"memory"}:
        raise InputError(f"measure={spec.measure}: the base has no tokenizer files; give measure=none or memory")
    ids_NT = protocol = None
    if spec.measures and quantize == "int8" and spec.runtime == "dense":
        check_int8(device)
    if spec.measures:
        check_memory(
            source, config, spec, base_id, dtype, device, quantize, window if "perplexity" in spec.measures else 0
        )
    if "perplexity" in spec.measures:
        dataset = dataset_of(spec, base_id)
        words = config.get_text_config().vocab_size
        how = (dataset, words, window, spec.limit, dtype, spec.runtime, device)
        ids_NT, protocol = shared.once(("windows", source.folder, *how), lambda: windows(dataset, tokenizer, *how[1:]))
        if quantize == "int8":
            protocol = replace(protocol, int8_arithmetic="w8a16" if spec.runtime == "packed" else "w8a8")
        if protocol.windows < 2:
            what, way_out = ("limit=1", "a larger one") if spec.limit == 1 else (f"dataset={dataset}", "more text")
            say(f"warning: {what}: of a single window no interval is known, and no winner; give {way_out}")
    eager = quantize == "int8" and spec.runtime == "dense"  # bitsandbytes looks at activations in between
    return Setup(
        wants=spec.measures,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        ids_NT=ids_NT,
        protocol=protocol,
        runtime=spec.runtime,
        eager=eager,
        family=config.model_type,
        hardware=devices.hardware(device),
    )


def check_memory(
    source: load.Tensors,
    config: Any,
    spec: Spec,
    base_id: str,
    dtype: str,
    device: str,
    quantize: str,
    window: int,
) -> None:
    """Raises InputError, with a value that would fit, where weights or a window clearly will not."""
    free, numel = devices.free_bytes(device), sum(source.info(name).numel for name in source.tensors)
    lean = quantize != "none" or spec.runtime == "packed"

    def takes(dtype: str, device: str, lean: bool) -> int:
        # The dense base is measured as well. What it maps out of its files, in their own type, is no memory of the
        # process; a ticket of 8 bits, or packed, takes less than the base. Both are not loaded at once.
        mapped = device == "cpu" and devices.arithmetic("source", source.dtype, device) == dtype
        return numel if mapped and lean else numel * (4 if dtype == "float32" else 2)

    weights = takes(dtype, device, lean)
    if weights > free:
        own, on_cpu = (devices.arithmetic(d, source.dtype, w) for d, w in (("source", device), (spec.dtype, "cpu")))
        ways = []
        if takes(own, device, lean) <= free:
            ways.append("dtype=source")
        if device == "cuda" and takes(on_cpu, "cpu", lean) <= devices.free_bytes("cpu"):
            ways.append("device=cpu")
        if takes(dtype, device, True) <= free:
            ways.append("runtime=packed")
            if isinstance(source, Base) and spec.storage != "mask":  # of a ticket that is there it is settled
                ways.append("quantize=int8 or fp8")
        elif not ways and takes(own, device, True) <= free:
            ways.append("dtype=source with runtime=packed")
        raise InputError(
            f"model={base_id}: its {numel:,} weights take about {weights / 1e9:.1f} GB as {dtype} on {device}, "
            f"{free / 1e9:.1f} GB are free; give {', or '.join([*ways, 'measure=none'])}"
        )
    if not window:
        return
    a_token, logits = perplexity.token_bytes(config), perplexity.logit_bytes(config)
    if weights + logits + a_token * window > free:
        fits = max(0, free - weights - logits) // a_token
        way_out = f"give window={min(window, 2 ** (fits.bit_length() - 1))}" if fits > 1 else "give measure=none"
        raise InputError(
            f"window={window}: beside the weights it takes about {(logits + a_token * window) / 1e9:.1f} GB on {device}, "
            f"{max(0, free - weights) / 1e9:.1f} GB are left; {way_out}"
        )


def measure_model(
    what: str,
    source: load.Tensors,
    names: Sequence[str],
    setup: Setup,
    source_bytes: int,
    score: Measured | None = None,
) -> tuple[Measured, float | None]:
    """Load the model anew from its files, and measure it; beside, its NLL of the samples that `score` holds."""
    if "speed" in setup.wants:
        speed.memory_bandwidth(setup.device)  # its half gigabyte is no part of the peak
    gc.collect()
    memory.reset_peak(setup.device)
    with stage(f"{what}: load"):
        model, load_s = speed.timed(lambda: load.build(source, names, setup.dtype, setup.device, setup.runtime))
    metrics = memory.memory_metrics(model, source_bytes) if "memory" in setup.wants else {}
    took: dict[str, float] = {"load_s": load_s}
    nll_N, outcome, found = None, None, []
    if setup.ids_NT is not None and setup.protocol is not None:
        with stage(f"{what}: perplexity over {len(setup.ids_NT)} windows", len(setup.ids_NT)) as advance:
            ids_NT = setup.ids_NT
            nll_N, took["evaluate_s"] = speed.timed(lambda: perplexity.nll_per_window(model, ids_NT, advance))
        metrics |= perplexity.perplexity_metrics(nll_N, setup.protocol.tokens, setup.protocol.utf8_bytes)
        outcome = None if "perplexity" in metrics else "overflow"
    if "samples" in setup.wants:
        with stage(f"{what}: samples", len(samples.PROMPTS)) as advance:
            found = samples.samples(model, setup.tokenizer, advance)
        metrics |= samples.text_metrics(found, setup.tokenizer)
    if "speed" in setup.wants:
        mention(f"{what}: speed")  # no bar: its thread would take part in what is timed
        metrics |= speed.speed_metrics(model, setup.tokenizer, setup.eager)
    if "memory" in setup.wants:
        metrics["peak_bytes"] = memory.peak_bytes(setup.device)
    scored = samples.text_nll(model, setup.tokenizer, score.samples) if score and score.samples else None
    return Measured(perplexity.finite(metrics | took), nll_N, found, outcome), scored


def measure_pair(
    client: store.Client,
    stored: Stored,
    base: Base | None,
    setup: Setup,
    base_files: Mapping[str, str],
    params: Mapping[str, str],
    shared: Shared,
) -> tuple[Measured, Measured, Measurement | None]:
    """(ticket, dense base) under the same protocol, and what is to be recorded of the base where it was measured anew.

    A base measured before is not measured again (`measure_dense`), but loaded once more, to read the ticket's samples.
    """
    if not setup.wants:
        return Measured(), Measured(), None
    source_bytes = sum(stored.info(name).nbytes for name in stored.tensors)
    ticket, _ = measure_model("ticket", stored, list(stored.tensors), setup, source_bytes)
    gc.collect()  # one model at a time
    dense, scored, to_record = measure_dense(client, base, setup, base_files, params, shared, ticket)
    if scored is not None:
        ticket = replace(ticket, metrics={**ticket.metrics, **perplexity.finite({"dense_nll": scored})})
    if ticket.samples and dense.samples:
        of_dense = {sample["prompt"]: sample["text"] for sample in dense.samples}
        beside = [{**sample, "dense": of_dense.get(sample["prompt"], "")} for sample in ticket.samples]
        ticket = replace(ticket, samples=beside)
    if ticket.nll_N is not None and dense.nll_N is not None:
        ticket = replace(ticket, metrics={**ticket.metrics, **perplexity.ratio_metrics(ticket.nll_N, dense.nll_N)})
    return ticket, dense, to_record


def measure_dense(
    client: store.Client,
    base: Base | None,
    setup: Setup,
    base_files: Mapping[str, str],
    params: Mapping[str, str],
    shared: Shared,
    ticket: Measured | None = None,
) -> tuple[Measured, float | None, Measurement | None]:
    """(the dense base, its NLL of a ticket's samples, what is to be recorded of it where it was measured anew).

    Once a process for the tickets that share it. Its perplexity and samples come from an earlier run where there is one;
    its speed and memory are measured again, by the process that measures the tickets. Without the base at hand only an
    earlier run can serve. A tracking store that is away by now costs no measurement: the base is then measured here.
    """
    key = ("dense", dense_id(base_files), setup.protocol_id, setup.wants, setup.eager)
    if (dense := shared.kept.get(key)) is not None:
        if base is None or ticket is None or not ticket.samples:
            return dense, None, None
        only_read = replace(setup, wants=(), ids_NT=None)
        _, scored = measure_model("dense", base, list(base.tensors), only_read, base.disk_bytes, ticket)
        return dense, scored, None
    wants, scored, to_record = KEPT & set(setup.wants), None, None
    known = finding.find_dense(client, dense_id(base_files), setup.protocol_id, wants) if wants else None
    dense = Measured(known.metrics, known.nll_N, known.samples, known.outcome) if known else Measured()  # not its speed
    if base is None:
        if wants and known is None:
            say("warning: the dense base is not at hand, and no run measured it so: there is no ratio to it")
    elif known is None or (ticket and ticket.samples) or set(setup.wants) - KEPT:
        again = replace(setup, wants=tuple(w for w in setup.wants if w not in KEPT), ids_NT=None) if known else setup
        source_bytes = sum(info.nbytes for info in base.tensors.values())
        fresh, scored = measure_model("dense", base, list(base.tensors), again, source_bytes, ticket)
        if known:
            fresh.metrics.pop("peak_bytes", None)  # of less work than the ticket's: no two peaks to compare
            dense = replace(dense, metrics={**dense.metrics, **fresh.metrics})
        else:
            sizes = {"disk_bytes": base.disk_bytes, "disk_ratio": 1.0}
            dense = replace(fresh, metrics={**fresh.metrics, **sizes})
            to_record = dense_measurement(base, dense, setup, params) if wants else None
    shared.kept[key] = dense
    return dense, scored, to_record


def dense_measurement(base: Base, dense: Measured, setup: Setup, params: Mapping[str, str]) -> Measurement:
    """What a run of its own will hold of the dense base, for the next ticket to find. Nothing is removed from it."""
    protocol = replace(setup.protocol, int8_arithmetic="none") if setup.protocol else None
    setup = replace(setup, protocol=protocol)
    tags = {
        "kind": "dense",
        "ticket": dense_id(base.files),
        "base": base.id,
        "protocol": setup.protocol_id,
        "measured": ",".join(setup.wants),
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
        base=base.place,
        licence=licence(base.folder),
    )
