"""The documentation says what is so: its commands run, its links lead somewhere, its fields, defaults and names exist.

A block of commands that cannot run in this test stands under a comment: <!-- not run: why -->
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from dpr_core.config import imitation, reinforce, reward, rollouts, training
from dpr_core.config.base import Config, StageConfig, override, parse
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.errors import UsageError
from flows import recipes
from flows.cli.__main__ import app
from perf import demo_seeds, gradient_variance
from tasks.registry import STAGES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

COMMANDS = ("bash", "console")
OTHER_LANGUAGES = ("json", "mermaid", "python", "text", "yaml")
TOP_FOLDERS = ("deployments/", "docs/", "dpr_core/", "flows/", "perf/", "tasks/", "tests/")
PROGRAMS = ("dpr", "make", "prefect", "mlflow", "git", "pip", "python", "docker", "kubectl")

TINY = """
backbone.width=32 backbone.layers=1 backbone.heads=2 backbone.feed_forward=32
backbone.task.operations=4 backbone.task.evaluation_share=0.3
backbone.teach_max_steps=10 backbone.probe_every=5 backbone.probe_accuracy=0 backbone.blend_steps=2
subsample.source.task.operations=4 subsample.source.task.evaluation_share=0.3
subsample.source.rows=40 subsample.size=40 sft.batch_size=4 reward.probe_demonstrations=4
diagnose.prompts=4 diagnose.samples=2 diagnose.demonstrations=4 diagnose.max_response_tokens=12
reinforce.rollout_batch_size=8 reinforce.batch_size=4 reinforce.iterations=2 reinforce.max_response_tokens=12
evaluation.benchmarks.lab.prompts=12 evaluation.benchmarks.lab.task.operations=4
evaluation.benchmarks.lab.task.evaluation_share=0.3 answer.max_response_tokens=12 judge.bootstrap_samples=100
"""
"""What makes the recipe `demo` small: the same stages, seconds instead of minutes."""

SHIM = f"""#!{sys.executable}
import sys
TINY = {TINY.split()!r}
if sys.argv[1:2] in (["run"], ["config"]):
    if "demo" not in sys.argv[2:3] and (len(sys.argv) == 2 or sys.argv[2].startswith("-")):
        sys.argv.insert(2, "demo")
    if sys.argv[2] == "demo":
        sys.argv[3:3] = [word for setting in TINY for word in ("--set", setting)]
from flows.cli.__main__ import main
main()
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    why_not_run: str | None

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_commands(self) -> bool:
        return self.language in COMMANDS

    @property
    def script(self) -> str:
        """The commands alone: in a console block those behind `$`, the rest is what they print."""
        if self.language != "console":
            return self.text
        lines, continued = [], False
        for line in self.text.splitlines():
            if line.startswith("$ ") or continued:
                lines.append(line.removeprefix("$ "))
                continued = line.endswith("\\")
        return "\n".join(lines) + "\n"


@cache
def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number, reason = 0, None
    while number < len(lines):
        line = lines[number]
        fence = re.match(r"( *)(`{3,}|~{3,})\s*(\S*)", line)
        mark = re.fullmatch(r"\s*<!-- not run: (.+) -->\s*", line)
        if fence:
            indent, ticks, language = fence.groups()
            end = next(i for i in range(number + 1, len(lines)) if lines[i].strip() == ticks)
            body = "\n".join(text.removeprefix(indent) for text in lines[number + 1 : end]) + "\n"
            found.append(Block(page, number + 1, language, body, reason))
            number = end
        if mark:
            reason = mark[1]
        elif line.strip():
            assert reason is None or fence, f"{page.name}:{number}: a `not run` mark without a block below it"
            reason = None
        number += 1
    return found


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]


def prose(page: Path) -> str:
    """A page without its fenced blocks and comments."""
    text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"^( *)(`{3,}|~{3,}).*?^\1\2\s*$", "", text, flags=re.DOTALL | re.MULTILINE)


