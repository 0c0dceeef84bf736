"""Measures the tokens per second of a loaded model, and the floor that memory bandwidth sets."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lottery.measuring.memory import weights_bytes
from lottery.measuring.samples import NEW_TOKENS, PROMPTS
from lottery.models.architecture import context_length, encode_prompt
from lottery.runtime.decoding import Decoder, generate

REPEATS = 5


def clock(model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.inference_mode()
def speed_metrics(model: Any, tokenizer: Any, eager: bool = False) -> dict[str, float]:
    """Returns tokens per second at batch 1 of prefill, of decoding and of a whole `generate` call.

    Each figure is the median of 5 repeats after a warm-up. The floor is the measured memory bandwidth divided by the
    bytes of weights that a token reads. With `eager` no CUDA graph is used, because the other model of the table cannot
    have one.
    """
    context = context_length(model.config)
    words = encode_prompt(tokenizer, " ".join(PROMPTS) + " ")
    length = max(1, min(256, context - NEW_TOKENS))
    prompt = (words * (length // len(words) + 1))[:length]
    ids_1T = torch.tensor([prompt], device=model.device)
    prefill, decode, whole = [], [], []
    decoder = Decoder(model, length + NEW_TOKENS, graphs=False if eager else None)
    for repeat in range(REPEATS + 1):
        begin = clock(model)
        token_11 = decoder.begin(ids_1T)
        first = clock(model)
        for _ in range(NEW_TOKENS - 1):
            token_11 = decoder.next(token_11)
        last = clock(model)
        generate(model, tokenizer, PROMPTS[:1], NEW_TOKENS, fixed_length=True)
        end = clock(model)
        if repeat:  # the first repeat is a warm-up
            prefill.append(first - begin)
            decode.append((NEW_TOKENS - 1) / (last - first))
            whole.append(NEW_TOKENS / (end - last))
    low, middle, high = np.quantile(decode, [0.25, 0.5, 0.75])
    return {
        "prefill_tok_s": length / float(np.median(prefill)),
        "ttft_ms": 1000 * float(np.median(prefill)),
        "decode_tok_s": float(middle),
        "decode_tok_s_lo": float(low),
        "decode_tok_s_hi": float(high),
        "decode_floor_tok_s": memory_bandwidth(model.device.type) / bytes_read_per_token(model),
        "generate_tok_s": float(np.median(whole)),
    }


def bytes_read_per_token(model: Any) -> int:
    """Returns the bytes of weights that one decoded token reads: all, but not embeddings that are not the head."""
    table = model.get_input_embeddings().weight
    tied = getattr(model.get_output_embeddings(), "weight", None) is table  # a packed head has no weight
    return weights_bytes(model) - (0 if tied else table.nbytes)


@functools.cache
def memory_bandwidth(device: str) -> float:
    """Returns the bytes per second at which memory is read, measured once per process.

    It is the best of five reads of 512 MiB, which is far more than any cache. On a GPU ten reads are timed together,
    because waiting for a single one would take a part of its time.
    """
    block = torch.ones(2**27, dtype=torch.float32, device=device)
    reads = 10 if device == "cuda" else 1
    best = math.inf
    for _ in range(5):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(reads):
            total = block.sum()
        total.item()
        best = min(best, (time.perf_counter() - begin) / reads)
    return block.nbytes / best


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Returns the result of `work`, and the seconds that it took."""
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin
