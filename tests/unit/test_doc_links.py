"""Each link of the documentation leads to a file of the tree, and to a heading that it has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "findings/README.md"],
    key=lambda page: page.name,
)
README_LINES = 80
"""README is to fit on one screen; what is longer belongs in docs/."""

_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def prose(page: Path) -> str:
    """The page without its fenced blocks, whose ``#`` begin no headings."""
    return _FENCED.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The names that forges give to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_there_are(page: Path) -> None:
    missing = []
    for path, anchor in _LINK.findall(prose(page)):
        target = page if not path else (page.parent / path).resolve()
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(f"{path}#{anchor}")
    assert missing == []


def test_every_page_is_reached_from_readme_by_links() -> None:
    seen: set[Path] = set()
    ahead = [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        seen.add(page)
        linked = ((page.parent / path).resolve() for path, _ in _LINK.findall(prose(page)))
        ahead += {each for each in linked if each.suffix == ".md" and each.is_file()} - seen
    assert set(PAGES) - seen == set()


def test_readme_is_one_screen_and_names_the_two_lines_that_matter() -> None:
    text = (ROOT / "README.md").read_text()

    assert len(text.splitlines()) <= README_LINES
    assert "`make test`" in text
    lines = re.findall(r"`(_\w+)`\s+of\s+`(balloon_daemon/[\w/]+\.py)`", text)
    assert [function for function, _ in lines] == ["_low_memory", "_remove_runs"]
    for function, file in lines:
        assert f"def {function}(" in (ROOT / file).read_text()
