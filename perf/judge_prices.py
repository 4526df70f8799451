"""The prices of judges, out of the table that litellm maintains, as the data file that the package holds.

    pip download --no-deps litellm
    python perf/judge_prices.py litellm-*.whl

writes `dpr_core/evaluation/prices.json`: dollars for a million tokens of the chat models of vendors whose addresses
speak OpenAI's chat completions. It is dated with today, so take the newest release.
"""

import argparse
import json
import re
import zipfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from dpr_core.evaluation.prices import FILE, VENDORS

TABLE = "litellm/model_prices_and_context_window_backup.json"

FIELDS = {
    "read": "input_cost_per_token",
    "written": "output_cost_per_token",
    "cached": "cache_read_input_token_cost",
    "reasoning": "output_cost_per_reasoning_token",
    "batch_read": "input_cost_per_token_batches",
    "batch_written": "output_cost_per_token_batches",
}

NO_JUDGES = re.compile(r"^ft:|audio|realtime|search|transcribe|tts|image|live|embed|moderation|robotics|computer-use")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="of litellm, as pip downloads it")
    wheel: Path = parser.parse_args().wheel
    with zipfile.ZipFile(wheel) as archive:
        table = json.loads(archive.read(TABLE))
    source = " ".join(wheel.name.split("-")[:2])
    FILE.write_text(written(prices_in(table), source, date.today()), encoding="utf-8")


def prices_in(table: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """By vendor and model: dollars for a million tokens, where both kinds of tokens have a price."""
    found: dict[str, dict[str, dict[str, float]]] = {vendor: {} for vendor in sorted(set(VENDORS.values()))}
    for name, entry in table.items():
        vendor = entry.get("litellm_provider")
        if vendor not in found or entry.get("mode") != "chat" or NO_JUDGES.search(name):
            continue
        prices = {field: round(1e6 * float(entry[column]), 6) for field, column in FIELDS.items() if entry.get(column)}
        if {"read", "written"} <= prices.keys():
            found[vendor][name.removeprefix(f"{vendor}/")] = prices
    return found


def written(prices: Mapping[str, Mapping[str, Mapping[str, float]]], source: str, day: date) -> str:
    """One model a line."""
    vendors = [
        f"  {json.dumps(vendor)}: {{\n"
        + ",\n".join(f"    {json.dumps(name)}: {json.dumps(found)}" for name, found in sorted(models.items()))
        + "\n  }"
        for vendor, models in prices.items()
    ]
    head = f'{{\n  "source": {json.dumps(source)},\n  "as_of": "{day.isoformat()}",\n'
    return head + ",\n".join(vendors) + "\n}\n"


if __name__ == "__main__":
    main()
