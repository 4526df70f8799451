"""`dpr score`: token rewards of given texts, for the terminal, as JSON and as an HTML page."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dpr_core.config.data import ColumnsConfig
from dpr_core.config.reward import RewardConfig
from dpr_core.data.rows import BadRow, RowReader
from dpr_core.data.sources import json_lines
from dpr_core.errors import UsageError
from dpr_core.files import check_output, refuse_special
from dpr_core.text import escape_control, json_text
from tasks.artifacts.store import Store
from tasks.stages.lineage import Lineage

if TYPE_CHECKING:
    from rich.text import Text

    from dpr_core.models.dense_reward import GivenText, ScoredText

COLUMNS = ColumnsConfig(id=None, system="system", prompt="prompt", response="response", messages="messages")


def given_texts(file: Path | None, pairs: Sequence[tuple[str, str]]) -> "list[GivenText]":
    """The texts to score, from the command line or from a JSONL file with `prompt`, `response` and maybe `system`, or
    with `messages`, of which the last answer is scored."""
    from dpr_core.models.dense_reward import GivenText

    if (file is None) == (not pairs):
        raise UsageError("give either --text PROMPT RESPONSE or a JSONL file")
    if file is None:
        try:
            "".join(map("".join, pairs)).encode()
        except UnicodeEncodeError:
            raise UsageError("--text PROMPT RESPONSE: not valid Unicode; put the text into a JSONL file") from None
        return [GivenText(*pair) for pair in pairs]
    refuse_special(file)
    try:
        stream = file.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    texts = []
    with stream:
        for where, row in json_lines(stream, str(file), RowReader(COLUMNS, str(file))):
            if isinstance(row, BadRow):
                raise UsageError(
                    f"{where}: {row.reason}; a row is a JSON object with prompt, response and maybe system, or with "
                    "messages"
                )
            texts.append(GivenText(row.prompt, row.response, row.system, history=row.history))
    if not texts:
        raise UsageError(f"{file} has no rows")
    return texts


BAR = 10


def as_plain(scored: "ScoredText") -> "Text":
    """A line a token where there are no colours: its reward as a number and as a bar of + or -, and what it says."""
    from rich.text import Text

    from dpr_core.reporting.token_credit import significant

    most = max((abs(token.reward) for token in scored.tokens if math.isfinite(token.reward)), default=0) or 1
    lines = ["    reward             token"]
    for token in scored.tokens:
        share = token.reward / most if math.isfinite(token.reward) else 0
        bar = ("+" if share > 0 else "-") * round(BAR * abs(share))
        lines.append(f"{significant(token.reward):>10}  {bar:<{BAR}} {escape_control(json_text(token.token))}")
    return Text("\n".join(lines), no_wrap=True)


def score_texts(
    store: Store,
    reference: str,
    texts: "list[GivenText]",
    html: Path | None,
    documents: Literal["one", "lines"] | None,
) -> None:
    """Score and print: one document of JSON, a line of JSON for each, or None for people; with `html`, also a page."""
    from rich.console import Console
    from rich.text import Text

    from dpr_core.models.dense_reward import assign_credit
    from dpr_core.reporting import token_credit
    from tasks.running.progress import StageProgress

    if html is not None:
        check_output(html)
    lineage = Lineage(store)
    artifact = store.fetch(reference, stages=("reward",))
    execution = RewardConfig.model_validate(artifact.config).execution
    definition = lineage.definition(artifact)
    with StageProgress("scoring") as progress:
        scored = assign_credit(
            lineage.dense_reward(artifact, execution),
            lineage.tokenizer(artifact),
            lineage.renderer(artifact),
            texts,
            on_progress=progress.advance,
        )
    if html is not None:
        definition_rows = definition.provenance()
        provenance = {"Reward": artifact.id, **definition_rows}
        try:
            html.write_text(token_credit.as_html(scored, "Token credit", provenance), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {html}: {error.strerror}") from None
    if documents is not None:
        found = [token_credit.as_json(text) for text in scored]
        for document in found if documents == "lines" or len(found) == 1 else [found]:
            print(json_text(document))
        return
    console = Console()
    for text in scored:
        console.print(token_credit.as_terminal(text) if console.color_system else as_plain(text))
        total = token_credit.significant(sum(token.reward for token in text.tokens))
        console.print(Text(f"return {total} over {len(text.tokens)} tokens", "dim"))
    if html is not None:
        console.print(Text(f"page: {html}"))
