"""Who has judged: what was asked for, and which models and versions of them the replies name."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from dpr_core.config.base import Config

NAMED = {"models": "model", "system_fingerprints": "system_fingerprint"}
"""What is counted, and what a reply calls it."""


def judged_by(by: Config, replies: Iterable[Mapping[str, str | int]]) -> dict[str, Any]:
    """The judge's settings, with the hash of its instructions, and how many replies each model and version wrote."""
    told = list(replies)
    counts = {name: Counter(str(each[field]) for each in told if field in each) for name, field in NAMED.items()}
    return {**by.model_dump(mode="json"), **{name: dict(sorted(count.items())) for name, count in counts.items()}}


def complaints(found: Mapping[str, Any]) -> list[str]:
    """What should be known of it: that several models or versions have judged side by side."""
    return [
        f"Several {name.replace('_', ' ')} have judged: "
        f"{', '.join(f'{each} ({count} replies)' for each, count in found[name].items())}."
        for name in NAMED
        if len(found[name]) > 1
    ]
