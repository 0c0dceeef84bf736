"""Loads one model from its files and measures it."""

import gc
from collections.abc import Sequence

from lottery.measuring import memory, perplexity, samples, speed
from lottery.measuring.measurement import ModelResult
from lottery.measuring.protocol import count_windows
from lottery.measuring.setup import Setup
from lottery.measuring.work import Work
from lottery.runtime import load


def measure_model(
    what: str,
    source: load.TensorSource,
    names: Sequence[str],
    setup: Setup,
    source_bytes: int,
    work: Work,
    score: ModelResult | None = None,
) -> tuple[ModelResult, float | None]:
    """Loads the model from its files and measures what `setup` asks for.

    Returns the result, and the model's NLL (nats per token) of the samples that `score` holds, None without samples.
    `what` names the model in `work` and begins the titles of its stages.
    """
    if "speed" in setup.measures:
        speed.memory_bandwidth(setup.device)  # now, so that its half gigabyte does not count towards the peak
    gc.collect()
    memory.reset_peak(setup.device)
    with work.stage(what, "load", f"{what}: load"):
        model, load_s = speed.timed(lambda: load.load_model(source, names, setup.dtype, setup.device, setup.runtime))
    metrics = memory.memory_metrics(model, source_bytes) if "memory" in setup.measures else {}
    seconds: dict[str, float] = {"load_s": load_s}
    nll_N, outcome, texts = None, None, []
    if "samples" in setup.measures or "speed" in setup.measures:
        work.learn_token_seconds(lambda tokens: samples.time_tokens(model, setup.tokenizer, tokens))
    if setup.ids_NT is not None and setup.protocol is not None:
        ids_NT, title = setup.ids_NT, f"{what}: perplexity over {count_windows(len(setup.ids_NT))}"
        with work.stage(what, "perplexity", title, len(ids_NT)) as advance:
            nll_N, seconds["evaluate_s"] = speed.timed(lambda: perplexity.nll_per_window(model, ids_NT, advance))
        metrics |= perplexity.perplexity_metrics(nll_N, setup.protocol.tokens, setup.protocol.utf8_bytes)
        outcome = None if "perplexity" in metrics else "overflow"
    if "samples" in setup.measures:
        with work.stage(what, "samples", f"{what}: samples", len(samples.PROMPTS)) as advance:
            texts = samples.generate_samples(model, setup.tokenizer, advance)
        metrics |= samples.text_metrics(texts, setup.tokenizer)
    if "speed" in setup.measures:
        with work.stage(what, "speed", f"{what}: speed") as advance:
            metrics |= speed.speed_metrics(model, setup.tokenizer, setup.eager, advance)
    if "memory" in setup.measures:
        metrics["peak_bytes"] = memory.peak_bytes(setup.device)
    sample_nll = samples.text_nll(model, setup.tokenizer, score.samples) if score and score.samples else None
    return ModelResult(perplexity.finite_metrics(metrics | seconds), nll_N, texts, outcome), sample_nll
