"""Calibration samples from C4, drawn as the papers of wanda and sparsegpt do.

Legend: N samples, T tokens of a sample.
"""

import gzip
import mmap
import random
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lottery.errors import InputError, MachineError
from lottery.files.home import home, make_folder
from lottery.files.reading import parse_json
from lottery.models.hub_datasets import fetch_dataset_file
from lottery.models.texts import tokenize
from lottery.progress import progress_bar

REPO, FILE = "allenai/c4", "en/c4-train.00000-of-01024.json.gz"  # 356,317 documents, 319 MB; 825 MB unpacked


def fetch() -> Path:
    """Returns the file of C4 that is drawn from. Raises as `fetch_dataset_file` does."""
    return fetch_dataset_file("calibration=c4", REPO, FILE, "give calibration=self, or a text as calibration=FILE")


def draw(tokenizer: Any, words: int, nsamples: int, seqlen: int, seed: int) -> np.ndarray:
    """Returns samples that are each a piece of one long document, int64 [N, T].

    A document is drawn with replacement until one has more than T tokens, then a start from 0 to its tokens - T - 1,
    both by Python's `random` with the seed: the published code gives the same samples. Raises InputError when no
    document is that long, and for a tokenizer that is not the model's.
    """
    generator = random.Random(seed)
    samples: list[np.ndarray] = []
    too_short: set[int] = set()
    with open_documents(fetch()) as documents, progress_bar("draw samples of C4", nsamples) as advance:
        while len(samples) < nsamples:
            i = generator.randint(0, len(documents) - 1)
            if i in too_short:
                continue
            ids = tokenize(tokenizer, documents.text(i), words)
            if len(ids) <= seqlen:
                too_short.add(i)
                if len(too_short) == len(documents):
                    raise InputError(
                        f"seqlen={seqlen}: none of the {len(documents):,} documents of calibration=c4 has more tokens; "
                        f"give a smaller seqlen, calibration=self or a file"
                    )
                continue
            start = generator.randint(0, len(ids) - seqlen - 1)
            samples.append(ids[start : start + seqlen])
            advance(1)
    return np.stack(samples)


class Documents:
    """The documents of a file of JSON lines, which is mapped and not read into memory."""

    def __init__(self, path: Path, lines: mmap.mmap) -> None:
        self.path, self.lines = path, lines
        starts, end = [0], lines.find(b"\n")
        while end >= 0:
            starts.append(end + 1)
            end = lines.find(b"\n", end + 1)
        self.starts = starts if starts[-1] == len(lines) else [*starts, len(lines)]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def text(self, i: int) -> str:
        try:
            return str(parse_json(self.lines[self.starts[i] : self.starts[i + 1]])["text"])
        except (ValueError, KeyError, TypeError) as e:
            raise damaged(self.path, e) from e


@contextmanager
def open_documents(path: Path) -> Iterator[Documents]:
    """Yields the documents of a packed file of JSON lines. Raises MachineError for a damaged file.

    gzip cannot be entered in its middle, so the file is unpacked to the disk, into a file that has no name and is gone
    after the block.
    """
    with tempfile.TemporaryFile(dir=make_folder(home(), "LOTTERY_HOME")) as unpacked:
        try:
            with gzip.open(path) as packed:
                shutil.copyfileobj(packed, unpacked, 2**20)
        except (EOFError, gzip.BadGzipFile, zlib.error) as e:
            raise damaged(path, e) from e
        unpacked.flush()
        with mmap.mmap(unpacked.fileno(), 0, access=mmap.ACCESS_READ) as lines:
            yield Documents(path, lines)


def damaged(path: Path, e: Exception) -> MachineError:
    return MachineError(f"calibration=c4: {path} is damaged ({e}); delete it, and it is downloaded again")
