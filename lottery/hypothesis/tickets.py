"""This file makes tickets of trainings: the winning ones become registered tickets like any other, over their dense base.

What somebody needs to train such a ticket again lies beside it in MLflow: the initial and the rewound weights, the mask
and the recipe (`training/`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lottery.files.atomic import atomic_folder, atomic_write
from lottery.files.home import home, make_folder
from lottery.hypothesis.lab import Lab
from lottery.jobs.job import Job, find_existing_run
from lottery.jobs.result import identity_tags
from lottery.jobs.run import run as run_ticket
from lottery.measuring.cache import Cache
from lottery.measuring.setup import make_setup
from lottery.models.checkpoint import Base
from lottery.models.sources import open_base
from lottery.models.targets import resolve_target
from lottery.pruning.allocation import resolve_allocation
from lottery.registry import store
from lottery.registry.versions import find_version
from lottery.spec import Spec, ticket_id
from lottery.training.arms import dense_of, first_step, make_weights
from lottery.training.network import Network, initial_weights
from lottery.training.outputs import End
from lottery.training.recipe import Training
from lottery.training.sealed import seal

START_FILES = ("recipe.json", "weights.safetensors")
PARTS = "training"  # the artifact folder of what a ticket was trained from
LONG = 8  # digits of the run's id in names


class TrainedSource(Base):
    """The model that a training left, as the source of a ticket whose base is the trained dense model."""

    def __init__(self, folder: Path, base: Base, training: str, masks: Mapping[str, np.ndarray]) -> None:
        super().__init__(folder, base.id, tied=True)
        self.base, self.training, self.masks = base, training, masks

    @property
    def ticket(self) -> str:  # type: ignore[override]  # a Base is no ticket
        """What the weights come from; it is part of the ticket's id."""
        return self.training

    @property
    def has_new_values(self) -> bool:
        return True

    @cached_property
    def dense_record(self) -> dict[str, Any]:
        return self.base.base_record

    @property
    def base_record(self) -> dict[str, Any]:
        return self.dense_record


def write_model(network: Network, weight_P: np.ndarray, lab: Lab, folder: Path) -> None:
    """Writes weights as a model's folder in transformers' layout, with the tokenizer of the corpus."""
    network.load(weight_P)
    network.model.save_pretrained(folder, safe_serialization=True)
    lab.corpus.save_tokenizer(folder)


def trained_dense(lab: Lab) -> Training | None:
    """Returns the dense training of the first seed: that from which the chain begins, else the shortest one. None if
    none ended with a loss."""
    seed, rate, steps = lab.hypothesis.seed, lab.hypothesis.lr, lab.hypothesis.steps
    own = dense_of(Training("rewound", seed, mask_lr=rate, mask_steps=steps))
    plain = [t for t in lab.plan.trainings if (t.arm, t.seed, t.rewind, t.order) == ("dense", seed, 0, 0)]
    ended = [t for t in plain if lab.outputs.has(t) and not lab.outputs.has_diverged(t)]
    return min(ended, key=lambda t: (t != own, t.steps, t.lr), default=None)


def dense_base(lab: Lab, run_id: str, dense: Training) -> Base:
    """Returns a trained dense model as a folder in LOTTERY_HOME."""
    seed = dense.seed
    folder = (
        home() / "hypotheses" / f"{lab.id}-{store.store_digest()[:LONG]}" / f"hypothesis-{run_id[:LONG]}-seed{seed}"
    )
    with atomic_folder(folder, "LOTTERY_HOME") as partial:
        if partial is not None:
            write_model(Network(lab.plan.setup.shape), lab.outputs.read_end(dense).weight_P, lab, partial)
    return open_base(str(folder))


def winners(lab: Lab, record: Mapping[str, Any]) -> list[Training]:
    """Returns the sparsest matching ticket of each arm: the training of the first seed at the arm's best rate."""
    sparsest: dict[str, dict[str, Any]] = {}
    for claim in record["claims"]:
        if claim["claim"] == "matches" and claim["holds"] and claim["steps"] == lab.hypothesis.steps:
            known = sparsest.get(claim["arm"])
            if known is None or claim["density"] < known["density"]:
                sparsest[claim["arm"]] = claim
    names = ("arm", "round", "rewind", "steps", "mask_steps", "mask_rewind", "scope", "lr")
    found = []
    for claim in sparsest.values():
        wanted = tuple(claim[name] for name in names)
        rows = [t for t in record["trainings"] if tuple(t[name] for name in names) == wanted]
        rows = [t for t in rows if t["seed"] == lab.hypothesis.seed and not t["order"] and t["outcome"] == "done"]
        ids = {t.id(lab.plan.setup): t for t in lab.plan.trainings}
        found += [ids[row["id"]] for row in rows[:1]]
    return found


