"""Makes one training, or one line between two, in this process, from what lies on disk to what lies on disk."""

from collections.abc import Collection
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lottery.errors import MachineError
from lottery.files.locks import process_lock
from lottery.measuring.perplexity import nll_per_window
from lottery.training.arms import mask_cost, prepare_start
from lottery.training.barrier import line_losses
from lottery.training.corpus import load_corpus
from lottery.training.loop import Advance, train
from lottery.training.masks import densities
from lottery.training.network import Network
from lottery.training.outputs import End, Outputs
from lottery.training.recipe import Setup, Training
from lottery.training.windows import Batches

CURVE_WINDOWS = 64  # of the search text, for the points of a curve


class Laboratory:
    """The corpus, the network and the outputs that the trainings of one process share."""

    def __init__(self, setup: Setup, corpus_folder: Path, outputs_folder: Path | None = None) -> None:
        self.setup = setup
        self.corpus = load_corpus(corpus_folder)
        self.outputs = Outputs(setup, outputs_folder)
        self.batches = Batches(self.corpus.train_T, setup.batch, setup.shape.context)

    @cached_property
    def network(self) -> Network:
        return Network(self.setup.shape, self.setup.device)

    def make(
        self, training: Training, keep: Collection[int] = (), advance: Advance = lambda steps, loss: None
    ) -> dict[str, Any]:
        """Makes a training and returns its result. If it is there, it is not made again.

        `keep` names the steps whose weights other trainings start from. Everything that the training needs must be
        there.
        """
        with process_lock(f"training-{training.id(self.setup)}"):
            if not self.outputs.has(training):
                self.train(training, keep, advance)
            if not self.outputs.has_diverged(training):
                self.make_states(training, keep, advance)
            return self.outputs.result(training)

    def make_first_steps(
        self, training: Training, keep: Collection[int], advance: Advance = lambda steps, loss: None
    ) -> None:
        """Makes the first steps of a training whose rest nobody needs."""
        with process_lock(f"training-{training.id(self.setup)}"):
            self.make_states(training, keep, advance)

    def make_states(self, training: Training, keep: Collection[int], advance: Advance) -> None:
        """Trains from the start to those steps of `keep` whose weights are not there."""
        missing = {step for step in keep if not self.outputs.has(training, step)}
        if not missing:
            return
        start = prepare_start(training, self.setup, self.network, self.outputs, self.batches)
        done = train(
            self.network, self.setup, training, start, self.batches, lambda: 0.0, keep=missing,
            write_state=lambda step, weight_P: self.outputs.write_state(training, step, weight_P), stop=max(missing),
            advance=advance,
        )  # fmt: skip
        if done.diverged is not None:
            raise MachineError(
                f"the first steps of {training.arm} with seed {training.seed} diverged at step {done.diverged}"
            )

    def train(self, training: Training, keep: Collection[int], advance: Advance) -> None:
        """Trains, measures what was written, and keeps both."""
        outputs, network = self.outputs, self.network
        start = prepare_start(training, self.setup, network, outputs, self.batches)
        done = train(
            network, self.setup, training, start, self.batches, self.curve_loss,
            outputs.unfinished(training) / "checkpoint.safetensors", keep,
            lambda step, weight_P: outputs.write_state(training, step, weight_P), advance=advance,
        )  # fmt: skip
        of_matrix = densities(network, start.mask_P)
        result = {
            **asdict(training),
            "id": training.id(self.setup),
            "outcome": "done" if done.diverged is None else "diverged",
            "reason": None if done.diverged is None else f"the loss was no number at step {done.diverged}",
            "density": float(start.mask_P[network.prunable_P].mean()),
            "densities": {name: round(share, 5) for name, share in of_matrix.items()},
            "empty": [name for name, share in of_matrix.items() if share == 0],
            "first": start.first,
            "mask_step": start.mask_step,
            "cost": round(mask_cost(training, start.mask_step), 3),
            "curve": done.curve,
            "seconds": round(done.seconds, 1),
        }
        with outputs.writing(training, End(done.weight_P, start.mask_P)) as written:
            if done.diverged is None:
                end_P = written.end().weight_P
                for part, ids_NT in (("search", self.corpus.search_NT), ("report", self.corpus.report_NT)):
                    nll_N = self.nll(end_P, ids_NT)
                    written.nll(part, nll_N)
                    result["loss" if part == "report" else "search_loss"] = float(nll_N.mean())
            written.result(result)

    def nll(self, weight_P: np.ndarray, ids_NT: np.ndarray) -> np.ndarray:
        """Returns the mean loss (nats per token) of each window, float64 [N], under these weights."""
        self.network.load(weight_P)
        return nll_per_window(self.network.model, ids_NT, lambda amount=1, note="": None)

    def curve_loss(self) -> float:
        """Returns the loss of some windows of the search text under the network's present weights."""
        return float(
            nll_per_window(
                self.network.model, self.corpus.search_NT[:CURVE_WINDOWS], lambda amount=1, note="": None
            ).mean()
        )

    def make_line(self, a: Training, b: Training) -> None:
        """Measures the line between the ends of two trainings on the search windows."""
        a_P, b_P = (self.outputs.read_end(each).weight_P for each in (a, b))
        line_AN = line_losses(a_P, b_P, lambda weight_P: self.nll(weight_P, self.corpus.search_NT))
        self.outputs.write_line(a, b, line_AN)
