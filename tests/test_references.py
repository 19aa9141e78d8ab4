"""Citations and links in code and documents lead to text that a reader of the repository has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PLACES = ("ray_l4", "analysis", "tests", "docs", "launch", "README.md", "CONTRIBUTING.md", "pyproject.toml")
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md")
TEXT = {".py", ".md", ".yaml", ".yml", ".sh", ".toml", ".txt", ".json", ".html", ".js", ".css"}

CITATION = re.compile(r"REFERENCE\.md((?:(?:,\s*(?:#\s+)?(?:and\s+)?)?#[\w-]+)+)")
"""A page's name and the anchors after it. Those of a list may be on the next line, in Python after a comment sign."""
ANCHOR = re.compile(r"""<a id=["']([^"']+)["']>""")
UNAVAILABLE = re.compile(r"\bSPEC (?:sections? |no\. )?\d[\d.]*|\b(?:SPEC|RAY|DESIGN)\.md|\.\./shared/(?!data\b)\w*")
"""Internal notes. The folder of data sets may be named: it is where tests look when RAY_L4_DATA is not set."""
FENCED = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1[^\n]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?<!`)(`+)(?!`)(?:(?!\n\s*\n).)*?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\)")
HEADING = re.compile(r"^ {0,3}#{1,6} +(.+?)(?: +#+)? *$", re.MULTILINE)


def texts(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the relative path and the content of every text file under ``PLACES``, except this file."""
    for place in PLACES:
        for path in sorted([root / place] if (root / place).is_file() else (root / place).rglob("*")):
            if path.suffix in TEXT and path != Path(__file__).resolve():
                yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def blanked(pattern: re.Pattern[str], text: str) -> str:
    """Return ``text`` with every match of ``pattern`` removed, but with the same number of lines."""
    return pattern.sub(lambda match: "\n" * match[0].count("\n"), text)


def slugs(page: str) -> set[str]:
    """Return the fragments of a Markdown page: explicit anchors, and headings as GitHub turns them into ids."""
    text, seen, found = blanked(FENCED, page), Counter[str](), set(ANCHOR.findall(page))
    for heading in HEADING.findall(text):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.replace("`", "").replace("*", "").lower()).strip().replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def dangling_citations(root: Path) -> list[str]:
    """Return one line for each anchor of docs/REFERENCE.md that is cited and does not exist."""
    anchors = set(ANCHOR.findall((root / "docs" / "REFERENCE.md").read_text(encoding="utf-8")))
    return [
        f"{path}:{line_of(text, match.start(1) + anchor.start())}: docs/REFERENCE.md has no anchor {anchor[1]!r}"
        for path, text in texts(root)
        for match in CITATION.finditer(text)
        for anchor in re.finditer(r"#([\w-]+)", match[1])
        if anchor[1] not in anchors
    ]


def unavailable_sources(root: Path) -> list[str]:
    """Return one line for each citation of notes that are not in the repository."""
    return [
        f"{path}:{line_of(text, match.start())}: {match[0]!r} is not in the repository"
        for path, text in texts(root)
        for match in UNAVAILABLE.finditer(text)
    ]


def broken_links(root: Path) -> list[str]:
    """Return one line for each relative link of the documents whose file or fragment does not exist."""
    found = []
    for page in (page for pattern in PAGES for page in sorted(root.glob(pattern))):
        text = blanked(CODE, blanked(FENCED, page.read_text(encoding="utf-8")))
        for match in LINK.finditer(text):
            if re.match(r"[a-z][a-z0-9+.-]*:|//", match[1]):
                continue
            name, _, fragment = match[1].partition("#")
            target = (page.parent / name).resolve() if name else page
            place = f"{page.relative_to(root).as_posix()}:{line_of(text, match.start())}"
            if not target.is_relative_to(root) or not target.exists():
                found.append(f"{place}: no file {name!r}")
            elif fragment and fragment not in slugs(target.read_text(encoding="utf-8")):
                found.append(f"{place}: {target.name} has no heading or anchor {fragment!r}")
    return found


def test_every_cited_anchor_exists() -> None:
    assert dangling_citations(REPOSITORY) == []


def test_every_anchor_is_unique() -> None:
    counts = Counter(ANCHOR.findall((REPOSITORY / "docs" / "REFERENCE.md").read_text(encoding="utf-8")))
    assert [anchor for anchor, count in counts.items() if count > 1] == []


def test_nothing_cites_notes_outside_the_repository() -> None:
    assert unavailable_sources(REPOSITORY) == []


def test_every_relative_link_leads_somewhere() -> None:
    assert broken_links(REPOSITORY) == []


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository whose reference page has the anchors ``a`` and ``b-1``."""
    (tmp_path / "docs").mkdir()
    page = '# Reference\n\n<a id="a"></a>\n## First part\n\n| <a id="b-1"></a>1 |\n'
    (tmp_path / "docs" / "REFERENCE.md").write_text(page, encoding="utf-8")
    return tmp_path


def write(root: Path, file: str, text: str) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "text", "missing"),
    [
        ("ray_l4/x.py", '"""REFERENCE.md#c."""', ["ray_l4/x.py:1 c"]),
        ("ray_l4/x.py", '"""(REFERENCE.md#a, #c)"""', ["ray_l4/x.py:1 c"]),
        ("ray_l4/x.py", '"""REFERENCE.md#a, #b-1,\n#c, #d, step 5"""', ["ray_l4/x.py:2 c", "ray_l4/x.py:2 d"]),
        ("ray_l4/x.py", "# REFERENCE.md#a,\n# #c", ["ray_l4/x.py:2 c"]),
        ("tests/x.py", '"""REFERENCE.md#a, and #c"""', ["tests/x.py:1 c"]),
        ("docs/X.md", "[1](REFERENCE.md#b-2)", ["docs/X.md:1 b-2"]),
        ("launch/x.yaml", "a: 1\n# REFERENCE.md#first-part", ["launch/x.yaml:2 first-part"]),
        ("README.md", "docs/REFERENCE.md#b", ["README.md:1 b"]),
        ("analysis/x.py", '"""REFERENCE.md#a and REFERENCE.md#b-1 (row 2); [x](#c)"""', []),
        ("ray_l4/x.py", '"""REFERENCE.md."""  # c', []),
        ("other/x.py", '"""REFERENCE.md#c"""', []),
    ],
)
def test_a_dangling_citation_is_found(root: Path, file: str, text: str, missing: list[str]) -> None:
    write(root, file, text)
    assert dangling_citations(root) == [
        f"{place}: docs/REFERENCE.md has no anchor {anchor!r}" for place, anchor in map(str.split, missing)
    ]


