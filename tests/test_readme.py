"""What the README shows runs, and what it points to exists."""

import re
from pathlib import Path

import pytest

from nextham import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONVENTIONS.md",
    ROOT / "bench" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXT = PAGES[0].read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
CALLS = re.findall(r"(?:^\$ |`)nextham ([a-z0-9]+(?: (?:build|check))?)([^`\n#]*)", TEXT, re.MULTILINE)
OPTIONS = {command: set() for command, _ in CALLS}
for command, rest in CALLS:
    OPTIONS[command] |= set(re.findall(r"--[a-z0-9-]+", rest))


def anchors(page):
    """GitHub's names of the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_of_the_readme_runs(number):
    exec(compile(PYTHON[number], f"README.md, example {number}", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    without_code = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(path), f"{page.name}: {target}"


@pytest.mark.parametrize("command", OPTIONS)
def test_commands_and_options_of_the_readme_exist(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([*command.split(), "--help"])
    help_text = capsys.readouterr().out
    assert left.value.code == 0
    assert sorted(option for option in OPTIONS[command] if option not in help_text) == []


def test_something_was_found():
    assert len(PYTHON) >= 2 and len(OPTIONS) >= 10 and sum(map(len, OPTIONS.values())) >= 15
