"""The documentation does what it says: its files are written, its commands and programs run, its settings parse.

A page is read from top to bottom, in a folder that holds a copy of `configs/`, as a reader would follow it. A block
after a line such as `tickets.yaml`: is that file. Commands are cut short by settings that change nothing else.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from entrenar_core.config import parse_config
from entrenar_core.config.loading import parse_finetuning
from entrenar_core.errors import ConfigError
from tiny_runs import run_line

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md")), *(ROOT / "docs/concepts").glob("*.md")]
FENCE = re.compile(r"^(?:`(?P<file>[\w.-]+)`:\n\n)?```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
# What sets up a machine is not run again and again: where else each line is.
ELSEWHERE = {
    "make quickstart": "Makefile",
    "make setup": "Makefile",
    "make test": "Makefile",
    "export UV_FIND_LINKS=https://download.pytorch.org/whl/cpu/torch/": "test_workspace.py::test_a_page_that_links",
}
SHORT = {
    "quickstart.yaml": ["dataset.max_rows=200", "dataset.labelled_rows=60", "training.max_steps=2"],
    "tinybert-1-layers.yaml": ["dataset.max_rows=200", "dataset.labelled_rows=60", "training.max_steps=2"],
    "tinybert-2-answers.yaml": ["dataset.max_rows=200", "dataset.labelled_rows=60", "training.max_steps=2"],
    "minilm.yaml": ["dataset.max_rows=200", "dataset.labelled_rows=60", "training.max_steps=2"],
    "causal-lm.yaml": ["dataset.max_length=16", "dataset.eval_rows=2", "training.max_steps=1", "dataset.max_rows=50"],
    "masked-lm.yaml": ["dataset.max_rows=60", "training.max_steps=2", "training.baseline=false"],
    "token-classification.yaml": [
        "dataset.max_rows=60",
        "dataset.labelled_rows=10",
        "training.max_steps=2",
        "training.baseline=false",
        "teacher.finetune.epochs=1",
    ],
    "two-teachers.yaml": [
        "dataset.max_rows=200",
        "dataset.labelled_rows=60",
        "training.max_steps=2",
        "teacher.members[1].finetune.epochs=1",
    ],
    "embedding.yaml": ["dataset.max_rows=200", "training.max_steps=2"],
    "lora.yaml": ["dataset.max_rows=200", "training.max_steps=2"],
    "tickets.yaml": ["training.max_steps=2"],
    "tickets-lora.yaml": ["dataset.max_rows=200"],
}
TWO_STEPS = """
import entrenar_core.config.loading as loading
validated = loading._validate
def short(schema, values, places):
    values = {**values, "training": {**values.get("training", {}), "max_steps": 2, "baseline": False}}
    values["dataset"] = {**values["dataset"], "max_rows": 200, "labelled_rows": 60}
    return validated(schema, values, places)
loading._validate = short
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `file` is the name that the line before it gives."""

    kind: str
    body: str
    file: str | None


def blocks(page: Path, *kinds: str) -> Iterator[Block]:
    for match in FENCE.finditer(page.read_text()):
        if match["kind"] in kinds:
            yield Block(match["kind"], match["body"], match["file"])


def commands(page: Path) -> list[str]:
    return [
        line.removeprefix("$ ")
        for block in blocks(page, "console")
        for line in block.body.splitlines()
        if line.startswith("$ ")
    ]


def shortened(command: str) -> list[str]:
    """The command as a list, with the settings that keep it short at its end."""
    words = shlex.split(command)
    config = next((Path(word).name for word in words if word.endswith(".yaml")), "")
    if {"run", "diagnose", "build", "train"} & set(words):
        words += [part for setting in SHORT[config] for part in ("--set", setting)]
    return words


def run(command: list[str], folder: Path) -> None:
    environment = {"HOME": str(folder), "ENTRENAR_HOME": str(folder / "kept")}
    status, output = run_line(command, folder, environment, timeout_s=280)
    assert status == 0, f"{shlex.join(command)}\n{output}"


LONGEST = (
    "adapters.md",
    "caching-teachers.md",
    "diagnosing.md",
    "language-models.md",
    "losses.md",
    "masked-tokens-and-tagged-words.md",
    "memory.md",
    "quickstart.md",  # what is in the README, told at length
    "resuming.md",
    "sentence-encoders.md",
    "several-processes.md",
    "several-teachers.md",
    "students.md",
)
FOLLOWED = [page for page in PAGES if list(blocks(page, "console", "python"))]


@pytest.mark.pages
@pytest.mark.timeout(900)  # a page has up to six programs
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.nightly] if page.name in LONGEST else [])
        for page in FOLLOWED
    ],
)
def test_a_page_can_be_followed(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for block in blocks(page, "console", "python", "yaml", "json"):
        if block.file:
            (tmp_path / block.file).write_text(block.body)
        elif block.kind == "console":
            for line in block.body.splitlines():
                assert line.startswith("$ "), f"{page.name}: {line} is no command"
                run(shortened(line.removeprefix("$ ")), tmp_path)
        elif block.kind == "python":
            run(["python", TWO_STEPS + block.body], tmp_path)


@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page, "yaml"))], ids=lambda page: page.name)
def test_every_configuration_of_a_page_is_one(page: Path) -> None:
    for block in blocks(page, "yaml"):
        try:
            values = yaml.safe_load(block.body)
            (parse_finetuning if "model" in values else parse_config)(values)
        except ConfigError as error:
            pytest.fail(f"{block.body}\n{error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_line_that_sets_up_a_machine_is_tried_elsewhere(page: Path) -> None:
    lines = [line for block in blocks(page, "bash") for line in block.body.splitlines()]
    lines = [line for line in lines if "pip install" not in line]  # in test_packaging
    assert [line for line in lines if line not in ELSEWHERE] == []
    targets = re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in lines:
        assert ELSEWHERE[line] != "Makefile" or line.split()[1] in targets


def test_every_page_is_in_the_list_of_the_documentation() -> None:
    listed = (ROOT / "docs" / "README.md").read_text()
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").glob("*/*.md")]
    assert [page for page in pages if f"({page})" not in listed] == []


def test_the_reference_is_what_would_be_written_now() -> None:
    done = subprocess.run([sys.executable, "tools/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.real_models
@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_that_comes_along_is_valid(config: Path, tmp_path: Path) -> None:
    tunes = "model" in yaml.safe_load(config.read_text())
    words = ["entrenar_lora", "train", "--dry-run"] if tunes else ["entrenar_distill", "validate"]
    command = [sys.executable, "-m", *words, str(config)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "skipped" not in done.stdout
