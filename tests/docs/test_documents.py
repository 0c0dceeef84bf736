"""The documents hold: every command runs as it stands there, in order, in a copy of the repository; links, paths and tables."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path

import pytest
import requests

from lottery.spec import Spec

ROOT = Path(__file__).resolve().parents[2]
README, LOG = ROOT / "README.md", ROOT / "LOG.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
OTHERS = [ROOT / "CONTRIBUTING.md", LOG, ROOT / "CHANGELOG.md", ROOT / "slurm" / "README.md"]
ANSWERING = 120  # seconds that a server may take to start


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(language, content, the line of text before it) of every fenced block, in order."""
    found = re.findall(r"^([^\n]*)\n+^```(\w+)\n(.*?)^```", text_of(page), re.S | re.M)
    return [(language, content, before) for before, language, content in found]


def prose(page: Path, code: bool = False) -> str:
    """Without fenced blocks, and without the words in `code` that are left."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.S | re.M)
    return text if code else re.sub(r"`[^`\n]*`", "", text)


class Shell:
    """Terminals in a copy of the repository: in the first one, what is exported stays."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.exports, self.printed = folder, "", dict[str, str]()
        ours = (Path(sys.prefix) / "bin").resolve()
        path = [p for p in os.environ["PATH"].split(":") if Path(p).resolve() != ours]  # that is for the README to say
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        self.environment = kept | {"LOTTERY_HOME": str(folder / "home"), "PATH": ":".join(path)}

    def run(self, command: str) -> str:
        words = ["bash", "-ec", self.exports + command]
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if command.startswith("export "):
            self.exports += command + "\n"
        self.printed[command] = done.stdout
        return done.stdout

    @contextmanager
    def running(self, command: str, address: str) -> Iterator[requests.Response]:
        """A command that runs until it is stopped, from its first answer on."""
        server = subprocess.Popen(
            ["bash", "-c", f"{self.exports}exec {command}"], cwd=self.folder, env=self.environment,
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            until = time.monotonic() + ANSWERING
            while True:
                try:
                    answer = requests.get(address, timeout=5)
                    break
                except requests.RequestException:
                    assert server.poll() is None and time.monotonic() < until, f"{command} never answered"
                    time.sleep(0.5)
            assert answer.status_code == 200
            yield answer
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)

    def run_page(self, page: Path) -> None:
        """Everything that a reader of the page would do, in the order in which it stands there."""
        with ExitStack() as open_to_the_end:
            for language, content, before in blocks(page):
                if language == "yaml" and (named := re.search(r"Save this as `([\w.-]+)`", before)):
                    (self.folder / named[1]).write_text(content)
                elif language == "python":
                    self.printed[content] = self.run(f".venv/bin/python - <<'END'\n{content}END")
                elif language == "bash":
                    for line in filter(str.strip, content.splitlines()):
                        self.run_line(line, open_to_the_end)

    def run_line(self, line: str, open_to_the_end: ExitStack) -> None:
        command = re.sub(r"\s+# .*", "", line)
        if command == "make test":  # it runs this
            return
        if command == "make ticket":  # the environment is ready (-o)
            self.printed[command] = self.run("make -o .venv/.ready ticket")
        elif command.endswith("mlflow ui"):
            with self.running(f"{command} --port 5987", "http://127.0.0.1:5987/") as answer:
                assert "MLflow" in answer.text
        elif command.startswith("mlflow models serve"):
            open_to_the_end.enter_context(self.running(command, "http://127.0.0.1:5001/ping"))
        else:
            self.run(command)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """The files that git knows, with the environment that the tests run in as `.venv`; and the README's commands done."""
    folder = tmp_path_factory.mktemp("documents") / "lottery"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    shell = Shell(folder)
    shell.run_page(README)
    return shell


@pytest.mark.slow
def test_the_commands_of_the_readme(shell: Shell) -> None:
    lines = [line for language, content, _ in blocks(README) if language == "bash" for line in content.splitlines()]
    assert lines[:3] == ["make ticket", "make test", 'export PATH="$PWD/.venv/bin:$PATH"']
    printed = shell.printed["make ticket"]
    assert "| dense " in printed and "| late 50% " in printed
    shown = next(content for language, content, _ in blocks(README) if language == "text")
    for line in shown.splitlines():  # figures and texts may differ on another machine, words do not
        assert re.split(r"[\d'\"]", line)[0] in printed, line
    assert "The meaning of life is" in shell.printed[next(c for lang, c, _ in blocks(README) if lang == "python")]
    assert (shell.folder / "report" / "index.html").is_file()


