"""The text of a hypothesis as tokens: what is trained on, what chooses the learning rates, and what is reported.

A corpus is made once and kept under LOTTERY_HOME; the processes that train open the folder.

Legend: N windows, T tokens.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lottery.errors import InputError
from lottery.files.atomic import atomic_folder
from lottery.files.home import home
from lottery.files.reading import read_json
from lottery.spec import json_sha256
from lottery.training.ngram import NGrams
from lottery.training.parts import Parts, read_parts
from lottery.training.vocabulary import encode, save_vocabulary, train_vocabulary

WINDOWS = (256, 512)  # of search and report
EPOCHS = 4  # a text is read so often at most: repeating it up to four times costs little (Muennighoff et al. 2023)
SAMPLE = 200_000  # characters that tell how many tokens a text of stories has
FORMAT = 2
STORIES = 5  # of stories there are so many times the tokens that one training reads: longer ones see new text
ARRAYS = ("train_T", "search_NT", "report_NT")
TEXTS = ("search_text", "report_text")


@dataclass(frozen=True)
class Corpus:
    """The three parts as tokens, and the tokenizer. A measured text gives exactly its windows when tokenized again."""

    name: str
    vocabulary: int
    train_T: np.ndarray  # uint16, or int32 where a vocabulary is larger; the windows are int64
    search_NT: np.ndarray
    report_NT: np.ndarray
    search_text: str
    report_text: str
    tokenizer_files: Mapping[str, bytes]  # file name -> content, as transformers lays them out
    tokens: Mapping[str, int]  # part -> tokens, those behind the last window too
    counted: int  # training tokens that the n-gram model counts: no more than one training reads

    @cached_property
    def sha256(self) -> str:
        """The sha256 (hex) of what a training can depend on: all tokens, and the tokenizer's own file."""
        digest = hashlib.sha256(self.tokenizer_files["tokenizer.json"])
        for array in (self.train_T, self.search_NT, self.report_NT):
            digest.update(f"{array.dtype.str} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    @cached_property
    def ngram(self) -> dict[str, float | int]:
        """What a table of counts of the training tokens reaches on the windows, in nats per token; `unigram`: what the
        frequencies of single tokens reach on the report windows."""
        counted_T = self.train_T[: self.counted]
        counts = NGrams(counted_T, self.vocabulary)
        alone = NGrams(counted_T, self.vocabulary, order=1).loss(self.report_NT)
        losses = {"search": counts.loss(self.search_NT), "report": counts.loss(self.report_NT)}
        return {"order": counts.order, **losses, "unigram": alone}

    @property
    def bytes_per_token(self) -> float:
        """Of the report text, in UTF-8."""
        return len(self.report_text.encode()) / self.tokens["report"]

    def about(self) -> dict[str, Any]:
        """Returns what a record says of the text."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "tokens": dict(self.tokens),
            "bytes_per_token": round(self.bytes_per_token, 4),
            "ngram": dict(self.ngram),
        }

    def save_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer's files into a folder that exists."""
        for name, content in self.tokenizer_files.items():
            (folder / name).write_bytes(content)


def prepare_corpus(
    text: str, vocabulary: int, context: int, tokens_needed: int, windows: tuple[int, int] = WINDOWS
) -> Path:
    """Returns the folder of a text's corpus: `stories`, a file, or a data set of the hub. It is made once.

    `tokens_needed` is how many tokens one training reads. Of stories there are five times as many; of another text a
    quarter is enough. `windows` says how many windows of `context` tokens search and report have. Raises InputError
    for a text that is too short, unknown or not readable, and for a vocabulary that it does not give.
    """
    times = STORIES if text == "stories" else 1
    parts = read_parts(text, times * tokens_needed, (windows[0] * context, windows[1] * context))
    asked = {"format": FORMAT, "words": vocabulary, "context": context, "needed": tokens_needed, "windows": windows}
    texts = [parts.name, parts.train, parts.search, parts.report]
    folder = home() / "corpora" / json_sha256({**asked, "text": [digest(part) for part in texts]})[:16]
    if not folder.is_dir():
        save_corpus(make_corpus(text, parts, vocabulary, context, tokens_needed, windows), folder)
    return folder


def read_corpus(
    text: str, vocabulary: int, context: int, tokens_needed: int, windows: tuple[int, int] = WINDOWS
) -> Corpus:
    """Returns the corpus of a text, as `prepare_corpus` makes it."""
    return load_corpus(prepare_corpus(text, vocabulary, context, tokens_needed, windows))


def make_corpus(
    text: str, parts: Parts, vocabulary: int, context: int, needed: int, windows: tuple[int, int]
) -> Corpus:
    """Trains the vocabulary on the training part and tokenizes all three. Raises InputError as `read_corpus` does."""
    if not parts.train:
        raise InputError(f"text={text}: it is empty; give text=stories or a longer text")
    tokenizer = train_vocabulary(parts.train, vocabulary)
    if text == "stories":
        sample = parts.train[:SAMPLE]
        enough = round(1.05 * STORIES * needed * len(sample) / len(encode(tokenizer, sample)))
        train_T = encode(tokenizer, parts.train[:enough])[: STORIES * needed]
    else:
        train_T = encode(tokenizer, parts.train)
    if len(train_T) * EPOCHS < needed:
        raise InputError(
            f"text={text}: its training part has {len(train_T):,} tokens, and a training that reads {needed:,} needs "
            f"{-(-needed // EPOCHS):,}; give a longer text, text=stories, or fewer steps"
        )
    search_text, search_NT, search = measured_part(text, tokenizer, parts.search, windows[0], context)
    report_text, report_NT, report = measured_part(text, tokenizer, parts.report, windows[1], context)
    return Corpus(
        name=parts.name,
        vocabulary=vocabulary,
        train_T=train_T.astype(np.uint16 if vocabulary <= 2**16 else np.int32),
        search_NT=search_NT,
        report_NT=report_NT,
        search_text=search_text,
        report_text=report_text,
        tokenizer_files=tokenizer_files(tokenizer, context),
        tokens={"train": len(train_T), "search": search, "report": report},
        counted=min(len(train_T), needed),
    )


def measured_part(text: str, tokenizer: Tokenizer, part: str, count: int, context: int) -> tuple[str, np.ndarray, int]:
    """Returns the beginning of a part that has `count` windows, those windows, and its number of tokens.

    The beginning is tokenized again, because a cut may change the last tokens; half a window is left over for that.
    """
    encoding = tokenizer.encode(part)
    if len(encoding.ids) < count * context:
        raise InputError(
            f"text={text}: a part to measure on has {len(encoding.ids):,} tokens, and {count} windows of {context} need "
            f"{count * context:,}; give a longer text, text=stories, or fewer windows"
        )
    last = min(count * context + context // 2, len(encoding.ids)) - 1
    beginning = part[: encoding.offsets[last][1]]
    ids = encode(tokenizer, beginning)
    if len(ids) // context != count:
        raise InputError(f"text={text}: its windows of {context} tokens cannot be cut; give a greater context")
    return beginning, ids[: count * context].reshape(count, context), len(ids)


def tokenizer_files(tokenizer: Tokenizer, context: int) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        save_vocabulary(tokenizer, Path(folder), context)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def save_corpus(corpus: Corpus, folder: Path) -> None:
    """Writes a corpus into a folder, which appears whole or not at all. One that is there already stays."""
    about = {
        "format": FORMAT,
        "name": corpus.name,
        "sha256": corpus.sha256,
        "vocabulary": corpus.vocabulary,
        "tokens": dict(corpus.tokens),
        "counted": corpus.counted,
        "ngram": corpus.ngram,
        "texts": {name: digest(getattr(corpus, name)) for name in TEXTS},
    }
    with atomic_folder(folder, "LOTTERY_HOME") as fresh:
        if fresh is None:
            return
        for name in ARRAYS:
            np.save(fresh / f"{name}.npy", getattr(corpus, name), allow_pickle=False)
        for name in TEXTS:
            (fresh / f"{name}.txt").write_bytes(getattr(corpus, name).encode())
        (fresh / "tokenizer").mkdir()
        corpus.save_tokenizer(fresh / "tokenizer")
        (fresh / "corpus.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def load_corpus(folder: Path) -> Corpus:
    """Returns the corpus in a folder. Raises InputError, which names the folder, where it is not what was written."""
    about = read_json(folder / "corpus.json")
    try:
        corpus = Corpus(
            name=about["name"],
            vocabulary=about["vocabulary"],
            train_T=np.load(folder / "train_T.npy", allow_pickle=False),
            search_NT=np.load(folder / "search_NT.npy", allow_pickle=False),
            report_NT=np.load(folder / "report_NT.npy", allow_pickle=False),
            search_text=(folder / "search_text.txt").read_bytes().decode("utf-8"),
            report_text=(folder / "report_text.txt").read_bytes().decode("utf-8"),
            tokenizer_files={path.name: path.read_bytes() for path in sorted((folder / "tokenizer").iterdir())},
            tokens=about["tokens"],
            counted=about["counted"],
        )
        intact = corpus.sha256 == about["sha256"]
        intact &= all(digest(getattr(corpus, name)) == about["texts"][name] for name in TEXTS)
    except (OSError, ValueError, KeyError, EOFError) as e:
        raise InputError(f"{folder}: this corpus cannot be read ({e}); delete the folder, and it is made again") from e
    if not intact:
        raise InputError(
            f"{folder}: this corpus has changed since it was written; delete the folder, and it is made again"
        )
    corpus.__dict__["ngram"] = about["ngram"]  # was computed when it was written
    return corpus


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
