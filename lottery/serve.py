"""A ticket as an `mlflow.pyfunc` model: prompts in, continued texts out. Loaded from the code carried with the model."""

import threading
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from lottery.models import arithmetic, build, generate, pick_device, read_tokenizer
from lottery.sources import open_ticket
from lottery.spec import InputError


class Served:
    """`predict` takes one text a row, and gives one string a row, the prompt included."""

    def __init__(self, folder: Path) -> None:
        stored = open_ticket(folder)
        device = pick_device("auto")
        self.model = build(stored, stored.tensors, arithmetic("auto", stored.dtype, device), device)
        self.tokenizer = read_tokenizer(folder)
        self.lock = threading.Lock()  # a server calls predict from many threads

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        prompts = model_input.iloc[:, 0].tolist() if hasattr(model_input, "iloc") else list(model_input)
        given = {"max_new_tokens": 50, "temperature": 0.0, "seed": 0, **(params or {})}
        if self.tokenizer is None:
            raise MlflowException.invalid_parameter_value("this ticket has no tokenizer: it cannot read prompts")
        if not all(isinstance(p, str) for p in prompts):
            raise MlflowException.invalid_parameter_value("every prompt must be a string")
        if given["max_new_tokens"] < 1:
            raise MlflowException.invalid_parameter_value("max_new_tokens must be at least 1")
        if not 0 <= given["seed"] < 2**63:
            raise MlflowException.invalid_parameter_value("seed must be a whole number from 0")
        try:
            with self.lock:
                return generate(
                    self.model, self.tokenizer, prompts, given["max_new_tokens"], given["temperature"], given["seed"]
                )
        except InputError as e:
            raise MlflowException.invalid_parameter_value(str(e)) from e


def _load_pyfunc(path: str) -> Served:
    """What `mlflow.pyfunc.load_model` calls with the model's data folder."""
    return Served(Path(path))
