"""This file opens the laboratory of one hypothesis: its text, its plan, and where its outputs lie."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lottery.hypothesis.design import Hypothesis
from lottery.hypothesis.plan import Plan, make_plan, make_setup
from lottery.hypothesis.tasks import Task, divide
from lottery.models.devices import pick_device
from lottery.spec import json_sha256
from lottery.training.corpus import Corpus, load_corpus, prepare_corpus
from lottery.training.outputs import Outputs
from lottery.training.windows import Batches


@dataclass(frozen=True)
class Lab:
    """A hypothesis with its corpus on disk, its plan and the place of its outputs."""

    hypothesis: Hypothesis
    corpus_folder: Path
    corpus: Corpus
    plan: Plan
    outputs: Outputs

    @cached_property
    def batches(self) -> Batches:
        setup = self.plan.setup
        return Batches(self.corpus.train_T, setup.batch, setup.shape.context)

    @cached_property
    def tasks(self) -> list[Task]:
        return divide(self.plan)

    @cached_property
    def id(self) -> str:
        """12 hexadecimal digits, which also depend on the text's content. The same command continues the same id."""
        return json_sha256([self.hypothesis.id, self.plan.setup.record()])[:12]


def open_lab(hypothesis: Hypothesis, here: bool = True) -> Lab:
    """Returns the laboratory of a hypothesis; its text is read, and its vocabulary made, now.

    Raises InputError for a text that is too short, and for a device that is not there, unless the trainings run
    elsewhere (not `here`).
    """
    device = pick_device(hypothesis.device) if here else hypothesis.device
    h = hypothesis
    folder = prepare_corpus(h.text, h.vocabulary, h.context, h.tokens_needed)
    corpus = load_corpus(folder)
    setup = make_setup(hypothesis, corpus.sha256, device)
    return Lab(hypothesis, folder, corpus, make_plan(hypothesis, setup), Outputs(setup))
