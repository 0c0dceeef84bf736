"""Computes the perplexity of a loaded model, with its interval.

Legend: N windows, T tokens of a window, W words of the vocabulary.
"""

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lottery.measuring.intervals import bootstrap_interval
from lottery.measuring.numbers import format_perplexity
from lottery.models import devices
from lottery.progress import Advance
from lottery.runtime.layers import as_packed

LOGIT_BYTES = 2**25  # of logits in memory: larger ones get new memory from the system each time, which is slow
CACHE_BYTES = 2**21
LEAST_POSITIONS = 256  # with fewer, at a large vocabulary, reading the head's weights takes longer than multiplying
BATCH_TOKENS = 8192


def activation_bytes_per_token(config: Any) -> int:
    """Estimates the bytes of one token's activations inside a layer, in float32."""
    config = config.get_text_config()
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    experts = getattr(config, "num_experts_per_tok", None) or 1
    return 4 * (6 * hidden + 3 * int(inner) * int(experts))


def positions_of(config: Any) -> int:
    """Returns for how many tokens logits are computed at once."""
    return max(LOGIT_BYTES // (8 * config.get_text_config().vocab_size), LEAST_POSITIONS)


def logit_bytes(config: Any) -> int:
    """Returns the bytes of the logits of `positions_of` tokens, in the model's own type and in float32."""
    return 8 * positions_of(config) * config.get_text_config().vocab_size


def batch_size(config: Any, window: int, device: str) -> int:
    """Returns how many windows to compute at once: as many as fit into a small part of the free memory."""
    room = min(devices.free_bytes(device) // 8, 4 * 2**30 if device == "cuda" else 2**28)
    return max(1, min(room // (activation_bytes_per_token(config) * window), BATCH_TOKENS // window))


@torch.inference_mode()
def nll_per_window(model: Any, ids_NT: np.ndarray, advance: Advance) -> np.ndarray:
    """Returns the mean negative log-likelihood (nats per token) of positions 1..T-1 of each window, float64 [N].

    Logits become float32 for the cross-entropy. The value of a window that overflows is NaN or infinite.
    """
    count, window = ids_NT.shape
    batch = batch_size(model.config, window, model.device.type)
    nll_N = np.empty(count)
    for first in range(0, count, batch):
        ids = torch.from_numpy(ids_NT[first : first + batch]).to(model.device)
        with as_packed():
            nll_N[first : first + batch] = nll_of_tokens(model, ids).double().mean(1).cpu().numpy()
        mean = nll_N[: first + len(ids)].mean()
        advance(len(ids), f"perplexity {format_perplexity(exp(mean))}")
    return nll_N


def nll_of_tokens(model: Any, ids_NT: torch.Tensor) -> torch.Tensor:
    """Returns the negative log-likelihood (nats) of tokens 1..T-1 of each window, float32 [N, T-1].

    The layers run once. The model's own head, with any scaling or capping after it, then runs over their output, some
    positions at a time: all logits of a large vocabulary would take gigabytes.
    """
    count, window = ids_NT.shape
    step = -(-positions_of(model.config) // count)
    body = getattr(model, model.base_model_prefix)
    output = body(ids_NT, use_cache=False)
    own = body.__dict__.get("forward")  # accelerate may have put a hook there
    body.forward = lambda *_, **__: output
    parts = []
    try:
        for first in range(0, window - 1, step):
            last = min(first + step, window - 1)
            positions = torch.arange(first, last, device=ids_NT.device)
            logits = model(ids_NT, use_cache=False, logits_to_keep=positions).logits
            targets = ids_NT[:, first + 1 : last + 1]
            parts.append(token_nll(logits.flatten(0, 1), targets.flatten()).view(count, -1))
    finally:
        if own is None:
            del body.forward
        else:
            body.forward = own
    return torch.cat(parts, 1)


def token_nll(logits_TW: torch.Tensor, target_T: torch.Tensor) -> torch.Tensor:
    """Returns the cross-entropy (nats) of each token, float32 [T].

    A CPU takes as many tokens at a time as its cache holds: 256 tokens over 151,936 words then take 17 ms instead of
    84.
    """
    step = len(target_T) if logits_TW.is_cuda else max(1, CACHE_BYTES // (4 * logits_TW.shape[1]))
    parts = [
        functional.cross_entropy(logits.float(), targets, reduction="none")
        for logits, targets in zip(logits_TW.split(step), target_T.split(step), strict=True)
    ]
    return torch.cat(parts)


def perplexity_metrics(nll_N: np.ndarray, tokens: int, utf8_bytes: int) -> dict[str, float]:
    """Returns `perplexity` with its interval, and `bits_per_byte`; nothing if a window is not finite."""
    if not np.isfinite(nll_N).all():
        return {}
    mean = float(nll_N.mean())
    metrics = {"perplexity": exp(mean), "bits_per_byte": mean * tokens / (math.log(2) * utf8_bytes)}
    if interval := bootstrap_interval(nll_N):
        metrics |= {"perplexity_lo": exp(interval[0]), "perplexity_hi": exp(interval[1])}
    return finite_metrics(metrics)


def ratio_metrics(nll_N: np.ndarray, dense_N: np.ndarray) -> dict[str, float]:
    """Returns `perplexity_ratio` to dense with its paired interval: the windows of both are resampled together."""
    difference_N = nll_N - dense_N
    if not np.isfinite(difference_N).all():
        return {}
    metrics = {"perplexity_ratio": exp(float(difference_N.mean()))}
    if interval := bootstrap_interval(difference_N):
        metrics |= {"perplexity_ratio_lo": exp(interval[0]), "perplexity_ratio_hi": exp(interval[1])}
    return finite_metrics(metrics)


def exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def finite_metrics(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
