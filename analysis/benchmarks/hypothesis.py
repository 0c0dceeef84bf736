"""The part `hypothesis` times a training's step against torch's own forward and backward pass of the same model over as many
tokens, in turn, in CPU seconds of one thread. The step is that of `lottery hypothesis`: it draws the data, masks, clips and
applies the gradient, and measures the points of the curve. The bar is 1.20."""

from collections.abc import Callable
from typing import Any

import click
import numpy as np
import torch

from benchmarks.one_thread import cpu_seconds, has_one_thread, in_one_thread, new_home
from benchmarks.turns import show, spread
from lottery.training.arms import Start
from lottery.training.corpus import prepare_corpus
from lottery.training.loop import POINTS, Optimizer, learning_rate, train
from lottery.training.masks import keep_best
from lottery.training.network import Network, initial_weights, new_model
from lottery.training.recipe import Setup, Shape, Training
from lottery.training.windows import Batches
from lottery.training.work import Laboratory

SHAPE, STEPS, BATCH = Shape(), 800, 16  # those of the presets
DENSITY = 0.21
Parts = dict[str, Callable[[int], Any]]  # name -> a function of the number of the step


def bench_hypothesis(rounds: int) -> dict[str, Any]:
    if not has_one_thread():
        return in_one_thread("hypothesis", rounds)
    with new_home() as home:
        folder = prepare_corpus("stories", SHAPE.vocabulary, SHAPE.context, STEPS * BATCH * SHAPE.context)
        laboratory = Laboratory(Setup("0" * 64, SHAPE, batch=BATCH), folder, home / "trainings")
        return compare(laboratory, Training("rewound", round=7, steps=STEPS), rounds)


def compare(laboratory: Laboratory, training: Training, rounds: int) -> dict[str, Any]:
    """Times segments of a training, each from one point of the curve to the next, and as many plain passes, in turn.
    Returns milliseconds of both, the ratios and what each part of a step takes of a plain pass (median and quartiles)."""
    network, batches, setup = laboratory.network, laboratory.batches, laboratory.setup
    weight_P = initial_weights(network, training.seed)
    keep = round(DENSITY * network.prunable)
    mask_P = keep_best(network, np.abs(weight_P), np.ones(network.size, bool), keep, "global")
    every = max(1, training.steps // POINTS)
    plain = plain_pass(setup.shape, batches, weight_P)
    parts = parts_of(network, setup, training, mask_P, laboratory)
    click.echo(
        f"hypothesis: {network.size:,} weights, {setup.batch} windows of {setup.shape.context} tokens, CPU seconds of one thread"
    )
    taken: list[list[float]] = []
    for number in range(rounds + 1):  # the first round warms up
        first = every * (number % (POINTS - 1))

        def segment(first: int = first) -> None:
            start = Start(weight_P * mask_P, mask_P, first)
            train(network, setup, training, start, batches, laboratory.curve_loss, stop=first + every)

        seconds = [repeat(plain, every), cpu_seconds(segment), *(repeat(work, every) for work in parts.values())]
        taken += [seconds] if number else []
    plain_R, step_R, *part_RR = 1000 * np.array(taken).T / every
    found = {"plain_ms": spread(plain_R), "step_ms": spread(step_R), "to_plain": spread(step_R / plain_R)}
    found |= {name: spread(part_R / plain_R) for name, part_R in zip(parts, part_RR, strict=True)}
    click.echo(f"  forward and backward {np.median(plain_R):8.2f} ms")
    click.echo(f"  a training's step    {np.median(step_R):8.2f} ms, {show(found['to_plain'])} times as long")
    for name in parts:
        click.echo(f"  - {name:<18} {100 * found[name][0]:8.1f} % of forward and backward")
    return found


def repeat(work: Callable[[int], Any], times: int) -> float:
    """Returns the CPU seconds of so many steps."""
    return cpu_seconds(lambda: [work(step) for step in range(times)])


def plain_pass(shape: Shape, batches: Batches, weight_P: np.ndarray) -> Callable[[int], None]:
    """Returns transformers' own model with the same weights, as a function that makes one forward and backward pass."""
    model = new_model(shape)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(weight_P.copy()), model.parameters())
    ids_NT = torch.from_numpy(batches.at(0, 0, 0))

    def passed(step: int) -> None:
        logits_NTV = model(input_ids=ids_NT[:, :-1], use_cache=False).logits
        torch.nn.functional.cross_entropy(logits_NTV.flatten(0, 1), ids_NT[:, 1:].flatten()).backward()
        model.zero_grad()

    return passed


def parts_of(
    network: Network, setup: Setup, training: Training, mask_P: np.ndarray, laboratory: Laboratory
) -> Parts:  # fmt: skip
    """Returns what a step is made of. A point of the curve is measured once in a segment."""
    optimizer = Optimizer(network, setup, mask_P)
    ids_NT = torch.from_numpy(laboratory.batches.at(0, 0, 0))
    return {
        "its own passes": lambda step: network.loss(ids_NT).backward(),
        "data": lambda step: torch.from_numpy(laboratory.batches.at(training.seed, 0, step)),
        "optimizer and mask": lambda step: optimizer.step(learning_rate(training, setup, step)),
        "curve": lambda step: laboratory.curve_loss() if step == 0 else None,
    }