@pytest.mark.slow
def test_the_table_of_the_cliff_has_every_row_that_its_command_prints(shell: Shell) -> None:
    command = next(command for command in shell.printed if command.startswith("lottery study cliff"))
    rows = re.findall(r"^\| (\w[^|]*?) +\|.*?\| (\w*) *\|$", shell.printed[command], re.M)
    section = text_of(ROOT / "docs" / "studies.md").split("### The cliff")[1].split("###")[0]
    assert rows and rows == re.findall(r"^\| (\w[^|]*?) +\|.*?\| (\w*) *\|$", section, re.M), shell.printed[command]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of(page: Path, shell: Shell) -> None:
    shell.run_page(page)
    if page.stem == "registry":
        answered = next(printed for command, printed in shell.printed.items() if command.startswith("curl"))
        assert answered.startswith('{"predictions": ["The old man')


def test_the_parameter_table_is_the_program_s() -> None:
    rows = [f"| `{f.name}` | `{f.default}` | {f.metadata['help']} | {f.metadata['values']} |" for f in fields(Spec)]
    wanted = "\n".join(rows)
    assert wanted in text_of(ROOT / "docs" / "parameters.md"), f"docs/parameters.md: its table should be\n{wanted}"


def test_the_page_of_the_hypothesis_says_what_the_program_says() -> None:
    """The keys of its files, the presets' sizes, and the rules of the arms as the code that makes them has them."""
    from lottery.hypothesis.design import OF_COMMAND, PARAMETERS, read_hypothesis
    from lottery.hypothesis.plan import make_plan, make_setup
    from lottery.hypothesis.tasks import divide
    from lottery.training import arms

    page = text_of(ROOT / "docs" / "hypothesis.md")
    keys = [f for f in PARAMETERS if f.name not in OF_COMMAND]
    rows = [f"| `{f.name}` | `{f.default}` | {f.metadata['help']} | {f.metadata['values']} |" for f in keys]
    assert "\n".join(rows) in page, f"docs/hypothesis.md: its table should be\n{rows}"
    table = "\n".join(line for line in (arms.__doc__ or "").splitlines() if line.startswith("|"))
    assert table.count("\n") > 10 and table in page, f"docs/hypothesis.md: its arms should be\n{table}"
    for name in ("quick", "full"):
        asked = read_hypothesis(name)
        plan = make_plan(asked, make_setup(asked, "", "cpu"))
        size = f"| {len(plan.trainings):,} | {sum(task.steps for task in divide(plan)):,} |"
        assert re.search(rf"^\| `{name}` \|.*{re.escape(size)}$", page, re.M), f"docs/hypothesis.md: {name} has {size}"


def test_commands_and_options_exist() -> None:
    """Also of those that are shown and not run: each begins with a command of lottery, with options that it has."""
    from lottery.cli.main import main

    for page in (README, *OTHERS, *PAGES):
        for language, content, _ in blocks(page):
            for line in content.splitlines() if language in ("bash", "sh") else ():
                words = shlex.split(line, comments=True)
                if words[:1] != ["lottery"]:
                    continue
                command = main.commands[words[1]]
                known = {option for parameter in command.params for option in parameter.opts}
                assert {w for w in words[2:] if w.startswith("--")} <= known, (page.name, line)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def slugs(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose(page, code=True), re.M)}


@pytest.mark.parametrize("page", [README, *OTHERS, *PAGES], ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_links(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in slugs(file), target


@pytest.mark.parametrize("page", [README, *OTHERS, *PAGES], ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_paths(page: Path) -> None:
    """Files and folders of the repository that a document names. What the log says of earlier days stays as it was."""
    text = text_of(page).split("\n## 20")[0] if page == LOG else "" if page.stem == "CHANGELOG" else text_of(page)
    for name in re.findall(r"(?<![\w/.-])(?:lottery|tests|analysis|docs|slurm)/[\w./-]*", text):
        if not re.search(r"/NAME\.|\.\.\.", name):
            assert (ROOT / name.rstrip(".")).exists(), name


def test_form() -> None:
    assert len(text_of(README).splitlines()) <= 200
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        title, empty, purpose = text_of(page).split("\n")[:3]
        assert title.startswith("# ") and not empty and re.match(r"This page (?:\w+)", purpose), page.name
        assert f"({page.relative_to(ROOT)})" in text_of(README), f"the README has no link to {page.name}"
    log, entries = text_of(LOG).split("\n## 20")[0], re.findall(r"^## (20.+)$", text_of(LOG), re.M)
    for entry in entries:
        assert f"](#{slug(entry)})" in log, f"LOG.md: its contents have no link to {entry}"
