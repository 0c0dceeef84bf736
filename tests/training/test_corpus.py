"""A corpus: three parts without a common document, windows that evaluate finds again, kept on disk, refused in one line."""

import json
import random
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lottery.errors import InputError
from lottery.files.home import home
from lottery.measuring.text import tokenize_windows
from lottery.models.architecture import read_tokenizer
from lottery.models.texts import BUILTIN_TEXT
from lottery.pruning.overlap import shared_run
from lottery.training.corpus import Corpus, load_corpus, read_corpus, save_corpus
from lottery.training.ngram import NGrams
from lottery.training.parts import read_parts
from lottery.training.stories import END, write_stories
from tests.support.hub_server import Hub

SIZES: dict[str, Any] = {"vocabulary": 300, "context": 16, "tokens_needed": 20_000, "windows": (20, 40)}
LETTERS = random.Random(0)
STORIES = write_stories(11, 120_000)
TEXTS = {
    "documents.txt": STORIES,
    "paragraphs.txt": STORIES.replace(END, "\n\n"),
    "lines.txt": STORIES.replace(END, "\n"),
    "windows.txt": STORIES.replace(END, "\r\n\r\n"),
    "letters.txt": "".join(LETTERS.choices(string.ascii_lowercase, k=60_000)),
    "spaces.txt": "".join(LETTERS.choices("abcdefgh   ", k=60_000)),
    "chinese.txt": "".join(LETTERS.choices("天地玄黄宇宙洪荒日月盈昃辰宿列张", k=60_000)),
}


@pytest.fixture(scope="module")
def stories() -> Corpus:
    return read_corpus("stories", **SIZES)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    def write(name: str, text: str) -> str:
        (tmp_path / name).write_bytes(text.encode())
        return str(tmp_path / name)

    return write


def windows_of(corpus: Corpus, text: str, folder: Path) -> Any:
    """What `lottery evaluate --dataset FILE` measures of a model that has the corpus' tokenizer."""
    (folder / "model").mkdir(exist_ok=True)
    corpus.save_tokenizer(folder / "model")
    (folder / "measured.txt").write_bytes(text.encode())
    settings = (corpus.search_NT.shape[1], "none", "float32", "dense", "cpu")
    return tokenize_windows(
        str(folder / "measured.txt"), read_tokenizer(folder / "model"), corpus.vocabulary, *settings
    )


@pytest.mark.parametrize("name", ["stories", *TEXTS])
def test_evaluate_measures_the_same_windows(
    name: str, stories: Corpus, write: Callable[[str, str], str], tmp_path: Path
) -> None:
    corpus = stories if name == "stories" else read_corpus(write(name, TEXTS[name]), **SIZES)
    for text, ids_NT, part in (
        (corpus.search_text, corpus.search_NT, "search"),
        (corpus.report_text, corpus.report_NT, "report"),
    ):
        found_NT, protocol = windows_of(corpus, text, tmp_path)
        np.testing.assert_array_equal(found_NT, ids_NT)
        assert (protocol.windows, protocol.bos, protocol.tokens) == (len(ids_NT), "none", corpus.tokens[part])
    assert corpus.name == name and corpus.report_NT.shape == (40, 16) and corpus.report_NT.dtype == np.int64
    assert corpus.bytes_per_token == len(corpus.report_text.encode()) / protocol.tokens
    assert corpus.train_T.dtype == np.uint16 and corpus.train_T.max() < 300 and corpus.search_NT.shape == (20, 16)


def test_stories_have_five_times_the_tokens_that_a_training_reads(stories: Corpus) -> None:
    assert stories.tokens == {"train": 100_000, "search": 328, "report": 648} and len(stories.train_T) == 100_000
    assert stories.counted == 20_000
    longer = read_corpus("stories", **{**SIZES, "tokens_needed": 60_000})
    assert len(longer.train_T) == 300_000 and longer.search_text[:200] == stories.search_text[:200]


@pytest.mark.parametrize("name", ["documents.txt", "paragraphs.txt", "lines.txt", "windows.txt"])
def test_no_document_is_in_two_parts(name: str, write: Callable[[str, str], str]) -> None:
    told = STORIES.split(END)
    text = TEXTS[name].replace(
        STORIES, END.join([*told, told[0], told[1]])
    )  # two documents of the beginning come again
    parts = read_parts(write(name, text), 100_000, (100, 100))
    documents = [
        part.replace("\r", "").replace(END, "\n").split("\n") for part in (parts.train, parts.search, parts.report)
    ]
    train, search, report = ([document for document in part if document] for part in documents)
    assert [*train, *search, *report] == told
    shares = np.cumsum([len(parts.train), len(parts.search), len(parts.report)]) / len(text)
    np.testing.assert_allclose(shares, [0.85, 0.9, 1], atol=0.03)


