"""Compares a method with chance: random tickets with as many survivors in every tensor are measured like the ticket.

Legend: N windows, C controls.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace

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
    work: Work, spec: Spec, chosen: Sequence[Place], stored: StoredTicket, setup: Setup, prune_s: float
) -> None:
    """Adds the controls to the work. `prune_s`: the seconds that pruning the ticket took."""
    work.rate["prune"] = prune_s
    if not is_whole(chosen, stored):
        for i in range(1, spec.control + 1):
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
    removed = {p.name: stored.info(p.name).numel - stored.entries[p.name]["kept"] for p in chosen}
    perplexity_only = replace(setup, measures=("perplexity",))
    source_bytes = sum(stored.info(name).nbytes for name in stored.tensors)
    folder = make_folder(home() / "unfinished", "LOTTERY_HOME") / f"control-{stored.id}"
    rows_N = []
    for i in range(1, spec.control + 1):
        shutil.rmtree(folder, ignore_errors=True)  # a killed run may have left it
        random = replace(
            spec, method="random", scope="layer", allocation="uniform", storage="packed", seed=spec.seed + i
        )
        what = control_name(i, spec)
        try:
            made = make_folder(folder, "LOTTERY_HOME")
            prune_source(source, random, chosen, made, Allocation(removed), f"{what}: prune")
            work.left.pop((what, "prune"), None)
            ticket = StoredTicket(folder)
            measured, _ = measure_model(what, ticket, list(ticket.tensors), perplexity_only, source_bytes, work)
        except OSError as e:
            raise path_error(e, f"LOTTERY_HOME={folder}: {e.strerror}; make room, or give control=0") from e
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        assert measured.nll_N is not None
        rows_N.append(measured.nll_N)
    return np.stack(rows_N)


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
