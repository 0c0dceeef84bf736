"""Loads one model from its files and measures it."""

import gc
from collections.abc import Sequence

from lottery.measuring import memory, perplexity, samples, speed
from lottery.measuring.measurement import ModelResult
from lottery.measuring.setup import Setup
from lottery.progress import progress_bar, progress_line
from lottery.runtime import load


def measure_model(
    what: str,
    source: load.TensorSource,
    names: Sequence[str],
    setup: Setup,
    source_bytes: int,
    score: ModelResult | None = None,
) -> tuple[ModelResult, float | None]:
    """Loads the model from its files and measures what `setup` asks for.

    Returns the result, and the model's NLL (nats per token) of the samples that `score` holds, None without samples.
    `what` begins the titles of the progress bars.
    """
    if "speed" in setup.measures:
        speed.memory_bandwidth(setup.device)  # now, so that its half gigabyte does not count towards the peak
    gc.collect()
    memory.reset_peak(setup.device)
    with progress_bar(f"{what}: load"):
        model, load_s = speed.timed(lambda: load.load_model(source, names, setup.dtype, setup.device, setup.runtime))
    metrics = memory.memory_metrics(model, source_bytes) if "memory" in setup.measures else {}
    seconds: dict[str, float] = {"load_s": load_s}
    nll_N, outcome, texts = None, None, []
    if setup.ids_NT is not None and setup.protocol is not None:
        with progress_bar(f"{what}: perplexity over {len(setup.ids_NT)} windows", len(setup.ids_NT)) as advance:
            ids_NT = setup.ids_NT
            nll_N, seconds["evaluate_s"] = speed.timed(lambda: perplexity.nll_per_window(model, ids_NT, advance))
        metrics |= perplexity.perplexity_metrics(nll_N, setup.protocol.tokens, setup.protocol.utf8_bytes)
        outcome = None if "perplexity" in metrics else "overflow"
    if "samples" in setup.measures:
        with progress_bar(f"{what}: samples", len(samples.PROMPTS)) as advance:
            texts = samples.generate_samples(model, setup.tokenizer, advance)
        metrics |= samples.text_metrics(texts, setup.tokenizer)
    if "speed" in setup.measures:
        progress_line(f"{what}: speed")  # a bar has a thread, which would disturb the timing
        metrics |= speed.speed_metrics(model, setup.tokenizer, setup.eager)
    if "memory" in setup.measures:
        metrics["peak_bytes"] = memory.peak_bytes(setup.device)
    sample_nll = samples.text_nll(model, setup.tokenizer, score.samples) if score and score.samples else None
    return ModelResult(perplexity.finite_metrics(metrics | seconds), nll_N, texts, outcome), sample_nll
