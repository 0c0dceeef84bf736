"""A registered ticket behind `mlflow models serve`: a real server process and a real HTTP client."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from click.testing import Result

from lottery.cli.main import main
from lottery.registry.serve import DEFAULTS
from lottery.registry.versions import SIGNATURE

SHORT = {"max_new_tokens": 4}
WARM = {"max_new_tokens": 12, "temperature": 0.9}


class Server:
    """What a client sees of one server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, body: Any, kind: str | None = "application/json") -> requests.Response:
        data = body if isinstance(body, str | bytes) else json.dumps(body)
        headers = {"Content-Type": kind} if kind else {}
        return requests.post(
            f"{self.url}/invocations", data.encode() if isinstance(data, str) else data, headers=headers, timeout=300
        )

    def texts(self, body: Any, kind: str = "application/json") -> list[str]:
        answer = self.post(body, kind)
        assert answer.status_code == 200, answer.text
        return answer.json()["predictions"]

    def says(self, prompt: str, **params: Any) -> str:
        return self.texts({"inputs": [prompt], "params": SHORT | params})[0]

    def refuses(self, body: Any, *words: str, kind: str | None = "application/json") -> str:
        """The one message of a refusal, which has no stack trace beside it."""
        answer = self.post(body, kind)
        assert answer.status_code == 400, answer.text
        assert "Traceback" not in answer.text and "stack_trace" not in answer.json(), answer.text
        message = answer.json()["message"]
        assert all(word in message for word in words), message
        return message


@contextmanager
def serving(model: str, folder: Path, *options: str) -> Iterator[Server]:
    """`mlflow models serve`, from the moment it answers on; what it wrote goes to `folder`."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["mlflow", "models", "serve", "-m", model, "--env-manager", "local", "--port", str(port), *options]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                if requests.get(f"{url}/ping", timeout=5).status_code == 200:
                    break
            except requests.ConnectionError:
                assert process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.5)
        else:
            raise AssertionError((folder / "server.log").read_text())
        yield Server(url)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="module")
def ticket(tiny: Path, lottery_json: Callable[..., dict[str, Any]]) -> str:
    return lottery_json("prune", "--model", tiny, "--measure", "none", "--register", "served")["model_uri"]


@pytest.fixture(scope="module")
def folder(ticket: str) -> Path:
    """The logged model, as it lies in the store."""
    version = mlflow.MlflowClient().get_model_version("served", "1")
    model = mlflow.MlflowClient().get_logged_model(version.source.removeprefix("models:/"))
    return Path(model.artifact_location.removeprefix("file://"))


@pytest.fixture(scope="module")
def server(ticket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(ticket, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(autouse=True)
def lives_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test sent, the server answers afterwards as it did before."""
    if "server" not in request.fixturenames:
        yield
        return
    server = request.getfixturevalue("server")
    before = server.says("Once upon a time")
    yield
    assert server.says("Once upon a time") == before


def test_it_is_up(server: Server) -> None:
    for page in ("ping", "health"):
        assert requests.get(f"{server.url}/{page}", timeout=30).status_code == 200
    assert requests.get(f"{server.url}/version", timeout=30).text == mlflow.__version__


def test_the_signature_has_the_defaults_of_the_command() -> None:
    command = {p.name: p.default for p in main.commands["generate"].params}
    assert {p.name: p.default for p in SIGNATURE.params.params} == DEFAULTS
    assert {name: command["tokens" if name == "max_new_tokens" else name] for name in DEFAULTS} == DEFAULTS


def test_every_form_of_request_gets_the_text_of_lottery_generate(
    server: Server, ticket: str, cli: Callable[..., Result]
) -> None:
    prompts = ["The old man", "A dog\nand über 🎉 日本\n\t cat"]
    made = [
        cli("generate", "--ticket", ticket, "--prompt", p, "--tokens", "4").stdout.removesuffix("\n") for p in prompts
    ]
    assert all(text.startswith(prompt) and text != prompt for text, prompt in zip(made, prompts, strict=True))
    for body in (
        {"inputs": prompts},
        {"instances": prompts},
        {"dataframe_split": {"data": [[p] for p in prompts]}},
        {"dataframe_split": {"columns": ["prompt"], "index": [7, 8], "data": [[p] for p in prompts]}},
        {"dataframe_records": [{"prompt": p} for p in prompts]},
    ):
        assert server.texts(body | {"params": SHORT}) == made, body
    for prompt, text in zip(prompts, made, strict=True):
        assert server.texts({"inputs": [prompt], "params": SHORT}) == [text]
        assert server.texts({"inputs": prompt, "params": SHORT}) == [text]
        assert server.post({"prompt": prompt, **SHORT}).json() == [text]  # MLflow's own form for completions
    whole = cli("generate", "--ticket", ticket, "--prompt", "The old man").stdout.removesuffix("\n")
    assert server.texts({"inputs": ["The old man"]}) == [whole]
    assert server.texts({"inputs": ["The old man"], "params": {"max_new_tokens": None}}) == [whole]
    assert server.texts("prompt\nThe old man\n", "text/csv") == [whole]


