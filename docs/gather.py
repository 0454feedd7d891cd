"""What the site is made of besides the pages in this folder: pages that lie elsewhere in the repository, tables from
result files, and a page for each public module."""

import posixpath
import re
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import reference
import table

HERE = Path(__file__).parent
ROOT = HERE.parent

ELSEWHERE = ("*.md", "experiments/README.md", "experiments/*/README.md", "benchmarks/*.md")
FENCE = re.compile(r"(^```.*?^```\s*?$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
MEASURED = re.compile(r"<!-- measured ([\w+, -]+) -->")


def elsewhere() -> list[Path]:
    """The pages outside of this folder, as paths in the repository."""
    return sorted(path.relative_to(ROOT) for pattern in ELSEWHERE for path in ROOT.glob(pattern))


def pages() -> None:
    """Put copies of the pages that lie elsewhere into ``project/``, and a page for each public module into ``api/``."""
    for name in ("project", "api"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    for page in elsewhere():
        bring(page)
    (HERE / "api").mkdir()
    for name, text in reference.pages():
        (HERE / "api" / f"{name}.md").write_text(text)


def bring(path: Path) -> None:
    """A copy of a file of the repository, at the same place within ``project/``."""
    copy = HERE / "project" / path
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / path, copy)


def as_on_the_site(app: Any, name: str, source: list[str]) -> None:
    """Sphinx's hook: a page's text, with tables from result files, and links that work on the site."""
    page = Path(name.removeprefix("project/")) if name.startswith("project/") else Path("docs", name)
    parts = FENCE.split(source[0])
    parts[::2] = [links(MEASURED.sub(measured, part), page) for part in parts[::2]]
    source[0] = "".join(parts)


def links(text: str, page: Path) -> str:
    """A part of a page with its links, which lead to places in the repository, leading to those of the site."""

    def place(match: re.Match[str]) -> str:
        image, words, target, part = match.groups("")
        there = on_site(posixpath.normpath(posixpath.join(page.parent.as_posix(), target)))
        return f"{image}[{words}]({there}{part})" if there else words

    return LINK.sub(place, text)


def on_site(path: str) -> str | None:
    """Where a file or a folder of the repository is on the site; folders without a page of their own are not.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.startswith("docs/"):
        return f"/{path.removeprefix('docs/')}"
    if path == "examples":
        return "/examples.md"
    target = Path(path) / "README.md" if (ROOT / path / "README.md").is_file() else Path(path)
    if (ROOT / target).is_dir():
        return None
    if target not in elsewhere():
        bring(target)
    return f"/project/{target.as_posix()}"


def measured(match: re.Match[str]) -> str:
    """The rows of some results, or of a family, from the files in ``experiments/results``."""
    names = [name.strip() for name in match[1].split(",")]
    if names[0] in table.families():
        return "\n\n".join(map(table.family, names))
    found = table.results()
    rows = [table.HEADER, *(row for name in names for row in table.rows(name, found[name]))]
    machines = "; ".join(sorted({table.machine(found[name]) for name in names}))
    return f"{table.markdown(rows)}\n\nIntervals are 95 % over test tasks, of one seed. Machine: {machines}.\n"
