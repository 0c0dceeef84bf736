"""This file logs each training of a hypothesis to MLflow as it ends, and says so on the console."""

from collections.abc import Sequence
from dataclasses import asdict

from lottery.files.locks import process_lock
from lottery.hypothesis.lab import Lab
from lottery.hypothesis.plan import Segment
from lottery.hypothesis.record import shown_arm
from lottery.hypothesis.tasks import Task
from lottery.hypothesis.wording import training_title
from lottery.progress import say
from lottery.registry import parts, store, trainings
from lottery.training.recipe import Training


class Recorder:
    """Logs each training to MLflow as it ends, and remembers which failed."""

    def __init__(self, client: store.Client, lab: Lab, run_id: str, planned: Sequence[Training] | None = None) -> None:
        """`planned` are the trainings that this process may end; without it, all of the plan."""
        self.client, self.lab, self.run_id = client, lab, run_id
        self.key = parts.part_key(run_id)
        self.planned = lab.plan.trainings if planned is None else planned
        self.reasons: dict[str, tuple[str, str]] = {}  # by the training's id: outcome, reason
        self.count = 0
        self.run_ids = trainings.find_training_runs(client, [t.id(lab.plan.setup) for t in self.planned])

    def ended(self, task: Task, state: str, reason: str | None) -> None:
        """Takes the end of a task: a new training gets a run, an old one's run is marked as part of this hypothesis."""
        if isinstance(task.what, Segment) or task.kind == "states":
            if reason:
                say(f"{task.name}: {state}: {reason}")
            return
        training, id = task.what, task.what.id(self.lab.plan.setup)
        self.count += 1
        if state not in ("made", "found"):
            self.reasons[id] = state, reason or ""
            say(f"{self.place()} {training_title(training, self.lab.hypothesis.steps)}: {state}: {reason}")
            return
        with process_lock(f"training-run-{id}"):  # tasks of a cluster may find the same training at once
            self.run_ids |= {} if id in self.run_ids else trainings.find_training_runs(self.client, [id])
            if id in self.run_ids:
                trainings.add_part(self.client, self.run_ids[id], self.key, task.name)
            else:
                self.run_ids[id] = self.log(task, training)
        if state == "found":
            return
        result = self.lab.outputs.result(training)
        ending = f"loss {result['loss']:.4f}" if "loss" in result else f"diverged: {result['reason']}"
        if result["empty"]:
            ending += f", no weight is left in {', '.join(result['empty'])}"
        say(
            f"{self.place()} {training_title(training, self.lab.hypothesis.steps)}: {state}: {ending}, {result['seconds']:.0f} s"
        )

    def place(self) -> str:
        return f"[{self.count}/{len(self.planned)}]"

    def log(self, task: Task, training: Training) -> str:
        """Writes the run of a training. Returns the run's id."""
        result = self.lab.outputs.result(training)
        params = {name: str(value) for name, value in asdict(training).items()} | {"text": self.lab.corpus.name}
        tags = {
            "arm": shown_arm(training), "round": str(training.round), "density": f"{result['density']:.4f}",
            "seed": str(training.seed), "training": result["id"], self.key: task.name, "outcome": result["outcome"],
        }  # fmt: skip
        measured: dict[str, float] = {name: result[name] for name in ("loss", "search_loss") if name in result}
        measured |= {"density": result["density"], "cost": result["cost"], "train_s": result["seconds"]}
        curve = [(int(step), train, search) for step, train, search in result["curve"]]
        return trainings.log_training(
            self.client, self.run_id, training_title(training, self.lab.hypothesis.steps), params, tags, measured, curve
        )
