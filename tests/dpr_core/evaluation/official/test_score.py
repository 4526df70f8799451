import pytest

from dpr_core.evaluation.official.score import shows

OFFICIAL = "[Question]\nWhy?\n\n[The Start of Assistant's Answer]\n{}\n[The End of Assistant's Answer]"


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        (OFFICIAL.format("Yes. It is."), "Yes. It is.", True),
        (OFFICIAL.format(" Yes. \n"), "Yes.\n", True),
        (OFFICIAL.format("Yes. It is."), "Yes.", False),
        (OFFICIAL.format("Oh yes. \nyes."), "yes.", False),
        (OFFICIAL.format("No."), "Yes.", False),
        ("Why? Yes. It is.", "Yes.", True),
    ],
)
def test_the_beginning_of_a_text_is_another_text(prompt: str, text: str, expected: bool) -> None:
    assert shows(prompt, text) is expected
