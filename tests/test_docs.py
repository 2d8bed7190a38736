"""The documentation holds: links lead somewhere, every page is reached, messages are the code's own."""

import pkgutil
import re
from pathlib import Path

import pytest

import cxlib

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)")
FENCED = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)


def prose(path):
    """A page without its code."""
    return FENCED.sub("", path.read_text())


def anchors(path):
    """Where links into a page may lead: its headings as code hosts and MyST name them."""
    headings = re.findall(r"^#{1,3} (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_relative_links_lead_to_files_and_headings(page):
    broken = []
    for target, anchor in LINK.findall(prose(page)):
        if target.startswith(("http", "mailto")):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(f"{target}#{anchor}")
    assert not broken


def test_every_page_is_in_a_table_of_contents_once():
    listed = []
    for page in PAGES:
        for table in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            names = [line for line in table.splitlines() if line and not line.startswith(":")]
            listed += [(page.parent / f"{name}.md").resolve() for name in names]
    assert sorted(listed) == sorted(set(PAGES) - {DOCS / "index.md"})


def test_pictures_beside_the_pages_are_shown():
    shown = {(page.parent / target).resolve() for page in PAGES for target, _anchor in LINK.findall(prose(page))}
    shown |= {(ROOT / target).resolve() for target, _anchor in LINK.findall((ROOT / "README.md").read_text())}
    pictures = {path for suffix in ("png", "jpg") for path in DOCS.rglob(f"*.{suffix}") if "_build" not in path.parts}
    assert pictures <= shown


def test_api_reference_has_every_module_of_the_library():
    above = ("cxlib.review", "cxlib.training", "cxlib.synthbirds", "cxlib.fetch", "cxlib.__main__", "cxlib.app")
    modules = {module.name for module in pkgutil.walk_packages(cxlib.__path__, "cxlib.") if not module.ispkg}
    expected = {name for name in modules if not name.startswith(above)}
    documented = set(re.findall(r"automodule:: (\S+)", "".join(page.read_text() for page in PAGES)))
    assert expected <= documented
    assert documented <= expected | {"cxlib.explainers"}


def test_messages_of_the_troubleshooting_page_are_the_codes_own():
    """Each piece of a message between its changing parts stands in the code, whose strings may be cut in two."""
    code = "\n".join(path.read_text() for folder in ("cxlib", "stages") for path in (ROOT / folder).rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", code)
    plain = re.sub(r"\{[^{}]*\}", "…", joined)
    rows = [line for line in (DOCS / "troubleshooting.md").read_text().splitlines() if line.startswith("| `")]
    messages = [re.match(r"\| `(.*?)` +\|", row)[1] for row in rows if "(DVC's own)" not in row]
    missing = [message for message in messages if any(part.strip() not in plain for part in message.split("…"))]
    assert len(messages) > 30
    assert not missing
