"""The arms: under which mask a training starts, from which weights, and at which step.

A chain is iterative magnitude pruning: train, remove a share of what lives, rewind the rest to step k, train again. Its
dense training is round 0. The other arms take the chain's mask and change one thing, or make a mask in another way.

| arm | mask | weights | first step |
|---|---|---|---|
| dense | all live | new, or those of step k with another order of data | 0, or k |
| rewound | of the chain | of step k | k |
| oneshot | one cut after the dense training | of step k | k |
| tuned | of the chain | the trained weights of the round before, trained on at the schedule's last rate | k |
| rewound-rate | of the chain | the trained weights of the round before; only the schedule goes back | k |
| early | one cut at the checkpoint from which on the mask no longer moves | of step k | k |
| permuted | of the chain | of step k, the living values permuted inside each matrix | k |
| signs | of the chain | new sizes with the signs of step k | 0 |
| other | of the chain | of step k of another initialisation | k |
| reinit | of the chain | new | 0 |
| shuffled | of the chain, permuted inside each matrix | of step k | k |
| snip, grasp, synflow, random | by a score at initialisation | the same initialisation | 0 |
| snip-shuffled, ... | the same, permuted inside each matrix | the same initialisation | 0 |
| untrained | one cut after the dense training | the trained weights, not trained again | none |

`rewound` to step 0 is the original hypothesis (Frankle and Carbin, 2018) and is shown as `original`. Weights that are new
begin at step 0 with the warm-up, so they train longer than the ticket: open_lth begins at step k, which would make the
control weaker. The optimizer always starts without moments; restoring them changed nothing (2.3409 against 2.3411).
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from lottery.training.masks import full_mask, keep_best, permute_values, shuffle_mask
from lottery.training.network import Network, initial_weights
from lottery.training.outputs import Outputs
from lottery.training.recipe import Setup, Training, living
from lottery.training.scores import SCORES, early_bird, mask_before_training
from lottery.training.windows import Batches

BEFORE_TRAINING = tuple(SCORES)
SHUFFLED = tuple(f"{name}-shuffled" for name in SCORES if name != "random")  # random shuffled is random again
OF_CHAIN = ("rewound", "tuned", "rewound-rate", "permuted", "signs", "other", "reinit", "shuffled")
OF_DENSE = ("oneshot", "early", "untrained")
ARMS = ("dense", *OF_CHAIN, *OF_DENSE, *BEFORE_TRAINING, *SHUFFLED)
REWINDING = ("rewound", "oneshot", "early", "permuted", "signs", "other", "shuffled", "tuned", "rewound-rate")
OTHER = 1000  # is added to a seed where an arm needs another initialisation
SCORE_BATCHES = 4  # batches that a score at initialisation looks at
EARLY_CHECKS = 20  # checkpoints of the dense training at which the mask of `early` is compared


@dataclass(frozen=True)
class Need:
    """A training whose result another one starts from: its end, or its weights after some steps."""

    training: Training
    step: int | None = None


@dataclass(frozen=True)
class Start:
    """What a training starts from."""

    weight_P: np.ndarray
    mask_P: np.ndarray
    first: int  # the first step that is made
    mask_step: int | None = None  # of `early`: the step of the dense training at which its mask no longer moved


def first_step(training: Training) -> int:
    """Returns the first step of the schedule that a training makes."""
    if training.arm == "untrained":
        return training.steps
    if training.arm in ("signs", "reinit") or is_before_training(training.arm):
        return 0
    return training.rewind


def is_before_training(arm: str) -> bool:
    """Returns whether an arm makes its mask at initialisation."""
    return arm in BEFORE_TRAINING or arm in SHUFFLED


def has_constant_rate(arm: str) -> bool:
    """Returns whether an arm trains at the last rate of the schedule (fine-tuning, Renda et al. 2020)."""
    return arm == "tuned"


def dense_of(training: Training, seed: int | None = None) -> Training:
    """Returns the dense training of a training's chain."""
    seed = training.seed if seed is None else seed
    rate, steps = training.mask_lr, training.mask_steps
    return Training("dense", seed, lr=rate, mask_lr=rate, steps=steps, mask_steps=steps)


def chain_before(training: Training) -> Training:
    """Returns the training whose end decides the mask of the chain's round: that of the round before."""
    if training.round <= 1:
        return dense_of(training)
    lr, steps, rewind = training.mask_lr, training.mask_steps, training.mask_rewind
    return replace(training, arm="rewound", round=training.round - 1, lr=lr, steps=steps, rewind=rewind, order=0)


def needs(training: Training) -> list[Need]:
    """Returns what a training starts from, beside the initialisation of its seed."""
    arm, dense = training.arm, dense_of(training)
    found: list[Need] = []
    if arm in OF_CHAIN:
        found.append(Need(chain_before(training)))
    if arm in ("oneshot", "untrained"):
        found.append(Need(dense))
    if arm == "early":
        found += [Need(dense, step) for step in early_steps(training.mask_steps)]
    if training.rewind and (arm == "dense" or arm in REWINDING):
        base = dense_of(training, training.seed + OTHER) if arm == "other" else dense
        if arm not in ("tuned", "rewound-rate"):
            found.append(Need(base, training.rewind))
    return found