@pytest.mark.parametrize(
    ("file", "text", "cited"),
    [
        ("ray_l4/x.py", '"""See\nSPEC 13."""', ["ray_l4/x.py:2: 'SPEC 13.'"]),
        ("ray_l4/x.py", '"""SPEC sections 5, 8 and SPEC 20.3"""', ["'SPEC sections 5'", "'SPEC 20.3'"]),
        ("docs/X.md", "SPEC.md, RAY.md 4, DESIGN.md", ["'SPEC.md'", "'RAY.md'", "'DESIGN.md'"]),
        ("pyproject.toml", 'x = "../shared/notes"', ["'../shared/notes'"]),
        ("tests/x.py", "SPEC = ObjectiveSpec(1)\nSPECS = [SPEC, 2]", []),
        ("pyproject.toml", 'x = "../shared/data beside the project"', []),
        ("docs/X.md", "ARRAY.md", []),
    ],
)
def test_a_source_outside_the_repository_is_found(root: Path, file: str, text: str, cited: list[str]) -> None:
    write(root, file, text)
    found = unavailable_sources(root)
    assert len(found) == len(cited)
    assert all(part in line and line.startswith(file) for part, line in zip(cited, found, strict=True))


@pytest.mark.parametrize(
    ("file", "text", "broken"),
    [
        ("README.md", "[x](docs/NONE.md)", ["README.md:1: no file 'docs/NONE.md'"]),
        ("README.md", "a\n![x](x.png)", ["README.md:2: no file 'x.png'"]),
        ("docs/X.md", "[x](../../outside.md)", ["docs/X.md:1: no file '../../outside.md'"]),
        ("docs/X.md", "[x](REFERENCE.md#c)", ["docs/X.md:1: REFERENCE.md has no heading or anchor 'c'"]),
        ("docs/X.md", "# Up\n```\n# Down\n```\n[x](#down)", ["docs/X.md:5: X.md has no heading or anchor 'down'"]),
        ("docs/X.md", "## A `b`, *c* (d)\n## A\n## A\n[`x`](#a-b-c-d) [x](#a-1)", []),
        ("docs/X.md", "[x](REFERENCE.md#first-part), [x\ny](REFERENCE.md#b-1), [x](../docs/)", []),
        ("docs/X.md", "[x](https://example.org/none#c), [x](mailto:x@y.org)", []),
        ("docs/X.md", "`[x](none.md)`\n\n```\n[x](none.md)\n```\n", []),
        ("docs/X.md", "One `\n\n[x](none.md)\n\n`", ["docs/X.md:3: no file 'none.md'"]),
        ("other/X.md", "[x](none.md)", []),
    ],
)
def test_a_broken_link_is_found(root: Path, file: str, text: str, broken: list[str]) -> None:
    write(root, file, text)
    assert broken_links(root) == broken
