"""Compares a method with chance: random tickets with as many survivors in every tensor are measured like the ticket.

Legend: N windows, C controls.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lottery.errors import path_error
from lottery.files.home import home, make_folder
from lottery.measuring.measurement import ModelResult
from lottery.measuring.model import measure_model
from lottery.measuring.perplexity import exp, finite_metrics, ratio_metrics
from lottery.measuring.setup import Setup
from lottery.measuring.work import Work
from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.progress import say
from lottery.pruning.allocation import Allocation
from lottery.pruning.stream import prune_source
from lottery.spec import Spec
from lottery.ticket.stored import StoredTicket


def plan_controls(
    source: Source,
    spec: Spec,
    chosen: Sequence[Place],
    stored: StoredTicket,
    setup: Setup,
    work: Work,
    prune_s: float,
) -> None:
    """Adds the controls to the work that were not measured yet. `prune_s`: the seconds that pruning the ticket took."""
    work.rate["prune"] = prune_s
    if not is_whole(chosen, stored):
        for i in range(1, spec.control + 1):
            if control_key(i, source, spec, chosen, stored, setup) not in work.cache.values:
                work.left[control_name(i, spec), "prune"] = 1.0
                work.add(control_name(i, spec), replace(setup, measures=("perplexity",)))


def measure_controls(
    source: Source, spec: Spec, chosen: Sequence[Place], stored: StoredTicket, setup: Setup, work: Work
) -> np.ndarray | None:
    """Returns the mean NLL per window (nats per token) of `spec.control` random tickets, float64 [C, N].

    Returns None if none is asked for, or if nothing is removed: a random ticket would then be the same ticket. Each
    control is written to disk and loaded like the ticket, with its target, pattern and quantization. Its seed follows
    the spec's seed. Raises MachineError or InputError where the disk fails.
    """
    if not spec.control:
        return None
    if is_whole(chosen, stored):
        say(
            f"warning: control={spec.control}: no control is measured: at sparsity={spec.sparsity:g} nothing is removed"
        )
        return None
    rows_N = []
    for i in range(1, spec.control + 1):
        # Tickets of a study that differ in their method alone have the same controls.
        key = control_key(i, source, spec, chosen, stored, setup)
        rows_N.append(
            work.cache.get_or_compute(key, partial(measure_control, i, source, spec, chosen, stored, setup, work))
        )
    return np.stack(rows_N)


def measure_control(
    i: int, source: Source, spec: Spec, chosen: Sequence[Place], stored: StoredTicket, setup: Setup, work: Work
) -> np.ndarray:
    """Returns the mean NLL per window of control number `i`, [N]. It is written, measured and deleted again."""
    what = control_name(i, spec)
    kept = kept_counts(chosen, stored)
    removed = Allocation({name: stored.info(name).numel - count for name, count in kept.items()})
    source_bytes = sum(stored.info(name).nbytes for name in stored.tensors)
    folder = make_folder(home() / "unfinished", "LOTTERY_HOME") / f"control-{stored.id}"
    shutil.rmtree(folder, ignore_errors=True)  # a killed run may have left it
    random = replace(spec, method="random", scope="layer", allocation="uniform", storage="packed", seed=spec.seed + i)
    try:
        prune_source(source, random, chosen, make_folder(folder, "LOTTERY_HOME"), removed, f"{what}: prune")
        work.left.pop((what, "prune"), None)
        ticket, perplexity_only = StoredTicket(folder), replace(setup, measures=("perplexity",))
        measured, _ = measure_model(what, ticket, list(ticket.tensors), perplexity_only, source_bytes, work)
    except OSError as e:
        raise path_error(e, f"LOTTERY_HOME={folder}: {e.strerror}; make room, or give control=0") from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert measured.nll_N is not None
    return measured.nll_N


def control_key(
    i: int, source: Source, spec: Spec, chosen: Sequence[Place], stored: StoredTicket, setup: Setup
) -> tuple[Any, ...]:
    """Returns what fixes the figures of control number `i`: the model that is pruned, the survivors of each tensor,
    pattern, quantization, seed and protocol."""
    survivors = tuple(sorted(kept_counts(chosen, stored).items()))
    return "control", source.folder, survivors, spec.pattern, spec.quantize, spec.seed + i, setup.protocol_id


def kept_counts(chosen: Sequence[Place], stored: StoredTicket) -> dict[str, int]:
    """Returns tensor -> the number of its weights that stay."""
    return {p.name: stored.entries[p.name]["kept"] for p in chosen}


def control_name(i: int, spec: Spec) -> str:
    return f"control {i} of {spec.control}"


def is_whole(chosen: Sequence[Place], stored: StoredTicket) -> bool:
    """Returns whether nothing was removed from any of the tensors."""
    return all(stored.entries[p.name]["kept"] == math.prod(stored.entries[p.name]["shape"]) for p in chosen)


def control_metrics(ticket: ModelResult, nll_CN: np.ndarray | None) -> dict[str, float]:
    """Returns `control_perplexity` (median, least and greatest of the controls) and `control_ratio`.

    The ratio is the ticket's perplexity divided by the geometric mean of the controls', with its paired interval over
    windows. Controls that overflowed are left out, with a warning.
    """
    if nll_CN is None or ticket.nll_N is None:
        return {}
    sound_CN = nll_CN[np.isfinite(nll_CN).all(1)]
    if len(sound_CN) < len(nll_CN):
        say(f"warning: {len(nll_CN) - len(sound_CN)} of {len(nll_CN)} controls overflowed and are left out")
    if not len(sound_CN):
        return {}
    perplexities = [exp(float(mean)) for mean in sound_CN.mean(1)]
    metrics = {
        "control_perplexity": float(np.median(perplexities)),
        "control_perplexity_lo": min(perplexities),
        "control_perplexity_hi": max(perplexities),
    }
    ratio = ratio_metrics(ticket.nll_N, sound_CN.mean(0))
    return finite_metrics(
        metrics | {f"control_{name.removeprefix('perplexity_')}": value for name, value in ratio.items()}
    )
