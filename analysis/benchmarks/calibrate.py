"""The part `calibrate` times methods that look at data on SmolLM2-135M: the pass of the samples against a plain forward
pass of the whole model over the same tokens, and the solving of all matrices. All in CPU seconds of one thread."""

import time
from typing import Any

import click
import numpy as np
import torch

from benchmarks.decode_models import smollm2_folder
from benchmarks.one_thread import cpu_seconds, has_one_thread, in_one_thread, new_home
from benchmarks.turns import show, spread
from lottery.models.sources import open_base
from lottery.pruning.calibrated import CalibratedSelection
from lottery.pruning.calibration import Calibration
from lottery.pruning.samples import Samples
from lottery.runtime.load import load_model
from lottery.spec import METHODS, Spec

SAMPLES, TOKENS = 8, 1024


def bench_calibrate(rounds: int) -> dict[str, Any] | None:
    model = smollm2_folder()
    if not (model / "config.json").is_file():
        click.echo(f"calibrate: no SmolLM2-135M in {model}: python analysis/real_models.py makes it; it is left out")
        return None
    if not has_one_thread():
        return in_one_thread("calibrate", rounds)
    base = open_base(str(model))
    context = min(TOKENS, int(base.config.get("max_position_embeddings", TOKENS)))
    ids_NT = np.random.default_rng(0).integers(5, base.config["vocab_size"], (SAMPLES, context))
    click.echo(f"calibrate: {base.id}, {SAMPLES} samples of {context} tokens, CPU seconds of one thread")
    found = {"passing": compare_with_forward(base, ids_NT, rounds), "solving_s": {}}
    with new_home():  # the methods share one pass
        for method in (name for name, of in METHODS.items() if of.calibrated):
            _, found["solving_s"][method] = look_at(base, ids_NT, method)
            click.echo(f"  {method:<12} solving all matrices {found['solving_s'][method]:8.2f} s")
    return found


def compare_with_forward(base: Any, ids_NT: np.ndarray, rounds: int) -> dict[str, Any]:
    """Times wanda's statistics and a plain forward pass in turn. Returns seconds of both and the ratios (median and
    quartiles)."""
    model = load_model(base, list(base.tensors), "bfloat16", "cpu")

    @torch.inference_mode()
    def forward() -> None:
        for ids_T in torch.from_numpy(ids_NT):
            model(ids_T[None], use_cache=False, logits_to_keep=1)

    taken = []
    for number in range(rounds + 1):
        plain = cpu_seconds(forward)
        with new_home():  # what the last round kept would save this one its pass
            passing, _ = look_at(base, ids_NT, "wanda")
        if number:  # the first round warms up
            taken.append((plain, passing))
    plain_R, passing_R = np.array(taken).T
    ratio = spread(passing_R / plain_R)
    click.echo(f"  plain forward pass {np.median(plain_R):8.2f} s")
    click.echo(f"  wanda's pass       {np.median(passing_R):8.2f} s, {show(ratio)} times as long")
    return {"forward_s": spread(plain_R), "wanda_s": spread(passing_R), "to_forward": ratio}


def look_at(base: Any, ids_NT: np.ndarray, method: str) -> tuple[float, float]:
    """Prunes all matrices to 50% with propagate=dense. Returns the seconds of the passes, and those of the solving."""
    calibration = Calibration("random tokens", "", len(ids_NT), ids_NT.shape[1], 0, "dense")
    chosen = [p for p in base.places if p.role in ("attention", "mlp")]
    spec = Spec.parse(method=method)
    selection = CalibratedSelection(spec, base, chosen, Samples(calibration, ids_NT, "cpu"))
    solve, solving_s = selection.solver.solve, 0.0

    def timed_solve(*given: Any) -> Any:
        nonlocal solving_s
        began = time.process_time()
        try:
            return solve(*given)
        finally:
            solving_s += time.process_time() - began

    selection.solver.solve = timed_solve  # type: ignore[method-assign,assignment]  # a timer around the method
    all_s = cpu_seconds(lambda: [None for _ in selection.pieces])
    return all_s - solving_s, solving_s
