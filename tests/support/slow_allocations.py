"""Slow, obvious references of the allocations, written from their papers and the published code.

Legend: B blocks, N samples, T tokens of a sample.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch


@torch.inference_mode()
def outlier_shares(model: Path, ids_NT: torch.Tensor, m: float, only: str = "") -> np.ndarray:
    """Of each block [B] 100 times the share of wanda's scores above m times their mean, all matrices in one vector. The
    norm is wanda's: the root of the mean over samples of the squared norm over a sample's tokens."""
    from transformers import AutoModelForCausalLM

    dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    square: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, given: tuple[Any, ...]) -> None:
            square[name] = square.get(name, 0) + given[0].float().flatten(0, 1).square().sum(0) / len(ids_NT)

        return hook

    modules = dense.model.layers.named_modules()
    linear = {name: module for name, module in modules if isinstance(module, torch.nn.Linear) and only in name}
    for name, module in linear.items():
        module.register_forward_pre_hook(keep(name))
    for ids_T in ids_NT:
        dense(ids_T[None], use_cache=False)
    shares = []
    for block in range(len(dense.model.layers)):
        scores = [
            (module.weight.float().abs() * square[name].sqrt()).flatten()
            for name, module in linear.items()
            if name.startswith(f"{block}.")
        ]
        score = torch.cat(scores).double()
        shares.append(100 * float((score > m * score.mean()).double().mean()))
    return np.array(shares)


def owl_shares(outlier_B: np.ndarray, size_B: np.ndarray, sparsity: float, width: float) -> np.ndarray:
    """(D - min) / (max - min) * 2 LAMBDA, minus its mean, plus what the sparsity leaves, is kept. The mean is over weights."""
    kept_B = (outlier_B - outlier_B.min()) / (outlier_B.max() - outlier_B.min()) * 2 * width
    kept_B = kept_B - (kept_B * size_B).sum() / size_B.sum() + (1 - sparsity)
    return 1 - kept_B


def alpha_of(weight: np.ndarray) -> float:
    """The published loop over every eigenvalue at which the tail may begin."""
    eigs = np.sort(np.linalg.svd(weight.astype(np.float64), compute_uv=False) ** 2)
    logs = np.log10(eigs)
    counts, edges = np.histogram(logs, bins=100, range=(logs.min(), logs.max()))
    peak = 10 ** edges[counts.argmax()]
    lowest, highest = np.log10(0.95 * peak), 1.5 * peak  # the first is the quirk
    alphas, distances = np.zeros(len(eigs) - 1), np.ones(len(eigs) - 1)
    for i, xmin in enumerate(eigs[:-1]):
        if xmin < lowest:
            continue
        if xmin > highest:
            break
        n = float(len(eigs) - i)
        alphas[i] = 1 + n / (np.log(eigs[i:]).sum() - n * np.log(eigs[i]))
        distances[i] = np.abs(1 - (eigs[i:] / xmin) ** (1 - alphas[i]) - np.arange(n) / n).max()
    return float(alphas[distances.argmin()])


def alpha_shares(alpha_B: np.ndarray, size_B: np.ndarray, sparsity: float, width: float) -> np.ndarray:
    times_B = (alpha_B - alpha_B.min()) / (alpha_B.max() - alpha_B.min()) * 2 * width + 1 - width
    return times_B * sparsity * size_B.sum() / (size_B * times_B).sum()
