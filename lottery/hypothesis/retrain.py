"""This file trains a registered ticket again, from the rewound weights that lie beside it in MLflow, and compares."""

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from lottery.errors import InputError, MachineError
from lottery.hypothesis.tickets import PARTS
from lottery.measuring.intervals import difference_interval
from lottery.measuring.perplexity import nll_per_window
from lottery.models.devices import pick_device
from lottery.progress import progress_bar
from lottery.registry import fetching, store, trainings
from lottery.training.arms import Start
from lottery.training.corpus import load_corpus, prepare_corpus
from lottery.training.loop import train
from lottery.training.network import Network
from lottery.training.outputs import end_of
from lottery.training.recipe import Setup, Shape, Training
from lottery.training.sealed import read_sealed
from lottery.training.windows import Batches
from lottery.training.work import CURVE_WINDOWS


@dataclass(frozen=True)
class Retrained:
    """A ticket that was trained again: its loss on the report text, and what the registered one has there."""

    ticket: str
    run_id: str
    loss: float
    registered_loss: float
    difference: float
    lo: float
    hi: float
    same_bits: bool  # whether the weights are those of the registered ticket to the bit


@dataclass(frozen=True)
class Kept:
    """What a registered ticket was trained from."""

    ticket: str
    recipe: dict[str, Any]
    start: Start
    weights: dict[str, torch.Tensor]  # the registered ticket's own, by name
    run_id: str


def retrain(uri: str, text: str | None = None) -> Retrained:
    """Trains a registered ticket from its stored rewound weights, under its stored mask, and compares both ends.

    `text` says where the text lies that it was trained on, if it has moved.

    Raises InputError for a ticket that no hypothesis registered, and if the text is not the one it was trained on.
    """
    client = store.connect()
    kept = read_kept(client, uri)
    setup, training = setup_of(kept.recipe), Training(**kept.recipe["training"])
    text = text or kept.recipe["text"]
    folder = prepare_corpus(text, setup.shape.vocabulary, setup.shape.context, kept.recipe["tokens_needed"])
    corpus = load_corpus(folder)
    if corpus.sha256 != setup.corpus:
        raise InputError(
            f"retrain={uri}: text={text} is not the text that the ticket was trained on; give that text as --text"
        )
    setup = replace(setup, device=pick_device("auto"))
    network, batches = Network(setup.shape, setup.device), Batches(corpus.train_T, setup.batch, setup.shape.context)
    nll = partial(nll_per_window, network.model, corpus.report_NT, lambda amount=1, note="": None)
    search = partial(nll_per_window, network.model, corpus.search_NT[:CURVE_WINDOWS], lambda amount=1, note="": None)
    began, threads = time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = training.steps - kept.start.first
        with progress_bar(f"train {kept.ticket} again", steps, "steps") as advance:
            done = train(
                network, setup, training, kept.start, batches, lambda: float(search().mean()),
                advance=lambda made, loss: advance(made, f"loss {loss:.3f}"),
            )  # fmt: skip
        if done.diverged is not None:
            raise MachineError(
                f"retrain={uri}: the loss was no number at step {done.diverged}; the registered ticket stays"
            )
        new_N = nll()
        network.load(flat(network, kept.weights))
        old_N = nll()
    finally:
        torch.set_num_threads(threads)
    lo, hi = difference_interval(new_N - old_N)
    same = done.weight_P.tobytes() == flat(network, kept.weights).tobytes()
    run_id = log(client, kept, training, done.curve, float(new_N.mean()), float(old_N.mean()), time.monotonic() - began)
    return Retrained(
        kept.ticket, run_id, float(new_N.mean()), float(old_N.mean()), float((new_N - old_N).mean()), lo, hi, same
    )


def flat(network: Network, weights: dict[str, torch.Tensor]) -> np.ndarray:
    """Returns a model's weights in the order of the flat buffer, [P]."""
    parts = [weights[name].flatten() for name, _ in network.model.named_parameters()]
    return torch.cat(parts).float().numpy()


def setup_of(recipe: dict[str, Any]) -> Setup:
    record = dict(recipe["setup"])
    return Setup(**{**record, "shape": Shape(**record["shape"])})


def read_kept(client: store.Client, uri: str) -> Kept:
    """Returns what a registered ticket was trained from. Raises InputError if nothing lies beside it."""
    if not uri.startswith("models:/"):
        raise InputError(f"retrain={uri}: give a registered ticket of a hypothesis, models:/ticket-hypothesis-.../N")
    from lottery.ticket.opening import open_ticket

    try:
        fetched = fetching.fetch(client, uri)
    except InputError as e:
        raise InputError(str(e).replace("ticket=", "retrain=", 1)) from e
    stored = open_ticket(fetched.folder)
    run_id = client.get_logged_model(fetched.model_id).source_run_id if fetched.model_id else None
    names = {file.path for file in client.list_artifacts(run_id, PARTS)} if run_id else set()
    if f"{PARTS}/recipe.json" not in names:
        raise InputError(
            f"retrain={uri}: no rewound weights lie beside it; only tickets of `lottery hypothesis` have them"
        )
    with TemporaryDirectory() as name:
        folder = Path(client.download_artifacts(run_id, PARTS, name))
        recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        try:
            tensors = read_sealed(folder / "weights.safetensors").tensors
        except InputError as e:
            what = f"{PARTS}/weights.safetensors of run {run_id}"
            raise InputError(
                f"retrain={uri}: the artifact {what} is damaged; only an undamaged copy can be trained again"
            ) from e
    end = end_of({"weights": tensors["rewound"], "mask": tensors["mask"]})
    weights = {place.name: stored.tensor(place.name) for place in stored.places}
    return Kept(stored.id, recipe, Start(end.weight_P, end.mask_P, recipe["first"]), weights, str(run_id))


def log(
    client: store.Client, kept: Kept, training: Training, curve: list[list[float]], loss: float, before: float, seconds: float
) -> str:  # fmt: skip
    """Writes the run of the new training, below the ticket's own. Returns the run's id."""
    params = {"arm": training.arm, "seed": str(training.seed), "lr": str(training.lr), "steps": str(training.steps)}
    tags = {"arm": training.arm, "round": str(training.round), "seed": str(training.seed), "ticket": kept.ticket}
    metrics = {"loss": loss, "registered_loss": before, "train_s": seconds}
    points = [(int(step), train_loss, search_loss) for step, train_loss, search_loss in curve]
    name = f"retrain {training.arm} {kept.ticket}"
    return trainings.log_training(client, kept.run_id, name, params, {**tags, "retrained": "yes"}, metrics, points)


def retrained_line(found: Retrained) -> str:
    """Returns what came out, in one line for a person."""
    if found.same_bits:
        return f"{found.ticket}: trained again to the same weights, bit for bit: loss {found.loss:.4f}"
    return (
        f"{found.ticket}: loss {found.loss:.4f}, registered {found.registered_loss:.4f}: difference {found.difference:+.4f} "
        f"[{found.lo:+.4f}, {found.hi:+.4f}]; the bits differ, as on another machine or with another torch"
    )