def inline_code(page: Path) -> list[str]:
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of the documentation, in blocks or in prose, as (where, words)."""
    for block in all_blocks():
        if block.is_commands:
            for line in block.script.replace("\\\n", " ").splitlines():
                yield block.where, _words(line)
    for page in PAGES:
        for code in inline_code(page):
            yield str(page.relative_to(ROOT)), _words(code)


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return line.split()


PAGES_WITH_COMMANDS = [page for page in PAGES if any(b.is_commands and not b.why_not_run for b in blocks(page))]


def test_every_block_says_what_it_is() -> None:
    for block in all_blocks():
        assert block.language in (*COMMANDS, *OTHER_LANGUAGES), f"{block.where}: say which language this block is in"
        if block.is_commands:
            assert block.script.strip(), f"{block.where}: a block of commands without a command"
            subprocess.run(["bash", "-n"], input=block.script, text=True, check=True)
        else:
            assert block.why_not_run is None, f"{block.where}: marked as not run, but these are no commands"
            first = block.text.split()[0]
            assert first != "$", f"{block.where}: commands belong into a bash or console block"
            assert block.language != "text" or first not in PROGRAMS, (
                f"{block.where}: commands belong into a bash block"
            )


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder to work in, and an environment whose `dpr` runs a small demo; its artifacts are shared by all pages."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "bin").mkdir()
    for name, text in {"dpr": SHIM, "python3": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'}.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_", "DPR_", "OPENAI_"))}
    environment = {
        **kept,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DPR_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    _bash("dpr run demo", folder, environment)
    return folder, environment


def _bash(script: str, folder: Path, environment: dict[str, str]) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, text=True, **pipes)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_run(page: Path, shell: tuple[Path, dict[str, str]]) -> None:
    """The blocks of a page, one after the other, in one shell."""
    folder, environment = shell
    workplace = folder / page.stem
    workplace.mkdir()
    runnable = [block for block in blocks(page) if block.is_commands and not block.why_not_run]
    _bash("\n".join(f"echo '--- {block.where}'\n{block.script}" for block in runnable), workplace, environment)


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            headings = _headings(file) if anchor and file.is_file() else set()
            if not file.exists() or (anchor and anchor not in headings):
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert not broken


def _headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ +(.+?)\s*$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_paths_and_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    missing = [f"{w}: make {x[1]}" for w, x in commands() if x[:1] == ["make"] and x[1:] and x[1] not in targets]
    for page in PAGES:
        for code in inline_code(page):
            path = code.partition(":")[0]
            if path.startswith(TOP_FOLDERS) and re.fullmatch(r"[\w./-]+", path) and not (ROOT / path).exists():
                missing.append(f"{page.relative_to(ROOT)}: {path}")
    assert not missing


def test_every_command_is_in_the_table_and_every_dpr_command_exists() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {str(group.name) for group in app.registered_groups}
    used = {x[1] for _, x in commands() if x[:1] == ["dpr"] and len(x) > 1 and not x[1].startswith("-")}
    assert used <= known
    table = re.findall(r"^\| `dpr (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(table) == known


def test_settings_in_commands_parse() -> None:
    seen = 0
    for where, words in commands():
        assignments = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--set"]
        if not assignments or assignments == ["field=value"]:
            continue
        seen += 1
        if words[0] == "dpr" and words[1] in ("run", "config"):
            recipe = words[2] if words[2:3] and words[2] in recipes.names() else "demo"
            preset = words[words.index("--preset") + 1] if "--preset" in words else None
            recipes.load(recipe, assignments, preset)
        elif words[0] == "dpr" and words[1] == "rerun":
            assert any(_accepts(stage.config, assignments) for stage in STAGES.values()), f"{where}: {assignments}"
        else:
            models = [PipelineConfig, *(stage.config for stage in STAGES.values())]
            for assignment in assignments:
                field = assignment.partition("=")[0].split(".")
                assert any(_resolves([model], field) for model in models), f"{where}: {assignment}"
    assert seen


def _accepts(model: type[StageConfig], assignments: list[str]) -> bool:
    try:
        parse(model, override(_example(model), assignments), model.__name__)
    except UsageError:
        return False
    return True


def _example(model: type[StageConfig]) -> dict[str, Any]:
    needed = {"benchmark": {"type": "lab"}} if "benchmark" in model.model_fields else {}
    return model.model_validate(needed).model_dump(mode="json")


def test_dotted_fields_exist() -> None:
    sections = [name for name, field in PipelineConfig.model_fields.items() if _config_types(field.annotation)]
    wrong, seen = [], 0
    for page in PAGES:
        for code in inline_code(page):
            name = code.partition("=")[0].strip()
            field = re.fullmatch(rf"(?:{'|'.join(sections)})(?:\.[a-z_]+)+", name)
            if not field or name.endswith((".md", ".py", ".html", ".json", ".jsonl", ".yaml")):
                continue
            seen += 1
            if not _resolves([PipelineConfig], name.split(".")):
                wrong.append(f"{page.relative_to(ROOT)}: {code}")
    assert seen
    assert not wrong


def _resolves(models: list[type[Config]], path: list[str]) -> bool:
    if not path:
        return True
    fields = [model.model_fields[path[0]] for model in models if path[0] in model.model_fields]
    if not fields:
        return False
    nested = [found for field in fields for found in _config_types(field.annotation)]
    rest = path[1:]
    if rest and any(getattr(field.annotation, "__origin__", None) is dict for field in fields):
        rest = rest[1:]
    return _resolves(nested, rest)


def _config_types(annotation: Any) -> list[type[Config]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Config) else []
    return [found for argument in get_args(annotation) for found in _config_types(argument)]


TABLE = re.compile(r"<!-- defaults: (\w+) -->\n((?:\|.*\n)+)")


def tables_of_defaults() -> list[tuple[str, str, list[list[str]]]]:
    """(page, class, rows of setting, default, the paper's value) for each table of defaults."""
    found = []
    for page in PAGES:
        for name, text in TABLE.findall(page.read_text(encoding="utf-8")):
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
            found.append((page.name, name, rows))
    return found


def test_tables_of_defaults_are_the_defaults() -> None:
    tables = tables_of_defaults()
    assert {name for _, name, _ in tables} >= {
        "SFTConfig",
        "RewardConfig",
        "ReinforceConfig",
        "ReinforcePlusPlusConfig",
    }
    for page, name, rows in tables:
        module = next(m for m in (training, reward, reinforce, imitation, rollouts) if hasattr(m, name))
        config: Config = getattr(module, name)()
        values = config.identity() if isinstance(config, StageConfig) else config.model_dump(mode="json")
        told = {row[0].strip("`"): yaml.safe_load(row[1].strip("`")) for row in rows}
        expected = {k: v for k, v in values.items() if k not in ("type", "algorithm", "execution")}
        assert told == json.loads(json.dumps(expected)), f"{page}: {name}"


def test_defaults_are_the_papers_values() -> None:
    compared = 0
    for page, name, rows in tables_of_defaults():
        for setting, default, paper, *_ in rows:
            if paper.startswith("`"):
                compared += 1
                same = yaml.safe_load(paper.strip("`")) == yaml.safe_load(default.strip("`"))
                assert same, f"{page}: {name}: {setting}"
    assert compared >= 15


def test_the_measured_tables_are_there() -> None:
    regions = [
        re.search(
            rf"<!-- {name}:begin -->(.*?)<!-- {name}:end -->", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL
        )
        for name, page in (("demo", "README.md"), ("seeds", "docs/lab.md"))
    ]
    demo, seeds = (region[1] if region else "" for region in regions)
    for policy in ("SFT", "DPR", "extrapolated"):
        assert re.search(rf"^ *{policy} +\d+\.\d", demo, re.MULTILINE), (
            f"README.md: no figures of {policy} in the demo's output"
        )
    kept = demo_seeds.read(ROOT / "docs" / "seeds.json")
    assert len(kept) >= 5
    assert seeds == f"\n{demo_seeds.markdown(kept)}\n", (
        "docs/lab.md: perf/demo_seeds.py --of docs/seeds.json prints this"
    )


def test_the_table_of_variances_is_what_was_measured() -> None:
    text = (ROOT / "docs" / "methods" / "dense-path-reinforce.md").read_text(encoding="utf-8")
    told = re.search(r"<!-- gradient variance:begin -->\n(.*?)\n<!-- gradient variance:end -->", text, re.DOTALL)
    kept = json.loads((ROOT / "docs" / "gradient_variance.json").read_text(encoding="utf-8"))
    assert told
    assert told[1] == gradient_variance.markdown(kept["estimators"]), (
        "perf/gradient_variance.py --of docs/gradient_variance.json prints this"
    )


def test_the_tree_in_the_readme_exists() -> None:
    text = re.search(r"<!-- tree -->\s*```text\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert text
    folders: list[str] = []
    for line in text[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r"\s{2,}", line.strip())[0].split()
        folders[depth:] = [names[-1]]
        for name in names:
            path = "".join([*folders[:depth], name])
            assert (ROOT / path).exists(), f"README's tree: {path}"
    packages = {f"{path.name}/" for path in (ROOT / "dpr_core").iterdir() if (path / "__init__.py").is_file()}
    shown = set(re.findall(r"^ *(\S+/) ", text[1], flags=re.MULTILINE))
    assert shown >= {*TOP_FOLDERS, *packages}


def test_names_in_the_glossary_stand_in_their_files() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) > 20
    for row in rows:
        file = ROOT / row[-1].strip().strip("`")
        source = file.read_text(encoding="utf-8")
        for name in re.findall(r"`([^`]+)`", row[-2]):
            for word in re.findall(r"[A-Za-z_]\w+", name):
                assert re.search(rf"\b{word}\b", source), f"{file.relative_to(ROOT)}: {name}"


def test_metrics_in_the_docs_are_logged() -> None:
    folders = [ROOT / "dpr_core", ROOT / "tasks"]
    source = "\n".join(path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py"))
    prefixes = "train|rollout|guard|data|answer|judge|rate|probe|reward|diagnose"
    seen = 0
    for page in PAGES:
        for code in inline_code(page):
            if found := re.fullmatch(rf"(?:{prefixes})/([a-z_]+)", code):
                seen += 1
                assert re.search(rf"\b{found[1]}\b", source), f"{page.relative_to(ROOT)}: {code}"
    assert seen > 15
