"""Masks that cost no whole training: scores at initialisation, and the early-bird rule.

A score says of every weight how much it seems to matter before the network has learned anything; the weights of highest
score are kept. Published rules are for convolutional networks. Where a transformer forces a decision, the function says
which one was taken. Embeddings (which are the head too) and norms are never pruned; only the scores of prunable weights mean anything.

Legend: P parameters; B batches, N windows, T tokens; C channels of the residual stream, A channels of attention,
H heads, I inner channels of the MLP.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from lottery.training.masks import full_mask, keep_best
from lottery.training.network import Network, new_model

TEMPERATURE = 200  # GraSP divides the logits by it, so that the softmax is nearly uniform, as it should be at the start
ROUNDS = {"synflow": 100}  # of pruning; the other methods prune once

Score = Callable[[Network, np.ndarray, np.ndarray, int], np.ndarray]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def mask_before_training(
    method: str, network: Network, weight_P: np.ndarray, batches: np.ndarray, keep: int, scope: str, seed: int
) -> np.ndarray:
    """Returns the mask in which `keep` prunable weights live, chosen by a score before any training, [P].

    `batches` are tokens, int64 [B, N, T+1]; SNIP and GraSP look at them. `seed` is that of `random`. SynFlow goes in 100
    rounds to densities density^(i/100), as its paper does, and each round's scores are those of the network that is left.
    With scope `global`, SNIP may leave whole matrices empty: q and k of all layers but the first have small gradients.
    """
    mask_P = full_mask(network)
    rounds = ROUNDS.get(method, 1)
    density = keep / network.prunable
    for i in range(1, rounds + 1):
        score_P = SCORES[method](network, weight_P * mask_P, batches, seed)
        number = keep if i == rounds else round(network.prunable * density ** (i / rounds))
        mask_P = keep_best(network, score_P, mask_P, number, scope)
    return mask_P


def snip(network: Network, weight_P: np.ndarray, batches: np.ndarray, seed: int) -> np.ndarray:
    """Returns |w g|: how fast the loss changes when a weight begins to be removed (Lee et al. 2019, SNIP).

    The gradient g is summed over all batches before the absolute value is taken, so that noise which differs from batch
    to batch cancels.
    """
    grad_P = gradient(network, weight_P, batches, temperature=1)
    return np.abs(weight_P * grad_P)


def grasp(network: Network, weight_P: np.ndarray, batches: np.ndarray, seed: int) -> np.ndarray:
    """Returns w * (H g): to first order how much of the gradient's squared norm a weight's presence gives.

    GraSP (Wang et al. 2020) removes the weights of largest -w * (H g), whose removal raises the gradient's norm most or
    lowers it least; so those of highest w * (H g) are kept here. g is the gradient and H the Hessian of the loss whose
    logits are divided by 200, with respect to the prunable weights alone, each summed over all batches. The public code
    goes through a batch in two halves, which saves memory and gives the same scores times a constant: a batch is not cut
    here. The code also draws new initial weights first if asked to; that is left out, since an arm must train from the
    weights that were scored.
    """
    grad_P = torch.from_numpy(gradient(network, weight_P, batches, TEMPERATURE) * network.prunable_P)
    direction_P = grad_P.to(network.device, torch.float32)
    loss = loss_of(network, TEMPERATURE)
    leaf_P = torch.from_numpy(weight_P).to(network.device).requires_grad_()
    product_P = np.zeros(network.size)
    for ids_NT in torch.from_numpy(batches).to(network.device):
        (own_P,) = torch.autograd.grad(loss(leaf_P, ids_NT), leaf_P, create_graph=True)
        (part_P,) = torch.autograd.grad(own_P @ direction_P, leaf_P)
        product_P += part_P.double().cpu().numpy()
    return weight_P * product_P


def synflow(network: Network, weight_P: np.ndarray, batches: np.ndarray, seed: int) -> np.ndarray:
    """Returns |w| * dR/d|w|, float64, where R sums what the last layer gives for ones (Tanaka et al. 2020, SynFlow).

    It sees no data: every weight is replaced by its absolute value, the input is one position of ones in the residual
    stream (no embedding), and the output is the stream after the last layer (no head). A masked weight must be 0 in
    `weight_P`. What the paper does not say of a transformer is decided so:
    - SiLU and softmax become the identity: an attention weight is q k / sqrt(d) of its head, so that q and k get a score.
      Of one position the rotary embedding is the identity.
    - An RMSNorm divides by its own root mean square, which counts as a constant. Without a division the scores overflow
      from the fourth layer on: each layer raises what comes in to the sixth power.
    - The factors of a product (q, k and v; gate and up) share the gradient that goes back to their common input equally.
      Otherwise the first of 32 layers has 2,600 times the last one's scores, not 32 times.
    - What attention or MLP add to the stream is divided by its own root mean square, also a constant. Otherwise whatever
      has lost weights adds less, gets lower scores and loses more, and whole layers go: a residual network stays
      connected without them. With it, the matrices of one block always have equal sums of scores, whatever is left of
      them, which is the reason for SynFlow's claim that no matrix becomes empty.
    """
    value_P = torch.from_numpy(np.abs(weight_P).astype(np.float64)).to(network.device).requires_grad_()
    value = by_name(network, value_P)
    heads = network.shape.heads
    stream_C = torch.ones(network.shape.width, dtype=torch.float64, device=network.device)
    for i in range(network.shape.layers):
        layer = f"model.layers.{i}"
        in_C = shared(unit(stream_C), 3) * value[f"{layer}.input_layernorm.weight"]
        q_HD, k_HD, v_HD = ((value[f"{layer}.self_attn.{p}_proj.weight"] @ in_C).view(heads, -1) for p in "qkv")
        weight_H1 = (q_HD * k_HD).sum(1, keepdim=True) / q_HD.shape[1] ** 0.5
        stream_C = stream_C + unit(value[f"{layer}.self_attn.o_proj.weight"] @ (weight_H1 * v_HD).flatten())
        in_C = shared(unit(stream_C), 2) * value[f"{layer}.post_attention_layernorm.weight"]
        gate_I, up_I = (value[f"{layer}.mlp.{p}_proj.weight"] @ in_C for p in ("gate", "up"))
        stream_C = stream_C + unit(value[f"{layer}.mlp.down_proj.weight"] @ (gate_I * up_I))
    (grad_P,) = torch.autograd.grad(stream_C.sum(), value_P)
    return (value_P.detach() * grad_P).cpu().numpy()


def random(network: Network, weight_P: np.ndarray, batches: np.ndarray, seed: int) -> np.ndarray:
    """Returns scores that are drawn uniformly from [0, 1): the choice that knows nothing."""
    return np.random.default_rng([seed, 0xD1CE]).random(network.size)


SCORES: dict[str, Score] = {"snip": snip, "grasp": grasp, "synflow": synflow, "random": random}


def early_bird(network: Network, masks: Sequence[np.ndarray], threshold: float = 0.1, patience: int = 5) -> int | None:
    """Returns the index of the first mask that has stopped moving, None if there is none (You et al. 2020, Early-Bird).

    `masks` are what pruning would choose at successive checkpoints of one training. A mask has stopped moving when
    `patience` successive distances, the last of them to this mask, all are below `threshold`.
    """
    still = 0
    for i in range(1, len(masks)):
        still = still + 1 if moved(network, masks[i - 1], masks[i]) < threshold else 0
        if still == patience:
            return i
    return None


def moved(network: Network, one_P: np.ndarray, other_P: np.ndarray) -> float:
    """Returns the share of the living prunable weights that differ between two masks: 0 if none do, 1 if all do.

    Early-Bird divides by the number of all channels, of which it keeps about half. Two masks of 4% of the weights differ
    in at most 8% of all of them, however different they are, so that a threshold of 0.1 would always be met.
    """
    one_W, other_W = one_P[network.prunable_P], other_P[network.prunable_P]
    return float((one_W ^ other_W).sum() / (one_W.sum() + other_W.sum()))


def gradient(network: Network, weight_P: np.ndarray, batches: np.ndarray, temperature: float) -> np.ndarray:
    """Returns the gradient of the loss, summed over the batches, float64 [P]."""
    loss = loss_of(network, temperature)
    leaf_P = torch.from_numpy(weight_P).to(network.device).requires_grad_()
    grad_P = np.zeros(network.size)
    for ids_NT in torch.from_numpy(batches).to(network.device):
        (part_P,) = torch.autograd.grad(loss(leaf_P, ids_NT), leaf_P)
        grad_P += part_P.double().cpu().numpy()
    return grad_P


def loss_of(network: Network, temperature: float) -> Loss:
    """Returns the loss as a function of all parameters [P] and of tokens [N, T+1]; it can be differentiated twice.

    It is `Network.loss` with the logits divided by `temperature`. The network itself is left as it is.
    """
    model = new_model(network.shape, attention="eager").to(network.device)

    def loss(weight_P: torch.Tensor, ids_NT: torch.Tensor) -> torch.Tensor:
        seen_NT, next_NT = ids_NT[:, :-1], ids_NT[:, 1:]
        words = {"input_ids": seen_NT, "position_ids": network.position_1T[:, : seen_NT.shape[1]], "use_cache": False}
        logits_NTV = torch.func.functional_call(model, by_name(network, weight_P), kwargs=words).logits
        return functional.cross_entropy(logits_NTV.flatten(0, 1) / temperature, next_NT.flatten())

    return loss


def by_name(network: Network, flat_P: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns views of a flat buffer by the model's parameter names."""
    parameters = list(network.model.named_parameters())
    parts = flat_P.split([p.numel() for _, p in parameters])
    return {name: part.view_as(p) for (name, p), part in zip(parameters, parts, strict=True)}


def unit(x_C: torch.Tensor) -> torch.Tensor:
    """Returns x divided by its root mean square, which counts as a constant; zeros, of a block left empty, stay zeros."""
    size = x_C.detach().square().mean().sqrt()
    return x_C / size if size > 0 else x_C


def shared(x_C: torch.Tensor, factors: int) -> torch.Tensor:
    """Returns x itself, of which only one part in `factors` passes a gradient."""
    return x_C / factors + x_C.detach() * (1 - 1 / factors)