def register_winners(lab: Lab, run_id: str, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Registers the winning tickets, measured on the report text, and returns what the record says of them."""
    chosen, dense = winners(lab, record), trained_dense(lab)
    if not chosen or dense is None:
        return []
    base = dense_base(lab, run_id, dense)
    text = base.folder.with_name("report.txt")
    atomic_write(text, lab.corpus.report_text.encode())
    rows = {t["id"]: t for t in record["trainings"]}
    found = []
    for training in chosen:
        row = rows[training.id(lab.plan.setup)]
        found.append(register(lab, run_id, base, text, training, row))
    return found


def register(
    lab: Lab, run_id: str, base: Base, text: Path, training: Training, row: Mapping[str, Any]
) -> dict[str, Any]:
    """Makes, measures and registers the ticket of one training; one that is registered is found."""
    network, end = Network(lab.plan.setup.shape), lab.outputs.read_end(training)
    folder = make_folder(base.folder.parent / f"trained-{row['id']}", "LOTTERY_HOME")
    write_model(network, end.weight_P, lab, folder)
    masks = {m.name: end.mask_P[m.part].reshape(m.shape) for m in network.matrices}
    source = TrainedSource(folder, base, row["id"], masks)
    spec = Spec.parse(
        model=str(base.folder), target="all", sparsity=1 - row["density"], method="hypothesis", dataset=str(text),
        window=str(lab.hypothesis.context), measure="perplexity,samples", device=lab.hypothesis.device,
        register=f"ticket-hypothesis-{run_id[:LONG]}",
    )  # fmt: skip
    job = make_job(spec, source, base, tags_of(row))
    client = store.connect()
    if (before := find_existing_run(client, job)) is not None and has_start(client, before.info.run_id):
        uri = find_version(client, spec.register, job.ticket)
        return about(row, job.ticket, uri[0] if uri else None, before.info.run_id, before.data.metrics)
    made = run_ticket(job, extra_tags={"mlflow.parentRunId": run_id})
    log_start(lab, made.run_id, training, network, end)
    return about(row, made.ticket, made.model_uri, made.run_id, made.metrics)


def about(
    row: Mapping[str, Any], ticket: str, uri: str | None, run_id: str, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """Returns what the record of a hypothesis says of a registered ticket."""
    of_training = {name: row[name] for name in ("arm", "density", "seed", "id")}
    return of_training | {
        "ticket": ticket,
        "model_uri": uri,
        "run_id": run_id,
        "ratio": metrics.get("perplexity_ratio"),
    }


def has_start(client: store.Client, run_id: str) -> bool:
    """Returns whether a run holds what its ticket was trained from; a killed process may have left it out."""
    return len(client.list_artifacts(run_id, PARTS)) == len(START_FILES)


def tags_of(row: Mapping[str, Any]) -> dict[str, str]:
    return {"arm": row["arm"], "round": str(row["round"]), "density": f"{row['density']:.4f}", "seed": str(row["seed"])}


def make_job(spec: Spec, source: TrainedSource, base: Base, tags: Mapping[str, str]) -> Job:
    """Returns the job that packs, measures and registers what a training left."""
    cache = Cache()
    chosen = resolve_target(spec.target, source.places, source.tied_head)
    setup = make_setup(base, spec, base.id, "none", cache)
    id = ticket_id(spec, base.files, [p.name for p in chosen], source.ticket)
    about = identity_tags("ticket", id, base.id, setup) | dict(tags)
    return Job(
        spec, source, chosen, base, setup, id, cache, about, spec.register, resolve_allocation(spec, source, chosen)
    )


def log_start(lab: Lab, run_id: str, training: Training, network: Network, end: End) -> None:
    """Logs what the ticket was trained from, so that somebody else can train it again."""
    # Not `prepare_start`: another device could rank two weights of nearly equal score the other way round.
    weight_P = make_weights(training, network, lab.outputs, end.mask_P)
    rewound_P = np.where(end.mask_P, weight_P, np.float32(0))
    recipe = {"setup": lab.plan.setup.record(), "training": asdict(training), "text": lab.hypothesis.text,
              "tokens_needed": lab.hypothesis.tokens_needed, "first": first_step(training),
              "loss": lab.outputs.result(training)["loss"]}  # fmt: skip
    with TemporaryDirectory() as name:
        folder = Path(name) / PARTS
        folder.mkdir()
        initial_P = initial_weights(network, training.seed)
        tensors = {"initial": initial_P, "rewound": rewound_P, "mask": np.packbits(end.mask_P)}
        (folder / "weights.safetensors").write_bytes(seal(tensors))
        (folder / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
        store.connect().log_artifacts(run_id, str(folder), PARTS)
