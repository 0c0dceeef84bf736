"""`mlflow server` with PostgreSQL and an artifact store behind it: twelve at once, killed at any moment, gone, broken, slow."""

import contextlib
import json
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from click.testing import CliRunner, Result
from mlflow.tracking import MlflowClient

from lottery.cli.main import main
from tests.support.forks import Forks
from tests.support.servers import Server, mlflow_server, postgres

QUICK = ("--measure", "perplexity")
KILLS = int(os.environ.get("LOTTERY_KILLS", "5"))  # nine seconds each
SLOW_S = 4


@pytest.fixture(scope="module")
def back_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("back_end")
    with postgres() as database, mlflow_server(folder, database) as server:
        yield server


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, back_end: Server, tmp_path: Path) -> Server:
    """This process set to the server, with a home of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", back_end.url)
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "home"))
    return back_end


def runs(client: MlflowClient, query: str = "") -> list[Any]:
    return list(client.search_runs(["0"], query, max_results=1000))


def check_twelve(forks: Forks, untrained: Path, name: str) -> None:
    commands = [
        ("prune", "--model", untrained, "--sparsity", f"0.{10 + i}", "--register", name, *QUICK, "--json")
        for i in range(12)
    ]
    ends = forks.run(*commands)
    if failed := [e["err"] for e in ends if e["code"]]:
        pytest.fail("\n".join(failed))  # an assertion would cut their reasons short
    client = MlflowClient()
    versions = client.search_model_versions(f"name = '{name}'")
    told = [json.loads(e["out"]) for e in ends]
    assert {t["model_uri"] for t in told} == {f"models:/{name}/{v.version}" for v in versions}
    assert len(versions) == len({v.tags["ticket"] for v in versions}) == 12
    assert {v.tags["ticket"] for v in versions} == {t["ticket"] for t in told}
    # weights that were never trained lose nothing by pruning: here many win, and the sparsest is to have the alias
    won = [t for t in told if t["tags"]["winner"] == "yes"]
    assert len(won) > 1
    best = max(won, key=lambda t: t["metrics"]["sparsity_model"])["model_uri"]
    assert f"models:/{name}/{client.get_registered_model(name).aliases['winner']}" == best
    assert not runs(client, f"attributes.status = 'RUNNING' and params.register = '{name}'")


@pytest.mark.slow
def test_twelve_at_once_on_postgresql(here: Server, forks: Forks, untrained: Path) -> None:
    check_twelve(forks, untrained, "twelve")


@pytest.mark.slow
def test_twelve_at_once_on_a_fresh_sqlite_file(
    forks: Forks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, untrained: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/fresh.db")
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    check_twelve(forks, untrained, "twelve")


def test_the_same_ticket_from_two_homes_is_one_version(
    here: Server, forks: Forks, untrained: Path, tmp_path: Path
) -> None:
    command = ("prune", "--model", untrained, "--sparsity", "0.4", "--register", "homes", "--measure", "none", "--json")
    homes = [{"LOTTERY_HOME": str(tmp_path / f"home{i}")} for i in range(3)]
    found = forks.run(command, command, command, environments=homes)
    assert [f["code"] for f in found] == [0, 0, 0], found
    versions = MlflowClient().search_model_versions("name = 'homes'")
    assert len(versions) == 1
    assert {json.loads(f["out"])["model_uri"] for f in found} == {f"models:/homes/{versions[0].version}"}


@pytest.mark.slow
def test_killed_at_any_moment(here: Server, forks: Forks, untrained: Path, cli: Callable[..., Result]) -> None:
    """Either no version or a whole one; the same command finishes the job, and closes what the killed one left."""
    client, moments = MlflowClient(), random.Random(0)

    def command(i: int) -> tuple[Any, ...]:
        quick = (*QUICK, "--limit", "8", "--json")
        return ("prune", "--model", untrained, "--sparsity", f"0.{30 + i}", "--register", "killed", *quick)

    forks.run(command(0))  # the dense base is known from here on, and the kernels are compiled
    whole = forks.run(command(1))[0]
    assert whole["code"] == 0, whole["err"]
    seen: Counter[str] = Counter()
    for i in range(2, 2 + KILLS):
        killed = forks.run(command(i), kill_after=moments.uniform(0, whole["took"]))[0]
        before = client.search_model_versions("name = 'killed'")
        assert len(before) in (i, i + 1)
        seen["whole" if len(before) == i + 1 else "finished" if killed["code"] == 0 else "none"] += 1
        if len(before) == i + 1:
            last = max(int(v.version) for v in before)
            assert "every hash is right" in cli("verify", "--ticket", f"models:/killed/{last}").stdout
        again = forks.run(command(i))[0]
        assert again["code"] == 0, again["err"]
        told = json.loads(again["out"])
        assert "every hash is right" in cli("verify", "--ticket", told["model_uri"]).stdout
        assert "perplexity_ratio" in told["metrics"]
        versions = client.search_model_versions("name = 'killed'")
        assert len(versions) == len({v.tags["ticket"] for v in versions}) == i + 1
    print(dict(seen))
    assert seen["none"] > 2  # they did hit the work
    assert not runs(client, "attributes.status = 'RUNNING' and params.register = 'killed'")
    models = [m for m in client.search_logged_models(["0"], max_results=100) if m.source_run_id]
    registered = {v.source.removeprefix("models:/") for v in client.search_model_versions("name = 'killed'")}
    about = [m for m in models if m.params.get("register") == "killed"]
    assert {m.model_id for m in about} == registered and {str(m.status) for m in about} == {"READY"}


class Broken(ThreadingHTTPServer):
    """Between client and server: after `good` requests more it answers 500, or hangs up, or is slow, until it is mended."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), Between)
        self.target, self.good, self.fault = target, 10**9, "500"
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class Between(BaseHTTPRequestHandler):
    server: Broken
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.server.good -= 1
        if self.server.good < 0:
            if self.server.fault == "away":
                self.close_connection = True
                return
            if self.server.fault == "500":
                return self.send(500, b"the database is on fire", "text/plain")
            time.sleep(SLOW_S)  # and does what it was asked for, when nobody waits any more
        kept = {
            k: v for k, v in self.headers.items() if k.lower() not in ("host", "transfer-encoding", "content-length")
        }
        got = requests.request(self.command, self.server.target + self.path, data=body, headers=kept, timeout=60)
        self.send(got.status_code, got.content, got.headers.get("Content-Type", "application/json"))

    def send(self, status: int, body: bytes, kind: str) -> None:
        with contextlib.suppress(ConnectionError):
            self.send_whole(status, body, kind)

    def send_whole(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = answer


@pytest.fixture
def between(here: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    proxy = Broken(here.url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    yield proxy
    proxy.shutdown()
    proxy.server_close()


@pytest.mark.slow
def test_a_server_that_fails_in_the_middle_loses_nothing(
    between: Broken, untrained: Path, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    """At request after request of a run: what was measured is on disk, is said, and is recorded later, once."""
    name = "middle"
    arguments = ("prune", "--model", untrained, *QUICK, "--limit", "8", "--register", name, "--json")
    before = 10**6
    cli(*arguments, "--sparsity", "0.2")  # the dense base is known from here on
    between.good = before
    cli(*arguments, "--sparsity", "0.21")
    needs = before - between.good  # requests of a whole run; most of them carry a file
    assert needs > 50
    client = MlflowClient()
    kept = 0
    for i, good in enumerate([*range(3, needs - 24, 20), *range(needs - 24, needs, 4)]):
        between.good, between.fault = good, ("500", "away")[i % 2]
        sparsity = ("--sparsity", f"0.{30 + i}")
        failed = CliRunner().invoke(main, [str(a) for a in (*arguments, *sparsity)])
        between.good = before
        if failed.exit_code == 0:  # it needed a few requests less
            continue
        assert (
            failed.exit_code == 1
            and failed.stderr.strip().splitlines()[-1].startswith("Error: ")
            and "Traceback" not in failed.stderr
        )
        homes = [p for p in (tmp_path / "home" / "unfinished").iterdir() if (p / "measurements.json").exists()]
        versions = {v.version for v in client.search_model_versions(f"name = '{name}'")}
        if not homes:  # it failed before there was anything to keep
            cli(*arguments, *sparsity)
            continue
        kept += 1
        assert str(homes[0]) in failed.stderr and f"lottery publish {homes[0]}" in failed.stderr
        saved = json.loads((homes[0] / "measurements.json").read_text())
        told = json.loads(cli("publish", homes[0], "--json").stdout)["published"][0]
        run = client.get_run(told["run_id"])
        assert run.info.status == "FINISHED" and run.data.metrics["perplexity"] == saved["metrics"]["perplexity"]
        assert told["model_uri"] and "reason" not in run.data.tags and "outcome" not in run.data.tags
        now = client.search_model_versions(f"name = '{name}'")
        assert len({v.version for v in now} - versions) <= 1 and len({v.tags["ticket"] for v in now}) == len(now)
        assert "every hash is right" in cli("verify", "--ticket", told["model_uri"]).stdout
        again = cli("publish", homes[0], code=2)  # it is gone: the registry has it
        assert "measurements.json" in again.stderr
    assert kept > 3
    assert not runs(client, f"attributes.status = 'RUNNING' and params.register = '{name}'")


@pytest.mark.parametrize("before_the_end", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_a_slow_server_loses_nothing(
    before_the_end: int,
    between: Broken,
    untrained: Path,
    tmp_path: Path,
    cli: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does what the client has given up: things happen twice there, and still the ticket is one version."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(SLOW_S - 1))
    between.fault, between.good = "slow", 10**6
    name = f"slow{before_the_end}"
    arguments = ("prune", "--model", untrained, *QUICK, "--limit", "8", "--register", name, "--json")
    cli(*arguments, "--sparsity", "0.1")  # it also records the dense base, which takes requests of its own
    between.good = 10**6
    cli(*arguments, "--sparsity", "0.2")
    needs = 10**6 - between.good
    between.good = needs - before_the_end
    cli(*arguments, "--sparsity", "0.3", code=1)
    time.sleep(2 * SLOW_S)  # what is under way there comes to its end
    between.good = 10**6
    told = json.loads(cli(*arguments, "--sparsity", "0.3").stdout)
    assert "every hash is right" in cli("verify", told["model_uri"]).stdout
    versions = MlflowClient().search_model_versions(f"name = '{name}'")
    assert len({v.tags["ticket"] for v in versions}) == len(versions) == 3


def test_published_once_however_often(
    between: Broken, untrained: Path, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    """A folder of the user's own stays, and can be published again, to no effect."""
    out, out2 = tmp_path / "mine", tmp_path / "copy"
    between.good = 6
    between.fault = "away"
    failed = cli(
        "prune", "--model", untrained, *QUICK, "--register", "often", "--sparsity", "0.45", "--out", out, code=1
    )
    between.good = 10**9
    assert f"lottery publish {out}" in failed.stderr
    shutil.copytree(out, out2)
    first = json.loads(cli("publish", out, out2, "--json").stdout)["published"]
    assert [p["sent"] for p in first] == [True, False] and first[0]["run_id"] == first[1]["run_id"]
    assert {p["model_uri"] for p in first} == {"models:/often/1"}
    assert "recorded already" in cli("publish", out).stdout
    client = MlflowClient()
    assert len(runs(client, "params.register = 'often'")) == 1
    assert len(client.search_model_versions("name = 'often'")) == 1


def test_an_evaluation_that_could_not_be_recorded_is_kept(
    between: Broken,
    untrained: Path,
    tmp_path: Path,
    cli: Callable[..., Result],
    lottery_json: Callable[..., dict[str, Any]],
) -> None:
    made = lottery_json("prune", "--model", untrained, *QUICK, "--register", "again", "--sparsity", "0.35")
    evaluate = ("evaluate", "--ticket", made["model_uri"], "--window", "64", "--limit", "5", *QUICK)
    between.good = before = 10**6
    cli(*evaluate)
    last = before - between.good
    for between.good in range(last - 3, 5, -3):  # the last request that is not there may be of another number
        failed = CliRunner().invoke(main, [*evaluate, "--runtime", "packed"])
        if failed.exit_code:
            break
    assert failed.exit_code == 1
    between.good = before
    kept = next(p for p in (tmp_path / "home" / "unfinished").iterdir() if p.name.startswith("evaluation-"))
    assert f"lottery publish {kept}" in failed.stderr
    told = json.loads(cli("publish", kept, "--json").stdout)["published"][0]
    run = MlflowClient().get_run(told["run_id"])
    assert run.data.tags["kind"] == "evaluation" and "perplexity" in run.data.metrics and not kept.exists()
    on = {m.dataset_name for m in MlflowClient().get_logged_model(mlflow_id(made)).metrics if m.key == "perplexity"}
    assert on == {"builtin-w512", "builtin-w64-first5"}


def mlflow_id(made: dict[str, Any]) -> str:
    name, version = made["model_uri"].removeprefix("models:/").split("/")
    return MlflowClient().get_model_version(name, version).source.removeprefix("models:/")


def test_what_is_pending_is_recorded_by_the_same_command(
    between: Broken,
    untrained: Path,
    tmp_path: Path,
    cli: Callable[..., Result],
    lottery_json: Callable[..., dict[str, Any]],
) -> None:
    arguments = ("prune", "--model", untrained, *QUICK, "--register", "pending", "--sparsity", "0.55")
    between.good = 6
    cli(*arguments, code=1)
    between.good = 10**9
    kept = next((tmp_path / "home" / "unfinished").glob("*/measurements.json"))
    measured = json.loads(kept.read_text())["metrics"]
    again = cli(*arguments, "--json")
    assert "measured already" in again.stderr
    assert json.loads(again.stdout)["metrics"] == measured
    # under other parameters it is recorded first, and then measured anew
    other = ("prune", "--model", untrained, *QUICK, "--register", "pending", "--sparsity", "0.56")
    between.good = 6
    cli(*other, code=1)
    between.good = 10**9
    lottery_json(*other, "--window", "64")
    client = MlflowClient()
    windows = Counter(
        r.data.params["window"] for r in runs(client, "params.sparsity = '0.56' and params.register = 'pending'")
    )
    assert windows == {"auto": 1, "64": 1}
    assert len(client.search_model_versions("name = 'pending'")) == 2
    assert not runs(client, "attributes.status = 'RUNNING' and params.register = 'pending'")


def test_a_shared_artifact_folder_gets_no_second_copy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, untrained: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    """A server whose artifacts lie where clients reach them: the ticket's files there are those of the ticket, linked."""
    with mlflow_server(tmp_path, served=False) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "home"))
        out = tmp_path / "out"
        made = lottery_json("prune", "--model", untrained, "--measure", "none", "--out", out)
        location = mlflow.MlflowClient().get_logged_model(mlflow_id(made)).artifact_location
        for shard in out.glob("*.safetensors"):
            there = Path(location.removeprefix("file://")) / "data" / "ticket" / shard.name
            assert there.samefile(shard)
