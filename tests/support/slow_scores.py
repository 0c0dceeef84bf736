"""Slow, obvious references of the scores before training: a Llama in float64 without transformers, and SynFlow by hand."""

import numpy as np
import torch

from lottery.training.network import Network
from lottery.training.recipe import Shape


def named(network: Network, flat_P: torch.Tensor) -> dict[str, torch.Tensor]:
    out, start = {}, 0
    for name, parameter in network.model.named_parameters():
        out[name] = flat_P[start : start + parameter.numel()].reshape(parameter.shape)
        start += parameter.numel()
    return out


def rotated(x_NHTD: torch.Tensor) -> torch.Tensor:
    """Rotary positions: the pair (j, j + D/2) turns by t / 10000^(2j/D)."""
    T, D = x_NHTD.shape[-2:]
    angle_TJ = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    cos_TJ, sin_TJ = angle_TJ.cos(), angle_TJ.sin()
    one, two = x_NHTD[..., : D // 2], x_NHTD[..., D // 2 :]
    return torch.cat([one * cos_TJ - two * sin_TJ, two * cos_TJ + one * sin_TJ], dim=-1)


def loss(network: Network, flat_P: torch.Tensor, ids_NT: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean cross-entropy of the next token, every operation written out, in the dtype of `flat_P`."""
    shape, value = network.shape, named(network, flat_P)
    x_NTC = value["model.embed_tokens.weight"][ids_NT[:, :-1]]
    N, T, C = x_NTC.shape

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * value[name]

    for i in range(shape.layers):
        at = f"model.layers.{i}"
        in_NTC = norm(x_NTC, f"{at}.input_layernorm.weight")
        q, k, v = (
            (in_NTC @ value[f"{at}.self_attn.{p}_proj.weight"].T).view(N, T, shape.heads, -1).transpose(1, 2)
            for p in "qkv"
        )
        logits_NHTT = rotated(q) @ rotated(k).transpose(2, 3) / q.shape[-1] ** 0.5
        logits_NHTT = logits_NHTT.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        out_NTC = (logits_NHTT.softmax(-1) @ v).transpose(1, 2).reshape(N, T, C)
        x_NTC = x_NTC + out_NTC @ value[f"{at}.self_attn.o_proj.weight"].T
        in_NTC = norm(x_NTC, f"{at}.post_attention_layernorm.weight")
        gate, up = (in_NTC @ value[f"{at}.mlp.{p}_proj.weight"].T for p in ("gate", "up"))
        x_NTC = x_NTC + (gate * gate.sigmoid() * up) @ value[f"{at}.mlp.down_proj.weight"].T
    logits_NTV = norm(x_NTC, "model.norm.weight") @ value["model.embed_tokens.weight"].T / temperature
    return -logits_NTV.log_softmax(-1).gather(2, ids_NT[:, 1:, None]).mean()


def gradient(network: Network, weight_P: np.ndarray, batches: np.ndarray, temperature: float) -> np.ndarray:
    """The float64 gradient of the loss, summed over batches, with respect to the prunable weights alone."""
    leaf_P = torch.from_numpy(weight_P.astype(np.float64)).requires_grad_()
    torch.stack([loss(network, leaf_P, ids_NT, temperature) for ids_NT in torch.from_numpy(batches)]).sum().backward()
    assert leaf_P.grad is not None
    return leaf_P.grad.numpy() * network.prunable_P


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2))) or 1.0


def synflow(shape: Shape, value: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """SynFlow's scores of every matrix from absolute values, forwards and backwards in loops over single units."""
    D = shape.width // shape.heads
    score = {name: np.zeros_like(x) for name, x in value.items()}
    stream = np.ones(shape.width)
    kept = []
    for i in range(shape.layers):
        before = stream.copy()
        in1 = stream / rms(stream) * value[f"model.layers.{i}.input_layernorm.weight"]
        q, k, v = (value[f"model.layers.{i}.self_attn.{p}_proj.weight"] @ in1 for p in "qkv")
        a = [sum(q[j] * k[j] for j in range(h * D, h * D + D)) / D**0.5 for h in range(shape.heads)]
        out1 = value[f"model.layers.{i}.self_attn.o_proj.weight"] @ [a[j // D] * v[j] for j in range(shape.width)]
        middle = stream = stream + out1 / rms(out1)
        in2 = stream / rms(stream) * value[f"model.layers.{i}.post_attention_layernorm.weight"]
        gate, up = (value[f"model.layers.{i}.mlp.{p}_proj.weight"] @ in2 for p in ("gate", "up"))
        out2 = value[f"model.layers.{i}.mlp.down_proj.weight"] @ (gate * up)
        stream = stream + out2 / rms(out2)
        kept.append((before, in1, q, k, v, a, out1, middle, in2, gate, up, out2))
    back = np.ones(shape.width)  # dR / d stream

    def through(name: str, back_O: np.ndarray, in_I: np.ndarray) -> np.ndarray:
        """Scores one matrix, and returns dR / d its input."""
        weight_OI, back_I = value[name], np.zeros(len(in_I))
        for o in range(len(back_O)):
            for j in range(len(in_I)):
                score[name][o, j] = weight_OI[o, j] * back_O[o] * in_I[j]
                back_I[j] += weight_OI[o, j] * back_O[o]
        return back_I

    for i in reversed(range(shape.layers)):
        before, in1, q, k, v, a, out1, middle, in2, gate, up, out2 = kept[i]
        mlp, attention = f"model.layers.{i}.mlp", f"model.layers.{i}.self_attn"
        inner = through(f"{mlp}.down_proj.weight", back / rms(out2), gate * up)
        both = through(f"{mlp}.gate_proj.weight", inner * up, in2) + through(f"{mlp}.up_proj.weight", inner * gate, in2)
        back = back + both / 2 * value[f"model.layers.{i}.post_attention_layernorm.weight"] / rms(middle)
        weight = np.array([a[j // D] for j in range(shape.width)])
        inner = through(f"{attention}.o_proj.weight", back / rms(out1), weight * v)
        of_a = [sum(inner[j] * v[j] for j in range(h * D, h * D + D)) / D**0.5 for h in range(shape.heads)]
        of_a_C = np.array([of_a[j // D] for j in range(shape.width)])
        three = through(f"{attention}.q_proj.weight", of_a_C * k, in1)
        three += through(f"{attention}.k_proj.weight", of_a_C * q, in1)
        three += through(f"{attention}.v_proj.weight", inner * weight, in1)
        back = back + three / 3 * value[f"model.layers.{i}.input_layernorm.weight"] / rms(before)
    return score
