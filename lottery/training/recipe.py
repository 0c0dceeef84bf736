"""What fixes a training: the frozen records whose hash is its name.

Two trainings with the same record give the same weights to the bit on one machine (eager, one thread). A training of a
ticket also depends on the trainings that made its mask; those follow from its record (`arms.needs`).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from lottery.spec import json_sha256

RULES = 1  # raise it when a rule of an arm or of the training changes, so that older results are not taken for new ones


@dataclass(frozen=True)
class Shape:
    """The size of a small Llama: decoder layers of attention and SwiGLU, RMSNorm, rotary positions, a tied head."""

    layers: int = 4
    width: int = 64  # hidden size
    heads: int = 4
    inner: int = 168  # size inside the MLP
    vocabulary: int = 512
    context: int = 64  # tokens


@dataclass(frozen=True)
class Setup:
    """What all trainings of one hypothesis share."""

    corpus: str  # the corpus' sha256
    shape: Shape = Shape()
    batch: int = 16  # windows of `context` tokens that a step sees
    warmup: float = 0.05  # share of the steps in which the learning rate rises to its peak
    floor: float = 0.05  # share of the peak at which the cosine ends
    decay: float = 0.1  # AdamW's weight decay
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0  # greatest norm of a gradient
    rate: float = 0.2  # share of the living weights that a round removes
    device: str = "cpu"
    compile: bool = False  # torch.compile is faster, but promises no equal bits

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Training:
    """One training. Which weights it starts from, and under which mask, is the rule of its arm (`arms.py`)."""

    arm: str
    seed: int = 0
    round: int = 0  # rounds of pruning: the number of weights that live follows from it and the setup's rate
    rewind: int = 0  # the step whose weights come back
    steps: int = 800  # steps of the whole schedule; a training that starts at step k makes `steps` - k of them
    lr: float = 3e-3  # peak learning rate of this training
    mask_lr: float = 3e-3  # peak learning rate of the trainings that made the mask
    mask_steps: int = 800  # steps of the trainings that made the mask
    mask_rewind: int = 0  # the step to which those trainings were rewound
    order: int = 0  # which order of the data: 0 is the seed's own
    scope: str = "global"  # weights are ranked over all matrices together, or within each matrix: layer

    def id(self, setup: Setup) -> str:
        """Returns 12 hexadecimal digits, the name of the training's folder."""
        return json_sha256({"rules": RULES, "setup": setup.record(), **asdict(self)})[:12]


def living(total: int, rounds: int, rate: float) -> int:
    """Returns how many of `total` weights live after some rounds, each of which removes ceil(rate * living).

    This is open_lth's count (Frankle and Carbin 2019, pruning/sparse_global.py).
    """
    for _ in range(rounds):
        total -= math.ceil(rate * total)
    return total
