"""This file writes descriptions and model cards of tickets in Markdown, for the MLflow UI and for exported folders."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lottery.measuring.console import LABEL, label_line, render, result_table, summary_lines
from lottery.measuring.measurement import Measurement
from lottery.measuring.numbers import format_perplexity, format_ratio
from lottery.models.targets import format_ranges
from lottery.ticket.record import layer_shares, shares_line

LONGEST_TAG, LONGEST_DESCRIPTION = 8000, 5000  # MLflow's database columns hold at most so many characters

LIMITS = (
    "The model was not trained again after pruning: the kept weights are those of the base. The figures hold for the "
    "protocol that is named and for no other text; the interval treats windows as independent, but the windows of one "
    "article are not. What the base model says wrongly or unfairly, this ticket says too. Pruning may have made that "
    "worse; this was not measured."
)


def escape_markdown(text: str) -> str:
    """Escapes a name, a model's text or a word from a file, so that Markdown shows it as plain text in one line."""
    plain = html.escape(" ".join(text.split()), quote=False)  # MLflow's pages render HTML, even after a backslash
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", plain)


def code_span(text: str) -> str:
    """Puts a model's text in a code span; a sign marks each line break."""
    return "`" + " \u21b5 ".join(text.replace("`", "'").splitlines()) + "`"


def result(found: Measurement) -> list[str]:
    """Returns the lines of the result table and of the list below it."""
    lines = [render(result_table(found)), ""] if found.metrics else []
    return [*lines, *(f"- {escape_markdown(line)}" for line in summary_lines(found))]


def samples(found: Measurement, most: int) -> list[str]:
    """Returns the lines that show the first `most` samples, with the dense base's text where it was measured."""
    if not found.samples:
        return []
    lines = ["", "### Samples", "", "Greedy, 50 new tokens.", ""]
    for sample in found.samples[:most]:
        lines += [
            f"- {escape_markdown(sample.get('prompt', ''))} ...",
            f"    - {escape_markdown(found.title)}: {code_span(sample.get('text', ''))}",
        ]
        lines += [f"    - dense: {code_span(sample['dense'])}"] if "dense" in sample else []
    return lines


def summary(found: Measurement, base: str) -> str:
    """Returns one plain sentence, because MLflow's tables show the beginning of a description without rendering it."""
    m = found.metrics
    about = f"{found.title} of {base}"
    if found.kind == "dense":
        about = f"{base} as it is, the dense baseline"
    perplexity = f": perplexity {format_perplexity(m['perplexity'])}" if "perplexity" in m else ""
    ratio = f", {format_ratio(m['perplexity_ratio'])} of dense" if perplexity and "perplexity_ratio" in m else ""
    return escape_markdown(f"{about}{perplexity}{ratio}.")


def with_label(text: str, tags: Mapping[str, str]) -> str:
    """Returns the description with a person's label after the results; it replaces an earlier label."""
    lines = [line for line in text.split("\n") if not line.startswith(f"- {LABEL}")]
    ends = (i for i, line in enumerate(lines) if i and lines[i - 1].startswith("- ") and not line.startswith("- "))
    lines.insert(next(ends, len(lines)), f"- {escape_markdown(label_line(tags))}")
    return "\n".join(lines)


def run_description(found: Measurement, base: str) -> str:
    """Returns a run's description: the table (its first row is the dense base), the protocol and the samples."""
    return "\n".join([summary(found, base), "", *result(found), *samples(found, 4)])[:LONGEST_TAG]


def model_description(base: str, licence: str | None) -> str:
    """Returns a registered model's description, which says what its versions have in common."""
    return (
        f"Tickets of **{escape_markdown(base)}** (licence: {escape_markdown(licence or 'not stated')}): each version "
        f"is that model after pruning, either self-contained or stored as masks over the base. The alias `winner` names "
        f"the winning ticket with the most zeros under the default protocol. A ticket wins if its perplexity is at most "
        f"10% over the dense model's; the upper end of the ratio's 95% interval decides."
    )[:LONGEST_DESCRIPTION]


def version_description(found: Measurement, record: dict[str, Any], model_id: str) -> str:
    """Returns the card of one ticket: its result, what was cut, its base and licence, how to load it, and its limits.

    `record` is the content of ticket.json.
    """
    use = [
        "import lottery, mlflow",
        "",
        f'model, tokenizer = lottery.load("models:/{model_id}")  # transformers; every hash is checked',
        f'served = mlflow.pyfunc.load_model("models:/{model_id}")  # without lottery installed',
        'print(served.predict(["The meaning of life is"], params={"max_new_tokens": 50}))',
    ]
    return card(found, record, use)[:LONGEST_DESCRIPTION]


