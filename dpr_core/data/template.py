"""Prompt template: one renderer for SFT, rollouts, scoring and evaluation."""

import json
import re
from pathlib import Path
from typing import Self

from dpr_core.config.base import parse
from dpr_core.config.data import TemplateConfig
from dpr_core.errors import DensePathError

TEMPLATE_FILE = "template.json"
BETWEEN_TURNS = "\n\n"

_MARKER = re.compile(r"\{(prompt|system)\}")


class Renderer:
    """Fills a template in one pass, so that a marker inside a prompt stays plain text."""

    def __init__(self, template: TemplateConfig) -> None:
        self.template = template

    def render(self, prompt: str, system: str = "") -> str:
        """The text of a prompt; a system prompt of nothing but spaces counts as none."""
        system = system if system.strip() else self.template.default_system
        heading = _fill(self.template.system, {"system": system}) if system else ""
        return _fill(self.template.text, {"prompt": prompt, "system": heading})

    def render_later(self, prompt: str) -> str:
        """A later turn of a conversation: after an empty line the template again, without a system prompt."""
        return BETWEEN_TURNS + _fill(self.template.text, {"prompt": prompt, "system": ""})

    def save(self, folder: Path) -> None:
        text = json.dumps(self.template.model_dump(mode="json"), ensure_ascii=False, sort_keys=True, indent=2)
        (folder / TEMPLATE_FILE).write_bytes(f"{text}\n".encode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        path = folder / TEMPLATE_FILE
        try:
            values = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DensePathError(f"cannot read the prompt template {path}: {error}") from error
        return cls(parse(TemplateConfig, values, str(path)))


def _fill(text: str, contents: dict[str, str]) -> str:
    return _MARKER.sub(lambda marker: contents.get(marker[1], marker[0]), text)
