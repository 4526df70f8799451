import pytest

from dpr_core.reporting.sections import ArtifactLinks, links_section, web_address

SFT = ArtifactLinks("SFT", "lab", {"policy": "1" * 32, "answers": "2" * 32})
DPR = ArtifactLinks("<DPR>", "lab", {"policy": "3" * 32, "answers": "4" * 32, "judgment": "5" * 32})


def test_every_artifact_has_its_command_and_its_whole_id() -> None:
    shown = links_section([SFT, DPR], lambda run_id: None)
    assert shown.html.count("<code") == 5
    assert f'<code class="copy" title="{"5" * 32}">dpr show 55555555</code>' in shown.html
    assert "<a" not in shown.html
    assert "&lt;DPR&gt;" in shown.html
    assert "| \\<DPR\\> | lab | dpr show 33333333 | dpr show 44444444 | dpr show 55555555 |" in shown.markdown
    assert "](" not in shown.markdown


def test_a_server_is_linked_to() -> None:
    shown = links_section([DPR], lambda run_id: f"https://mlflow.example/#/experiments/1/runs/{run_id}")
    url = f"https://mlflow.example/#/experiments/1/runs/{'5' * 32}"
    assert f'<a href="{url}" title="{"5" * 32}" rel="noreferrer"><code>55555555</code></a>' in shown.html
    assert f"- [judgment of \\<DPR\\> on lab](<{url}>)" in shown.markdown


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("http://host:5000/#/runs/1", "http://host:5000/#/runs/1"),
        ("https://me:secret@host/x", "https://host/x"),
        ("https://me:***@host/x", "https://host/x"),
        ("javascript:alert(1)", None),
        ("file:///home/me/mlflow.db", None),
        ("sqlite:////home/me/mlflow.db", None),
        ("https:///x", None),
        ('https://host/"onclick="x', None),
        ("https://host/>x", None),
        (None, None),
    ],
)
def test_only_addresses_of_the_web_are_linked_to_and_without_passwords(url: str | None, safe: str | None) -> None:
    assert web_address(url) == safe
