"""The picture of token credit: one bar and one text a token, and the committed one is well-formed."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


def test_every_token_has_its_bar_and_the_extremes_their_number() -> None:
    tokens = [("4", 0.1), ("<", -0.4), ("5", 0.0), ("<|end_of_text|>", 0.02)]
    row = {"tokens": [{"token": token, "reward": reward} for token, reward in tokens]}
    script = [sys.executable, str(DOCS / "token_credit.py")]
    drawn = subprocess.run(script, input=json.dumps(row) + "\n", capture_output=True, text=True, check=True).stdout
    picture = ET.fromstring(drawn)
    bars = [bar for bar in picture.iter(f"{SVG}rect") if bar.get("width") == "12"]
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights[1] == 2 * heights[0] > 0 == heights[2]
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert {"4", "<", "5", "⏎", "+0.10", "-0.40", "return -0.28"} <= set(texts)


def test_the_committed_picture_is_one_of_the_script() -> None:
    picture = ET.parse(DOCS / "images" / "token-credit.svg").getroot()
    assert [text.text for text in picture.iter(f"{SVG}text")].count("⏎") == 2