def test_the_examples_that_travel_with_the_model(server: Server, folder: Path) -> None:
    for name in ("input_example.json", "serving_input_example.json"):
        (text,) = server.texts((folder / name).read_bytes())
        assert text.startswith("The meaning of life is")


def test_drawn_texts_follow_their_seed(server: Server, ticket: str, cli: Callable[..., Result]) -> None:
    one = server.says("The old man", **WARM, seed=1)
    assert server.says("The old man", **WARM, seed=1) == one != server.says("The old man", **WARM, seed=2)
    assert server.texts({"inputs": ["A dog", "The old man"], "params": WARM | {"seed": 1}})[1] == one
    greedy = server.says("The old man", max_new_tokens=12)
    assert server.says("The old man", **WARM, top_k=1) == greedy == server.says("The old man", **WARM, top_p=1e-6)
    options = ("--tokens", "12", "--temperature", "0.9", "--seed", "1", "--top_p", "0.5", "--top_k", "9")
    said = cli("generate", "--ticket", ticket, "--prompt", "The old man", *options).stdout.removesuffix("\n")
    assert server.says("The old man", **WARM, seed=1, top_p=0.5, top_k=9) == said != one


def test_eight_at_once_get_what_each_gets_alone(server: Server) -> None:
    bodies = [{"inputs": [f"Number {i} is"], "params": WARM | {"seed": i}} for i in range(8)]
    alone = [server.texts(body) for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(server.texts, bodies)) == alone
    assert len({text for (text,) in alone}) == 8


def test_bodies_that_are_no_requests(server: Server) -> None:
    for body, words in (
        ("{bad", ["JSON"]),
        ("", ["JSON"]),
        (b"\xff\xfe", ["JSON"]),
        ("{}", ["inputs"]),
        ("[]", ["inputs", "list"]),
        ('"x"', ["inputs"]),
        ({"texts": ["a"]}, ["inputs"]),
        ({"inputs": ["a"], "instances": ["b"]}, ["exactly one"]),
        ({"inputs": []}, ["missing inputs"]),
        ({"inputs": None}, ["NoneType"]),
        ({"inputs": {"a": "b"}}, ["dict"]),
        ({"inputs": [[["a"]]]}, ["2-d"]),
        ({"inputs": [{"a": 1}]}, ["prompt must be a string"]),
        ({"input": ["a"]}, ["prompt must be a string"]),
        ({"messages": [{"role": "user", "content": "hi"}]}, ["prompt must be a string"]),
        ({"dataframe_records": []}, ["missing inputs"]),
        ({"dataframe_records": [3]}, ["prompt must be a string", "3"]),
        ({"dataframe_split": []}, ["must be a dictionary"]),
        ({"dataframe_split": {"data": [[None]]}}, ["prompt must be a string"]),
        ('{"inputs": ["\\ud800"]}', ["surrogates"]),
    ):
        server.refuses(body, *words)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"):
        assert server.post('{"inputs": ["a"]}', kind).status_code == 415
    assert server.post({"inputs": ["a"]}, None).status_code >= 400
    assert server.post(b"PAR1", "application/vnd.apache.parquet").status_code == 400


