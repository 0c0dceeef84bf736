"""Cuts a text into three parts that share no document: to train on, to choose by (search), and to report.

A document is what stands between two `<|endoftext|>`, or else between blank lines, or line breaks; a text without any
is cut anywhere. The last share of a text is what a model is measured on.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lottery.errors import InputError
from lottery.models.hub_datasets import load_dataset_column
from lottery.models.texts import BUILTIN_TEXT, WORDS, read_file
from lottery.progress import say
from lottery.pruning.overlap import WORDS as RUN
from lottery.pruning.overlap import runs_of
from lottery.training.stories import END, write_stories

SEEDS = {"train": 1, "search": 2, "report": 3}  # of the stories of each part
SEARCH, REPORT = 0.05, 0.1  # shares of a text
LONGEST = 0.02  # share of a text that a document may have, so that the parts have the sizes that they should have
PIECE = 200  # characters of a piece of a text without line breaks
CHARACTERS = 6  # of a token at most, on average: what is read of a text follows from it
ROWS = 50_000  # of a data set of the hub


@dataclass(frozen=True)
class Parts:
    name: str
    train: str
    search: str
    report: str


def read_parts(text: str, tokens: int, measured: tuple[int, int]) -> Parts:
    """Returns the parts of what a value of `text` names: `stories`, a file, or a data set of the hub, ORG/NAME.

    `tokens` is how many tokens a training reads, `measured` how many the windows of search and report hold together.
    Raises InputError, which begins with `text`, for a text that is unknown or cannot be read, and MachineError where
    the hub fails.
    """
    if text == "stories":
        wanted = {"train": tokens, "search": measured[0], "report": measured[1]}
        return Parts(text, **{part: write_stories(SEEDS[part], CHARACTERS * n) for part, n in wanted.items()})
    name, content = read_hub(text) if is_hub_name(text) else read_file("text", text)
    most = round(CHARACTERS * (tokens + sum(measured)) / (1 - SEARCH - REPORT))
    if len(content) > most:
        say(f"text={text}: of {len(content):,} characters the first {most:,} are read, which is enough")
        content = content[:most]
    return cut(name, without_evaluation(text, content))


def is_hub_name(text: str) -> bool:
    """Returns whether a text is written as ORG/NAME, and is neither the path of a file with an ending nor one that exists."""
    organisation, slash, name = text.partition("/")
    known = name.lower().endswith((".txt", ".jsonl", ".json", ".parquet"))
    return bool(
        slash and organisation.strip(".~") and name and "/" not in name and not known and not Path(text).exists()
    )


def read_hub(text: str) -> tuple[str, str]:
    """Returns the name and the text of a data set: the first rows of the column `text` of its train split."""
    instead = f"give text={WORDS['text'][0]} or text=FILE"
    rows = load_dataset_column(f"text={text}", text, None, f"train[:{ROWS}]", "text", instead)
    say(f"text={text}: the first {len(rows):,} rows of its split train are taken")
    return text, END.join(rows)


def split(text: str) -> tuple[list[str], str]:
    """Returns the documents of a text and what joins them: the first way to split it that leaves no long document."""
    for joint in (END, "\n\n", "\n"):
        documents = [document for document in text.split(joint) if document.strip()]
        if max(map(len, documents), default=0) <= LONGEST * len(text):
            return documents, joint
    return [text[i : i + PIECE] for i in range(0, len(text), PIECE)], ""


def cut(name: str, text: str) -> Parts:
    """Returns the parts of a text. A document of search or report that stands in an earlier part is left out."""
    documents, joint = split(text)
    total = sum(map(len, documents))
    parts: list[list[str]] = [[], [], []]
    seen: list[set[str]] = [set(), set(), set()]
    done = 0
    for document in documents:
        part = (done >= (1 - SEARCH - REPORT) * total) + (done >= (1 - REPORT) * total)
        done += len(document)
        if not any(document.strip() in before for before in seen[:part]):
            parts[part].append(document)
            seen[part].add(document.strip())
    return Parts(name, *(joint.join(part) for part in parts))


def without_evaluation(text: str, content: str) -> str:
    """Returns a text without the documents that share a run of words with the embedded evaluation text."""
    known = set(runs_of(BUILTIN_TEXT.read_text(encoding="utf-8"), RUN))
    if not has_run(runs_of(content, RUN), known):
        return content
    documents, joint = split(content)
    kept = [document for document in documents if not has_run(runs_of(document, RUN), known)]
    say(
        f"text={text}: {len(documents) - len(kept):,} documents are left out, which the embedded evaluation text has too"
    )
    if sum(map(len, kept)) < len(content) / 2:
        raise InputError(
            f"text={text}: it is the embedded evaluation text, which no model trains on; give another text"
        )
    return joint.join(kept)


def has_run(runs: Iterable[tuple[str, ...]], known: set[tuple[str, ...]]) -> bool:
    return any(run in known for run in runs)