def export_readme(found: Measurement, record: dict[str, Any], format: str) -> str:
    """Returns the README.md of an exported folder, with the header that the Hugging Face hub reads."""
    base = record["base"]
    header = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["lottery", "pruned"]}
    header |= {"license": found.licence} if found.licence else {}
    header |= {"base_model": base["id"]} if base["revision"] else {}
    use = [
        "import transformers",
        "",
        'model = transformers.AutoModelForCausalLM.from_pretrained(".")  # this folder'
        + ("" if format == "dense" else "; needs the package compressed-tensors"),
    ]
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in header.items()), "---", ""]
    origin = f"This folder is an export ({format}) of the ticket {found.ticket}; the figures are those of the ticket."
    return "\n".join([*lines, card(found, record, use), "", origin, ""])


def card(found: Measurement, record: dict[str, Any], use: Sequence[str]) -> str:
    """Returns a card. `use` holds the lines of Python that load the model."""
    base, spec = record["base"], record["spec"]
    chosen = {name: entry for name, entry in record["tensors"].items() if "requested" in entry}
    lines = [summary(found, base["id"]), "", *result(found), "", "### What was cut", ""]
    for role in dict.fromkeys(entry["role"] for entry in chosen.values()):
        entries = [entry for entry in chosen.values() if entry["role"] == role]
        lines.append(f"- {role}: {removed_line(entries)}")
    how = [f"method {spec['method']}", f"scope {spec['scope']}", f"pattern {spec['pattern']}"]
    shares = layer_shares(chosen.values()) if "allocation" in spec else {}
    how += [allocation_words(spec["allocation"])] if "allocation" in spec else []
    how += [f"quantized to {spec['quantize']}"] if spec["quantize"] != "none" else []
    lines += [
        f"- {', '.join(how)}; stored {spec['storage']}",
        *([f"- the layers were asked to lose {shares_line(shares)}"] if shares else []),
        *(f"- {escape_markdown(note)}" for note in extra_notes(record)),
    ]
    revision = f" at revision {base['revision']}" if base["revision"] else ""
    files = [f"{escape_markdown(name)} {sha256[:12]}" for name, sha256 in base["files"].items()]
    shown = ", ".join(files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")
    licence = escape_markdown(found.licence or "not stated")
    lines += [
        "",
        "### Base",
        "",
        f"- {escape_markdown(base['id'])}{revision}; sha256 of its files: {shown}",
        f"- licence, as the base states it: {licence}; it also holds for this ticket",
    ]
    lines += [f"- its weights were {escape_markdown(found.tags['origin'])}"] if "origin" in found.tags else []
    lines += ["", "### Use it", "", "```python", *use, "```", "", "### Limits", "", LIMITS, *samples(found, 1)]
    return "\n".join(lines)


def allocation_words(spread: Any) -> str:
    """Returns how the sparsity was spread: a word, or the lines of a file."""
    return f"allocation {escape_markdown(spread)}" if isinstance(spread, str) else "allocation by a file"


def removed_line(entries: Sequence[dict[str, Any]]) -> str:
    """Returns a line like: 14 matrices of the layers 4-7, 1,234 of 2,468 weights removed."""
    removed = total = 0
    for entry in entries:
        numel = 1
        for size in entry["shape"]:
            numel *= size
        total += numel
        removed += numel - entry["kept"]
    layers = sorted({entry["layer"] for entry in entries if "layer" in entry})
    where = f" of the layer{'s' if len(layers) > 1 else ''} {format_ranges(layers)}" if layers else ""
    matrices = "matrix" if len(entries) == 1 else "matrices"
    return f"{len(entries)} {matrices}{where}, {removed:,} of {total:,} weights removed"


def extra_notes(record: dict[str, Any]) -> list[str]:
    """Returns what else a reader should know about the files."""
    notes = []
    if any("kept" in entry and "requested" not in entry for entry in record["tensors"].values()):
        notes.append("made from another ticket; its zeros outside of this target stay")
    if record["dropped"]:
        notes.append(f"left out, because they are no weights: {', '.join(record['dropped'][:4])}")
    if untied := [name for name, entry in record["tensors"].items() if "copy_of" in entry]:
        notes.append(f"{', '.join(untied)} shared one tensor with the embeddings and now has its own")
    return notes
