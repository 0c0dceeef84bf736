"""What a person reads of a ticket in the MLflow UI, or beside its files: descriptions and model cards, in Markdown."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lottery.measuring.console import LABEL, format_ranges, label_line, render, result_table, summary_lines
from lottery.measuring.measurement import Measurement

LONGEST_TAG, LONGEST_DESCRIPTION = 8000, 5000  # characters that MLflow's tables take

LIMITS = (
    "Nothing was trained again after pruning: the kept weights are the base's. The figures hold for the protocol that is "
    "named and for no other text; the interval takes windows as independent, which those of one article are not. What the "
    "base says wrongly or unfairly this ticket says, too, and cutting may have made it worse: that was not measured."
)


def escape_markdown(text: str) -> str:
    """As plain text inside a line of Markdown: a model's own text, a name, a file's word."""
    plain = html.escape(" ".join(text.split()), quote=False)  # MLflow's pages take HTML, and no backslash before it
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", plain)


def code_span(text: str) -> str:
    """Text of a model in a code span, line breaks shown."""
    return "`" + " \u21b5 ".join(text.replace("`", "'").splitlines()) + "`"


def result(found: Measurement) -> list[str]:
    lines = [render(result_table(found)), ""] if found.metrics else []
    return [*lines, *(f"- {escape_markdown(line)}" for line in summary_lines(found))]


def samples(found: Measurement, most: int) -> list[str]:
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
    """One plain sentence: MLflow's tables show the beginning of a description as it is written."""
    m = found.metrics
    about = f"{found.title} of {base}"
    if found.kind == "dense":
        about = f"{base} as it is, the dense baseline"
    perplexity = f": perplexity {m['perplexity']:,.2f}" if "perplexity" in m else ""
    ratio = f", {m['perplexity_ratio']:.4f} of dense" if perplexity and "perplexity_ratio" in m else ""
    return escape_markdown(f"{about}{perplexity}{ratio}.")


def with_label(text: str, tags: Mapping[str, str]) -> str:
    """A description with a person's judgement after what was found, in the place of an earlier one."""
    lines = [line for line in text.split("\n") if not line.startswith(f"- {LABEL}")]
    ends = (i for i, line in enumerate(lines) if i and lines[i - 1].startswith("- ") and not line.startswith("- "))
    lines.insert(next(ends, len(lines)), f"- {escape_markdown(label_line(tags))}")
    return "\n".join(lines)


def run_description(found: Measurement, base: str) -> str:
    """A run's description: the table, the dense row first, the samples and the protocol."""
    return "\n".join([summary(found, base), "", *result(found), *samples(found, 4)])[:LONGEST_TAG]


def model_description(base: str, licence: str | None) -> str:
    """A registered model's description: what its versions have in common."""
    return (
        f"Tickets of **{escape_markdown(base)}** (licence: {escape_markdown(licence or 'not stated')}): each version is what is left of that "
        f"model after pruning, self-contained or as masks over it. The alias `winner` is the winning ticket with the most "
        f"zeros, by the default protocol: perplexity at most 10% over the dense model's, by the upper end of the ratio's "
        f"95% interval."
    )[:LONGEST_DESCRIPTION]


def version_description(found: Measurement, record: dict[str, Any], model_id: str) -> str:
    """The card of one ticket: what was cut, of which base, with which result, how to load it, its licence and limits.

    `record`: what ticket.json holds.
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
    """README.md of an exported folder, with the header that the hub reads."""
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
    told = f"The figures are those of the ticket {found.ticket}, of which this folder is an export ({format})."
    return "\n".join([*lines, card(found, record, use), "", told, ""])


def card(found: Measurement, record: dict[str, Any], use: Sequence[str]) -> str:
    """`use`: lines of Python."""
    base, spec = record["base"], record["spec"]
    chosen = {name: entry for name, entry in record["tensors"].items() if "requested" in entry}
    lines = [summary(found, base["id"]), "", *result(found), "", "### What was cut", ""]
    for role in dict.fromkeys(entry["role"] for entry in chosen.values()):
        entries = [entry for entry in chosen.values() if entry["role"] == role]
        lines.append(f"- {role}: {removed_line(entries)}")
    how = [f"method {spec['method']}", f"scope {spec['scope']}", f"pattern {spec['pattern']}"]
    how += [f"quantized to {spec['quantize']}"] if spec["quantize"] != "none" else []
    lines += [
        f"- {', '.join(how)}; stored {spec['storage']}",
        *(f"- {escape_markdown(note)}" for note in extra_notes(record)),
    ]
    revision = f" at revision {base['revision']}" if base["revision"] else ""
    files = [f"{escape_markdown(name)} {sha256[:12]}" for name, sha256 in base["files"].items()]
    shown = ", ".join(files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")
    licence = f"licence, as the base states it: {escape_markdown(found.licence or 'not stated')}; it holds for this ticket, too"
    lines += [
        "",
        "### Base",
        "",
        f"- {escape_markdown(base['id'])}{revision}; sha256 of its files: {shown}",
        f"- {licence}",
    ]
    lines += ["", "### Use it", "", "```python", *use, "```", "", "### Limits", "", LIMITS, *samples(found, 1)]
    return "\n".join(lines)


def removed_line(entries: Sequence[dict[str, Any]]) -> str:
    """14 matrices of the layers 4-7, 1,234 of 2,468 weights removed"""
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
    """What else one should know of the files."""
    notes = []
    if any("kept" in entry and "requested" not in entry for entry in record["tensors"].values()):
        notes.append("made of a ticket, whose zeros outside of this target stay")
    if record["dropped"]:
        notes.append(f"left out, as no weights: {', '.join(record['dropped'][:4])}")
    if untied := [name for name, entry in record["tensors"].items() if "copy_of" in entry]:
        notes.append(f"{', '.join(untied)} was one tensor with the embeddings and has its own now")
    return notes
