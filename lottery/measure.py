"""What a loaded model is worth: perplexity with its interval, speed, memory, samples.

Legend: N windows, T tokens of a window, S resamples.
"""

import contextlib
import ctypes
import functools
import itertools
import math
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lottery import devices
from lottery.decoding import Decoder, generate
from lottery.models import context_length, encode
from lottery.progress import Advance
from lottery.runtime import resident

PROMPTS = (
    "The meaning of life is",
    "Once upon a time",
    "The history of the city",
    "In the morning, the old man",
)
NEW_TOKENS = 50
RESAMPLES = 10_000
REPEATS = 5
LOGIT_BYTES = 2**25  # of the logits at hand: larger ones get fresh memory from the system at every turn, which is slow
CACHE_BYTES = 2**21
LEAST_POSITIONS = 256  # at a large vocabulary: with fewer, reading the head's weights takes longer than multiplying
BATCH_TOKENS = 8192


def token_bytes(config: Any) -> int:
    """About what one token's activations take at once inside a layer, in float32."""
    config = config.get_text_config()
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    experts = getattr(config, "num_experts_per_tok", None) or 1
    return 4 * (6 * hidden + 3 * int(inner) * int(experts))


def positions_of(config: Any) -> int:
    """Of how many tokens to have logits at once."""
    return max(LOGIT_BYTES // (8 * config.get_text_config().vocab_size), LEAST_POSITIONS)


def logit_bytes(config: Any) -> int:
    """What they take, in the model's own type and in float32."""
    return 8 * positions_of(config) * config.get_text_config().vocab_size


def batch_of(config: Any, window: int, device: str) -> int:
    """How many windows to take at once: as many as fit into a small part of the memory at hand."""
    room = min(devices.free_bytes(device) // 8, 4 * 2**30 if device == "cuda" else 2**28)
    return max(1, min(room // (token_bytes(config) * window), BATCH_TOKENS // window))


@torch.inference_mode()
def nll_per_window(model: Any, ids_NT: np.ndarray, advance: Advance) -> np.ndarray:
    """Mean negative log-likelihood (nats per token) of positions 1..T-1 of each window; float64 [N].

    Logits are widened to float32 for the cross-entropy. A window that overflows comes out NaN or infinite.
    """
    count, window = ids_NT.shape
    batch = batch_of(model.config, window, model.device.type)
    nll_N = np.empty(count)
    for first in range(0, count, batch):
        ids = torch.from_numpy(ids_NT[first : first + batch]).to(model.device)
        nll_N[first : first + batch] = nll_of_tokens(model, ids).double().mean(1).cpu().numpy()
        mean = nll_N[: first + len(ids)].mean()
        advance(len(ids), f"perplexity {exp(mean):.2f}")
    return nll_N


def nll_of_tokens(model: Any, ids_NT: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood (nats) of tokens 1..T-1 of each window; float32 [N, T-1].

    The layers run once; the model's own head (with whatever scaling or capping follows it) then runs over what they
    said, some positions at a time: all logits of a large vocabulary would take gigabytes.
    """
    count, window = ids_NT.shape
    step = -(-positions_of(model.config) // count)
    body = getattr(model, model.base_model_prefix)
    said = body(ids_NT, use_cache=False)
    own = body.__dict__.get("forward")  # where accelerate has put a hook
    body.forward = lambda *_, **__: said
    parts = []
    try:
        for first in range(0, window - 1, step):
            last = min(first + step, window - 1)
            at = torch.arange(first, last, device=ids_NT.device)
            logits = model(ids_NT, use_cache=False, logits_to_keep=at).logits
            targets = ids_NT[:, first + 1 : last + 1]
            parts.append(token_nll(logits.flatten(0, 1), targets.flatten()).view(count, -1))
    finally:
        if own is None:
            del body.forward
        else:
            body.forward = own
    return torch.cat(parts, 1)


def token_nll(logits_TW: torch.Tensor, target_T: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (nats) of each token, in float32. On a CPU some tokens at a time, as many as its cache holds: of 256
    tokens over 151,936 words that takes 17 ms, all at once 84."""
    step = len(target_T) if logits_TW.is_cuda else max(1, CACHE_BYTES // (4 * logits_TW.shape[1]))
    parts = [
        functional.cross_entropy(logits.float(), targets, reduction="none")
        for logits, targets in zip(logits_TW.split(step), target_T.split(step), strict=True)
    ]
    return torch.cat(parts)


def interval(values_N: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Bootstrap 95% interval of the mean over windows; None for a single window.

    Percentile intervals of few values are too narrow; the quantiles are taken where Student's t would put them
    (Hesterberg 2015, "expanded percentile": Phi(-sqrt(n/(n-1)) t(0.975, n-1))). Windows of one article are not
    independent, so the true interval is somewhat wider.
    """
    from scipy.special import stdtrit

    n = len(values_N)
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    means_S = np.concatenate([values_N[rng.integers(0, n, (500, n))].mean(1) for _ in range(RESAMPLES // 500)])
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, 0.975)))
    low, high = np.quantile(means_S, [tail, 1 - tail])
    return float(low), float(high)


def perplexity_metrics(nll_N: np.ndarray, tokens: int, utf8_bytes: int) -> dict[str, float]:
    """`perplexity` with its interval, and `bits_per_byte`; nothing where a window is not finite."""
    if not np.isfinite(nll_N).all():
        return {}
    mean = float(nll_N.mean())
    metrics = {"perplexity": exp(mean), "bits_per_byte": mean * tokens / (math.log(2) * utf8_bytes)}
    if found := interval(nll_N):
        metrics |= {"perplexity_lo": exp(found[0]), "perplexity_hi": exp(found[1])}
    return finite(metrics)


def ratio_metrics(nll_N: np.ndarray, dense_N: np.ndarray) -> dict[str, float]:
    """`perplexity_ratio` to dense with its paired interval: windows are resampled together."""
    difference_N = nll_N - dense_N
    if not np.isfinite(difference_N).all():
        return {}
    metrics = {"perplexity_ratio": exp(float(difference_N.mean()))}
    if found := interval(difference_N):
        metrics |= {"perplexity_ratio_lo": exp(found[0]), "perplexity_ratio_hi": exp(found[1])}
    return finite(metrics)


def exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def clock(model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.inference_mode()
def speed_metrics(model: Any, tokenizer: Any, eager: bool = False) -> dict[str, float]:
    """Tokens per second at batch 1: prefill and decode apart, and a whole `generate` call; medians of 5 after a warm-up.

    The floor is what memory allows: the bytes that a token's weights take, over the measured bandwidth. `eager`: without
    a graph on a GPU too, where the other model of the table can have none.
    """
    context = context_length(model.config)
    words = encode(tokenizer, " ".join(PROMPTS) + " ")
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
        generate(model, tokenizer, PROMPTS[:1], NEW_TOKENS, exactly=True)
        end = clock(model)
        if repeat:  # the first warms up
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
        "decode_floor_tok_s": memory_bandwidth(model.device.type) / read_bytes(model),
        "generate_tok_s": float(np.median(whole)),
    }


def read_bytes(model: Any) -> int:
    """Bytes of weights that one decoded token reads: all, but of an embedding matrix that is not the head a single row."""
    table = model.get_input_embeddings().weight
    tied = getattr(model.get_output_embeddings(), "weight", None) is table  # a packed head has none
    return weights_bytes(model) - (0 if tied else table.nbytes)


@functools.cache
def memory_bandwidth(device: str) -> float:
    """Bytes per second that a read of memory gets: the best of five over 512 MiB, far more than any cache. Once a process.

    On a GPU ten reads at once: waiting for one would take a part of its time.
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


def weights_bytes(model: Any) -> int:
    """Parameters and buffers as they lie on the device, a shared one once; the buffer of packed layers too."""
    return sum(tensor.nbytes for tensor in resident(model).values())


def reset_peak(device: str) -> None:
    """Begin a new peak: of CUDA's allocator, or of the process's resident set."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError, AttributeError):  # what earlier work has freed and glibc has kept
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak is then the whole process's
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_metrics(model: Any, source_bytes: int) -> dict[str, float]:
    """`source_bytes`: the base's tensors in their own type, what `weights_ratio` compares with."""
    metrics = {"weights_bytes": weights_bytes(model), "weights_ratio": weights_bytes(model) / source_bytes}
    if model.device.type == "cuda":
        metrics["cuda_bytes"] = torch.cuda.memory_allocated()
    return metrics


def samples(model: Any, tokenizer: Any, advance: Advance) -> list[dict[str, str]]:
    """The fixed prompts, continued greedily by 50 tokens."""
    found = []
    for prompt in PROMPTS:
        found.append({"prompt": prompt, "text": generate(model, tokenizer, [prompt], NEW_TOKENS, exactly=True)[0]})
        advance(1)
    return found


def text_metrics(found: Sequence[dict[str, str]], tokenizer: Any) -> dict[str, float]:
    """`repetition`: share of the new text's 4-grams that were there before; `distinct_2`: share of distinct 2-grams."""
    fours = twos = four_kinds = two_kinds = 0
    for sample in found:
        ids = encode(tokenizer, sample["text"][len(sample["prompt"]) :], special=False)
        four = list(zip(*(ids[i:] for i in range(4)), strict=False))
        two = list(itertools.pairwise(ids))
        fours, four_kinds = fours + len(four), four_kinds + len(set(four))
        twos, two_kinds = twos + len(two), two_kinds + len(set(two))
    metrics = {"repetition": 1 - four_kinds / fours} if fours else {}
    return metrics | ({"distinct_2": two_kinds / twos} if twos else {})


@torch.inference_mode()
def text_nll(model: Any, tokenizer: Any, found: Sequence[dict[str, str]]) -> float | None:
    """Mean NLL (nats per token) that `model` gives to the samples' new text; None where there is none."""
    total, count = 0.0, 0
    for sample in found:
        ids = encode(tokenizer, sample["text"])[: context_length(model.config)]
        prompt = len(encode(tokenizer, sample["prompt"]))
        ids_1T = torch.tensor([ids], device=model.device)
        logits = model(ids_1T, use_cache=False).logits[0, :-1]
        nll = token_nll(logits, ids_1T[0, 1:])[prompt - 1 :]
        total, count = total + float(nll.sum()), count + len(nll)
    return total / count if count else None


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin
