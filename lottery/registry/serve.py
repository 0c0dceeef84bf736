"""This file serves a ticket as an `mlflow.pyfunc` model, which continues prompts.

MLflow runs the copy of this code that is stored in the logged model.
"""

import os
import threading
import time
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import DEADLINE_EXCEEDED, INVALID_PARAMETER_VALUE

from lottery.errors import InputError
from lottery.models.architecture import read_tokenizer
from lottery.models.devices import pick_compute_dtype, pick_device
from lottery.runtime.decoding import generate
from lottery.runtime.load import load_model
from lottery.ticket.opening import open_ticket

DEFAULTS = {"max_new_tokens": 50, "temperature": 0.0, "seed": 0, "top_p": 1.0, "top_k": 0}  # as in the signature


class BadRequestError(MlflowException):
    """The request cannot be served (HTTP 400).

    The message cannot be changed, because MLflow's server would put the whole request in front of it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        return self.reason

    @message.setter
    def message(self, longer: str) -> None:
        pass


def request_timeout() -> float:
    """Returns the seconds after which `mlflow models serve` answers 504; infinity if no server started this process."""
    return float(os.environ.get("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "inf"))


class Served:
    """A served ticket. `predict` takes one text in each row and returns one string for each row, prompt included."""

    def __init__(self, folder: Path) -> None:
        stored = open_ticket(folder)
        device = pick_device("auto")
        self.model = load_model(stored, stored.tensors, pick_compute_dtype("auto", stored.dtype, device), device)
        self.tokenizer = read_tokenizer(folder)
        self.lock = threading.Lock()  # a server calls predict from many threads

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """Continues the prompts of one request; requests run one after the other.

        Raises BadRequestError (HTTP 400) for prompts or params that cannot be used, and MlflowException (HTTP 504) at
        the server's timeout: by then the client has its 504, and other requests wait.
        """
        deadline = time.monotonic() + request_timeout()
        prompts = model_input.iloc[:, 0].tolist() if hasattr(model_input, "iloc") else list(model_input)
        given = DEFAULTS | {name: value for name, value in (params or {}).items() if value is not None}
        tokens, seed = int(given["max_new_tokens"]), int(given["seed"])
        if self.tokenizer is None:
            raise BadRequestError("this ticket has no tokenizer: it cannot read prompts")
        if wrong := [p for p in prompts if not isinstance(p, str)]:
            raise BadRequestError(f"inputs: every prompt must be a string; one is {str(wrong[0])[:50]!r}")
        if tokens < 1:
            raise BadRequestError(f"max_new_tokens={tokens}: give a whole number from 1")
        if not 0 <= seed < 2**63:
            raise BadRequestError(f"seed={seed}: give a whole number from 0, below 2^63")
        sampling = (float(given["temperature"]), seed, float(given["top_p"]), int(given["top_k"]))
        try:
            if not self.lock.acquire(timeout=min(request_timeout(), threading.TIMEOUT_MAX)):
                raise TimeoutError
            try:
                return generate(self.model, self.tokenizer, prompts, tokens, *sampling, deadline=deadline)
            finally:
                self.lock.release()
        except InputError as e:
            raise BadRequestError(str(e)) from e
        except TimeoutError as e:
            raise MlflowException(
                f"not done within {request_timeout():g} s; ask for fewer tokens or prompts",
                error_code=DEADLINE_EXCEEDED,
            ) from e


def _load_pyfunc(path: str) -> Served:
    """Loads the ticket. `mlflow.pyfunc.load_model` calls this with the model's data folder."""
    return Served(Path(path))