def test_parameters_that_cannot_be_used(server: Server) -> None:
    for params, words in (
        ({"max_new_tokens": "many"}, ["max_new_tokens", "many"]),
        ({"max_new_tokens": "3"}, ["max_new_tokens"]),
        ({"max_new_tokens": 2.5}, ["max_new_tokens", "2.5"]),
        ({"max_new_tokens": True}, ["max_new_tokens"]),
        ({"max_new_tokens": [3]}, ["max_new_tokens"]),
        ({"max_new_tokens": 0}, ["max_new_tokens=0: give a whole number from 1"]),
        ({"max_new_tokens": -1}, ["max_new_tokens=-1"]),
        ({"max_new_tokens": 10**6}, ["1000000 new ones exceed the model's 128"]),
        ({"max_new_tokens": 10**30}, ["exceed the model's 128"]),
        ({"temperature": "hot"}, ["temperature", "hot"]),
        ({"temperature": -1.0}, ["temperature=-1.0: give 0"]),
        ({"temperature": 1e-9}, ["temperature=1e-09"]),
        ({"temperature": float("nan")}, ["temperature=nan"]),
        ({"temperature": float("inf")}, ["temperature=inf"]),
        ({"seed": -1}, ["seed=-1"]),
        ({"seed": 2**63}, [f"seed={2**63}"]),
        ({"seed": 1.5}, ["seed", "1.5"]),
        ({"temperature": 1.0, "top_p": 0.0}, ["top_p=0.0"]),
        ({"temperature": 1.0, "top_p": 1.5}, ["top_p=1.5"]),
        ({"temperature": 1.0, "top_k": -1}, ["top_k=-1"]),
        ({"top_p": 0.5}, ["top_p=0.5: at temperature=0 nothing is drawn"]),
        ([], ["dictionary"]),
        ("x", ["dictionary"]),
        (3, ["dictionary"]),
    ):
        server.refuses({"inputs": ["The old man"], "params": params}, *words)


def test_prompts_too_long_and_empty_ones(server: Server) -> None:
    for prompt, words in (
        ("word " * 20_000, ["characters exceed the model's 128 tokens"]),
        ("x" * 10**7, ["characters exceed the model's 128 tokens"]),  # would take ten seconds to tokenize
        ("word " * 150, ["exceed the model's 128"]),
    ):
        assert len(server.refuses({"inputs": ["fine", prompt]}, *words)) < 120  # the prompt is not in it
    assert server.says("")  # it begins with the model's own first token
    many = [f"Number {i} is" for i in range(40)]
    texts = server.texts({"inputs": many, "params": SHORT})
    assert len(texts) == 40 and texts[7] == server.says(many[7])


def test_what_mlflow_makes_of_a_request_before_the_ticket_sees_it(server: Server) -> None:
    """None of it can be helped: numbers become text, and of a row the first value counts."""
    for given, meant in (([3], "3"), ([True], "True"), ([None], "None"), ([["a", "b"]], "a")):
        assert server.texts({"inputs": given, "params": SHORT}) == [server.says(meant)]
    assert server.says("a", frequency=1) == server.says("a")  # an unknown parameter is only warned of, in its log


def test_a_request_out_of_time_makes_way_and_the_carried_code_serves(folder: Path, tmp_path: Path) -> None:
    """Served from a folder, whose own code runs though lottery is installed in the environment of the tests."""
    copy, seen = tmp_path / "model", tmp_path / "seen"
    shutil.copytree(folder, copy)
    with open(copy / "code" / "lottery" / "serve.py", "a") as f:
        f.write(f"\nfrom pathlib import Path\nPath({str(seen)!r}).write_text(__file__)\n")
    with serving(str(copy), tmp_path, "--timeout", "4") as server:
        assert seen.read_text() == str(copy / "code" / "lottery" / "serve.py")
        before = server.says("Once upon a time")
        answer = server.post({"inputs": ["Once upon a time"] * 20_000, "params": {"max_new_tokens": 100}})
        assert answer.status_code == 504
        assert server.says("Once upon a time") == before  # it would be the next 504, if that work went on


def test_masks_over_the_embedded_model(lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result]) -> None:
    """The carried code has no embedded model of its own."""
    arguments = ("--storage", "mask", "--target", "late", "--measure", "none", "--register", "served-mask")
    ticket = lottery_json("prune", *arguments)["model_uri"]
    script = f"import mlflow; print(*mlflow.pyfunc.load_model({ticket!r}).predict(['The old man'], params={SHORT}))"
    script += "; import lottery; assert 'artifacts' in lottery.__file__"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == cli("generate", "--ticket", ticket, "--prompt", "The old man", "--tokens", "4").stdout
