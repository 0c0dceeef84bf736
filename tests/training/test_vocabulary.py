"""The vocabulary: the same bytes from the same text, all texts can be written with it, and transformers reads it."""

import hashlib
import os
import random
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lottery.errors import InputError
from lottery.models.architecture import closes_texts, read_tokenizer
from lottery.training.stories import END, write_stories
from lottery.training.vocabulary import PIECE, encode, save_vocabulary, train_vocabulary

TEXT = write_stories(5, 60_000)


def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    save_vocabulary(train_vocabulary(TEXT, 400), tmp_path / "a", 64)
    save_vocabulary(train_vocabulary(TEXT, 400), tmp_path / "b", 64)
    content = (tmp_path / "a" / "tokenizer.json").read_bytes()
    assert content == (tmp_path / "b" / "tokenizer.json").read_bytes()
    code = (
        "import hashlib; from lottery.training.stories import write_stories; "
        "from lottery.training.vocabulary import train_vocabulary; "
        "print(hashlib.sha256(train_vocabulary(write_stories(5, 60_000), 400).to_str().encode()).hexdigest())"
    )
    expected = hashlib.sha256(train_vocabulary(TEXT, 400).to_str().encode()).hexdigest()
    for seed, threads in (("1", "1"), ("2", "2")):
        env = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
        assert done.stdout.strip() == expected


def test_transformers_reads_it_and_adds_nothing(tmp_path: Path) -> None:
    tokenizer = train_vocabulary(TEXT, 400)
    save_vocabulary(tokenizer, tmp_path, 64)
    read = read_tokenizer(tmp_path)
    assert read is not None and (read.bos_token_id, read.eos_token_id, len(read)) == (0, 0, 400)
    assert read.model_max_length == 64 and not closes_texts(read)
    assert read(TEXT, verbose=False)["input_ids"] == encode(tokenizer, TEXT).tolist()
    assert (encode(tokenizer, TEXT) == 0).sum() == TEXT.count(END)
    assert read.decode(encode(tokenizer, TEXT)) == TEXT


TOKENIZER = train_vocabulary(TEXT, 300)


@given(st.text())
def test_every_text_can_be_written(text: str) -> None:
    assert TOKENIZER.decode(encode(TOKENIZER, text).tolist(), skip_special_tokens=False) == text


def test_whole_words_are_tokens() -> None:
    tokenizer = train_vocabulary(TEXT, 512)
    assert len(TEXT) / len(encode(tokenizer, TEXT)) == pytest.approx(2.42, abs=0.05)
    assert len(encode(tokenizer, " the")) == len(encode(tokenizer, " was")) == 1
    assert encode(tokenizer, "").dtype == np.int64


def test_words_are_whole_in_the_training_and_a_text_without_spaces_takes_no_longer() -> None:
    pieces = PIECE.findall(TEXT.split(END)[0] * 5)
    assert len(pieces) > 3 and all(piece.startswith(" ") or i == 0 for i, piece in enumerate(pieces))
    assert "".join(pieces) == TEXT.split(END)[0] * 5
    letters = "".join(random.Random(0).choices(string.ascii_lowercase, k=100_000))
    assert max(map(len, PIECE.findall(letters))) == 1200
    assert train_vocabulary(letters, 512).get_vocab_size() == 512


@pytest.mark.parametrize(
    ("text", "words", "says"),
    [
        (TEXT, 256, "vocabulary=256: every byte needs a token; give 257 or more"),
        ("abc abc", 512, "vocabulary=512: the training text gives only 259 words; give that, or a longer text"),
    ],
)
def test_a_vocabulary_that_cannot_be_had(text: str, words: int, says: str) -> None:
    with pytest.raises(InputError) as error:
        train_vocabulary(text, words)
    assert str(error.value) == says