def early_steps(steps: int) -> list[int]:
    """Returns the steps of the checkpoints that `early` compares."""
    return [round(steps * i / EARLY_CHECKS) for i in range(1, EARLY_CHECKS + 1)]


@cache
def ancestors(training: Training) -> tuple[Need, ...]:
    """Returns everything that a training needs, directly or not, each before what needs it."""
    found: dict[Need, None] = {}
    for need in needs(training):
        found |= dict.fromkeys(ancestors(need.training)) | {need: None}
    return tuple(found)


def mask_cost(training: Training, mask_step: int | None = None) -> float:
    """Returns what was trained for the mask and the start, in trainings of this training's own length.

    `mask_step` is the checkpoint at which `early` found its mask: training further would not have been needed.
    """
    if mask_step is not None:
        return mask_step / training.steps
    made: dict[Training, int] = {}
    for need in ancestors(training):
        end = need.training.steps if need.step is None else need.step
        made[need.training] = max(made.get(need.training, 0), max(0, end - first_step(need.training)))
    return sum(made.values()) / training.steps


def prepare_start(training: Training, setup: Setup, network: Network, outputs: Outputs, batches: Batches) -> Start:
    """Returns what a training starts from. All that it needs lies in `outputs`."""
    step = None
    if training.arm == "early":
        mask_P, step = early_mask(training, network, outputs, living(network.prunable, training.round, setup.rate))
    else:
        mask_P = make_mask(training, setup, network, outputs, batches)
    weight_P = make_weights(training, network, outputs, mask_P)
    return Start(np.where(mask_P, weight_P, np.float32(0)), mask_P, first_step(training), step)


def make_mask(training: Training, setup: Setup, network: Network, outputs: Outputs, batches: Batches) -> np.ndarray:
    """Returns the mask under which a training runs, [P]."""
    arm, keep = training.arm, living(network.prunable, training.round, setup.rate)
    if arm == "dense":
        return full_mask(network)
    if arm in OF_CHAIN:
        end = outputs.read_end(chain_before(training))
        mask_P = keep_best(network, np.abs(end.weight_P), end.mask_P, keep, training.scope)
        return shuffle_mask(network, mask_P, training.seed) if arm == "shuffled" else mask_P
    if arm in ("oneshot", "untrained"):
        end = outputs.read_end(dense_of(training))
        return keep_best(network, np.abs(end.weight_P), end.mask_P, keep, training.scope)
    method = arm.removesuffix("-shuffled")
    looked = batches.first(training.seed, SCORE_BATCHES)
    weight_P = initial_weights(network, training.seed)
    mask_P = mask_before_training(method, network, weight_P, looked, keep, training.scope, training.seed)
    return shuffle_mask(network, mask_P, training.seed) if arm in SHUFFLED else mask_P


def early_mask(training: Training, network: Network, outputs: Outputs, keep: int) -> tuple[np.ndarray, int | None]:
    """Returns the mask of the first checkpoint from which on it no longer moves, and that checkpoint's step.

    If it always moves, the mask is that of the end (`oneshot`), and there is no step.
    """
    dense, all_P = dense_of(training), full_mask(network)
    states = (outputs.read_state(dense, step) for step in early_steps(training.mask_steps))
    masks = [keep_best(network, np.abs(weight_P), all_P, keep, training.scope) for weight_P in states]
    found = early_bird(network, masks)
    return (masks[-1], None) if found is None else (masks[found], early_steps(training.mask_steps)[found])


def make_weights(training: Training, network: Network, outputs: Outputs, mask_P: np.ndarray) -> np.ndarray:
    """Returns the weights that a training starts from, [P], before the mask is applied."""
    arm, seed = training.arm, training.seed
    if arm in ("tuned", "rewound-rate"):
        return outputs.read_end(chain_before(training)).weight_P
    if arm == "untrained":
        return outputs.read_end(dense_of(training)).weight_P
    if arm == "reinit":
        return initial_weights(network, seed + OTHER)
    if is_before_training(arm):
        return initial_weights(network, seed)
    weight_P = rewound_weights(training, network, outputs, seed + OTHER if arm == "other" else seed)
    if arm == "permuted":
        return permute_values(network, weight_P, mask_P, seed)
    if arm == "signs":
        new_P = initial_weights(network, seed + OTHER)
        return np.where(network.prunable_P, np.copysign(new_P, weight_P), new_P)
    return weight_P


def rewound_weights(training: Training, network: Network, outputs: Outputs, seed: int) -> np.ndarray:
    """Returns the weights of the dense training after the rewind point's steps."""
    if not training.rewind:
        return initial_weights(network, seed)
    return outputs.read_state(dense_of(training, seed), training.rewind)