def test_a_long_text_is_read_as_far_as_it_is_needed(
    write: Callable[[str, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("long.txt", STORIES)
    parts = read_parts(path, 8_000, (250, 250))
    assert len(parts.train + parts.search + parts.report) == pytest.approx(60_000, rel=0.02)
    assert (
        capsys.readouterr().err
        == f"text={path}: of {len(STORIES):,} characters the first 60,000 are read, which is enough\n"
    )


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_rows_are_documents(name: str, stories: Corpus, tmp_path: Path) -> None:
    rows = STORIES.split(END)
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / name)
    else:
        (tmp_path / name).write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (tmp_path / "same.txt").write_text("\n\n".join(rows))
    assert read_corpus(str(tmp_path / name), **SIZES).sha256 == read_corpus(str(tmp_path / "same.txt"), **SIZES).sha256


def test_the_embedded_evaluation_text_is_in_no_part(
    write: Callable[[str, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = BUILTIN_TEXT.read_text(encoding="utf-8").split("\n\n")
    told = STORIES.split(END)
    mixed = [*told[:50], *evaluation[1:4], *told[50:]]
    parts = read_parts(write("mixed.txt", "\n\n".join(mixed)), 100_000, (100, 100))
    assert "3 documents are left out, which the embedded evaluation text has too" in capsys.readouterr().err
    for part in (parts.train, parts.search, parts.report):
        assert shared_run([part], "\n\n".join(evaluation)) is None
    with pytest.raises(InputError, match="it is the embedded evaluation text, which no model trains on") as error:
        read_parts(str(BUILTIN_TEXT), 100_000, (100, 100))
    assert "\n" not in str(error.value)


def test_it_is_made_once_and_read_by_others(stories: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_corpus(stories, tmp_path / "corpus")
    monkeypatch.setattr("lottery.training.corpus.make_corpus", lambda *_: pytest.fail("it is made again"))
    for again in (load_corpus(tmp_path / "corpus"), read_corpus("stories", **SIZES)):
        assert (again.sha256, again.ngram, again.tokens) == (stories.sha256, stories.ngram, stories.tokens)
        assert (again.report_text, again.tokenizer_files) == (stories.report_text, stories.tokenizer_files)
        np.testing.assert_array_equal(again.report_NT, stories.report_NT)
    counts, alone = (
        NGrams(stories.train_T[:20_000], 300, order) for order in (6, 1)
    )  # no more than one training reads
    assert stories.ngram == {
        "order": 6,
        "search": counts.loss(stories.search_NT),
        "report": counts.loss(stories.report_NT),
        "unigram": alone.loss(stories.report_NT),
    }
    assert 1.5 < stories.ngram["report"] < 2.5


def test_another_process_makes_the_same_corpus(stories: Corpus, tmp_path: Path) -> None:
    code = (
        "import os, sys; os.environ['LOTTERY_HOME'] = sys.argv[1]; from lottery.training.corpus import read_corpus; "
        f"print(read_corpus('stories', **{SIZES}).sha256)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == stories.sha256


@pytest.mark.parametrize("name", ["train_T.npy", "report_text.txt", "tokenizer/tokenizer.json", "corpus.json"])
@pytest.mark.parametrize("harm", ["changed", "cut", "gone"])
def test_a_damaged_corpus_is_refused(name: str, harm: str, stories: Corpus, tmp_path: Path) -> None:
    save_corpus(stories, tmp_path / "corpus")
    path = tmp_path / "corpus" / name
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] if harm == "cut" else content[:middle] + b"\x01" + content[middle + 1 :])
    with pytest.raises(InputError) as error:
        load_corpus(tmp_path / "corpus")
    assert str(error.value).startswith(str(tmp_path / "corpus")) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "more", "says"),
    [
        ("storys", {}, "text=storys: there is no such file; give stories or a file"),
        ("none.txt", {}, "text=none.txt: there is no such file"),
        ("empty.txt", {}, "it is empty; give text=stories or a longer text"),
        ("short.txt", {}, "tokens, and a training that reads 20,000 needs 5,000; give a longer text"),
        ("short.txt", {"tokens_needed": 100}, "20 windows of 16 need 320; give a longer text, text=stories, or fewer"),
        ("short.txt", {"vocabulary": 2000}, "vocabulary=2000: the training text gives only "),
        ("stories", {"vocabulary": 100}, "vocabulary=100: every byte needs a token"),
        ("latin.txt", {}, "not readable ("),
        ("table.csv", {}, "the file has the ending .csv"),
        ("texts/plain", {}, "the file has no ending; give a .txt"),
        ("./texts", {}, "it is a folder; give stories or a file"),
        ("texts/none.txt", {}, "there is no such file"),
    ],
)
def test_bad_input_is_one_line(
    text: str, more: dict[str, int], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text(write_stories(1, 6_000))
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "table.csv").write_text("a,b\n")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "plain").write_text("a")
    before = set((home() / "corpora").glob("*"))
    with pytest.raises(InputError) as error:
        read_corpus(text, **{**SIZES, **more})
    said = str(error.value)
    assert says in said and "\n" not in said and said.startswith(("text=", "vocabulary=")), said
    assert set((home() / "corpora").glob("*")) == before


def test_a_data_set_of_the_hub(server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, column in (("tales", "text"), ("numbers", "number")):
        (tmp_path / name).mkdir()
        pyarrow.parquet.write_table(pyarrow.table({column: STORIES.split(END)}), tmp_path / name / "train.parquet")
        server.add(f"org/{name}", tmp_path / name, kind="datasets")
    corpus = read_corpus("org/tales", **SIZES)
    assert corpus.name == "org/tales" and "rows of its split train are taken" in capsys.readouterr().err
    with pytest.raises(
        InputError, match="text=org/numbers: org/numbers has no column text, but number; give text=stor"
    ):
        read_corpus("org/numbers", **SIZES)
