"""How trainings are called in tables and in MLflow."""

from lottery.hypothesis.record import shown_arm
from lottery.training.arms import is_before_training
from lottery.training.recipe import Training


def training_title(training: Training, usual_steps: int) -> str:
    """Returns a training's name: its arm, its round, and whatever differs from the plain case."""
    words = [shown_arm(training)]
    if training.round:
        words.append(f"round {training.round}")
    if training.rewind and training.arm != "reinit" and not is_before_training(training.arm):
        words.append(f"from step {training.rewind}")
    words += [f"lr={training.lr:g}", f"seed={training.seed}"]
    if training.steps != usual_steps:
        words.append(f"steps={training.steps}")
    if training.order:
        words.append(f"order={training.order}")
    if training.scope != "global":
        words.append(f"scope={training.scope}")
    return " ".join(words)
