"""A small Llama whose parameters and gradients lie in two flat buffers.

The model is transformers' own LlamaForCausalLM, so what is trained here is what every other part of lottery loads. The
flat buffers let AdamW, the mask and the clipping each be one operation: they cost 2% of a step.

Legend: P parameters, in the order of the model's own; N windows, T tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lottery.training.recipe import Shape

INIT_STD = 0.06  # of every matrix: a smaller one for o_proj and down_proj would starve them under global pruning
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Matrix:
    """One matrix of attention or MLP: the part [start, stop) of the flat buffer."""

    name: str  # model.layers.0.self_attn.q_proj.weight
    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def part(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def short(self) -> str:
        """The layer and the projection: 0.q_proj."""
        words = self.name.split(".")
        return f"{words[2]}.{words[-2]}"


class Network:
    """A model, its flat buffers, and which of its weights can be pruned.

    Embeddings (which are the head too) and norms are never pruned: the question is which connections a network needs,
    and without its vocabulary it cannot say anything.
    """

    def __init__(self, shape: Shape, device: str = "cpu") -> None:
        self.shape, self.device = shape, device
        self.model = new_model(shape).to(device)
        parameters = list(self.model.named_parameters())
        self.size = sum(p.numel() for _, p in parameters)
        self.weight_P = torch.zeros(self.size, device=device)
        self.grad_P = torch.zeros(self.size, device=device)
        self.matrices: list[Matrix] = []
        start = 0
        for name, parameter in parameters:
            stop = start + parameter.numel()
            self.weight_P[start:stop] = parameter.data.view(-1)
            parameter.data = self.weight_P[start:stop].view_as(parameter)
            parameter.grad = self.grad_P[start:stop].view_as(parameter)
            if name.split(".")[-2] in PROJECTIONS:
                self.matrices.append(Matrix(name, start, stop, tuple(parameter.shape)))
            start = stop
        self.prunable_P = np.zeros(self.size, bool)
        for matrix in self.matrices:
            self.prunable_P[matrix.part] = True
        self.position_1T = torch.arange(shape.context, device=device)[None]

    @property
    def prunable(self) -> int:
        return int(self.prunable_P.sum())

    def load(self, weight_P: np.ndarray) -> None:
        """Gives the model these weights and no gradient."""
        self.weight_P.copy_(torch.from_numpy(weight_P))
        self.grad_P.zero_()

    def weights(self) -> np.ndarray:
        """Returns a copy of all parameters, float32 [P]."""
        return self.weight_P.cpu().numpy().copy()

    def loss(self, ids_NT: torch.Tensor) -> torch.Tensor:
        """Returns the mean cross-entropy (nats per token) of tokens 1..T-1 of each window, given those before."""
        seen_NT, next_NT = ids_NT[:, :-1], ids_NT[:, 1:]
        hidden = self.model.model(
            input_ids=seen_NT, position_ids=self.position_1T[:, : seen_NT.shape[1]], use_cache=False
        ).last_hidden_state
        return functional.cross_entropy(self.model.lm_head(hidden).flatten(0, 1), next_NT.flatten())


def new_model(shape: Shape, attention: str = "sdpa") -> Any:
    """Returns a LlamaForCausalLM of that shape in float32, with transformers' own initial weights.

    `attention` is transformers' implementation: `sdpa`, or `eager`, which can be differentiated twice.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=max(shape.context, 2),
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config)


def initial_weights(network: Network, seed: int) -> np.ndarray:
    """Returns new weights, float32 [P]: N(0, 0.06) for every matrix, 1 for the norms.

    They are drawn by NumPy's own generator, so that a seed gives the same weights under every version of torch.
    """
    rng = np.random.default_rng([seed, 0x1417])
    weight_P = np.empty(network.size, np.float32)
    start = 0
    for parameter in network.model.parameters():
        stop = start + parameter.numel()
        weight_P[start:stop] = INIT_STD * rng.standard_normal(stop - start, np.float32) if parameter.dim() > 1 else 1
        start = stop
    return weight_P
