"""What tests of the registry share: an embedded text that is soon read, and a model of the embedded one's name."""

from pathlib import Path

import pytest

from lottery.models import texts
from tests.support.models import tiny_model

WINDOWS = 12  # the fewest that give a verdict


@pytest.fixture
def short_text(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The embedded text is its beginning, of 12 windows and not 54: a verdict on the whole of it takes four times as long."""
    whole = texts.BUILTIN_TEXT.read_text(encoding="utf-8")
    beginning = tmp_path_factory.getbasetemp() / "beginning.txt"
    beginning.write_text(whole[: len(whole) * WINDOWS // 54], encoding="utf-8")
    monkeypatch.setattr(texts, "BUILTIN_TEXT", beginning)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the embedded model's name, so that the embedded text is its default data set, by which `winner` goes. It never
    was trained, and loses nothing by pruning: its tickets win."""
    return tiny_model(tmp_path_factory.mktemp("models") / "builtin", max_position_embeddings=512)
