"""`dpr score`: token rewards of given text, for the terminal, as JSON and as a page."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dpr_core.config.training import RewardConfig
from dpr_core.errors import UsageError
from tasks.lineage import Lineage
from tasks.tracking import Store

if TYPE_CHECKING:
    from dpr_core.models.credit import GivenText


def given_texts(file: Path | None, text: tuple[str, str] | None) -> "list[GivenText]":
    """The texts to score, from the command line or from a JSONL file with `prompt`, `response` and maybe `system`."""
    from dpr_core.models.credit import GivenText

    if (file is None) == (text is None):
        raise UsageError("give either --text PROMPT RESPONSE or a JSONL file")
    if text is not None:
        return [GivenText(*text)]
    assert file is not None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text (byte {error.start})") from None
    texts = [_given(line, f"{file}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not texts:
        raise UsageError(f"{file} has no rows")
    return texts


def _given(line: str, where: str) -> "GivenText":
    from dpr_core.models.credit import GivenText

    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise UsageError(f"{where}: an object with prompt and response is expected")
    values = {name: row.get(name, "" if name == "system" else None) for name in ("prompt", "response", "system")}
    for name, value in values.items():
        if not isinstance(value, str) or (name != "system" and not value.strip()):
            raise UsageError(f"{where}: `{name}` must be a text that is not empty")
    return GivenText(**values)


def score_texts(store: Store, reference: str, texts: "list[GivenText]", html: Path | None, as_json: bool) -> None:
    """Score and print; with `html`, also write the page."""
    from rich.console import Console

    from dpr_core.models.credit import assign_credit
    from dpr_core.reporting import credit
    from tasks.progress import StageProgress

    lineage = Lineage(store)
    artifact = store.fetch(reference, stages=("reward",))
    settings = RewardConfig.model_validate(artifact.config)
    with StageProgress("scoring") as progress:
        scored = assign_credit(
            lineage.dense_reward(artifact, settings),
            lineage.tokenizer(artifact),
            lineage.renderer(artifact),
            texts,
            on_progress=progress.advance,
        )
    if html is not None:
        provenance = {"Reward": artifact.id, "Formula": settings.formula, "Reference": f"{settings.reference:g}"}
        try:
            html.write_text(credit.as_html(scored, "Token credit", provenance), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {html}: {error.strerror}") from None
    if as_json:
        for text in scored:
            print(json.dumps(credit.as_json(text), ensure_ascii=False))
        return
    console = Console()
    for text in scored:
        console.print(credit.as_terminal(text))
        total = sum(token.reward for token in text.tokens)
        console.print(f"return {total:+.4f} over {len(text.tokens)} tokens", style="dim")
    if html is not None:
        console.print(f"page: {html}", markup=False)
