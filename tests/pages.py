"""Runs what the documentation says: every block of a page, in order, as its reader would.

`python -m tests.pages PAGE [PAGE ...]` runs pages at full length, on real data where they ask for some, and writes what
was printed into the blocks of output that follow commands and code.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from innerloop import cli
from innerloop.recipe import config
from tests import forked

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"^(<!-- before: (?P<before>\w+)(?P<data>, with data)? -->\n)?```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
BUILT = ("docs/project/", "docs/api/", "docs/_build/")
DIRECTIVES = ("{toctree}", "{literalinclude}", "{note}", "{warning}")
"""Blocks that are instructions to Sphinx, which its own test reads."""
NUMBER = re.compile(r"(?<![\w.-])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")


class NoRuleError(AssertionError):
    """A block or a command that nothing here knows how to check."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        kind: what follows the fence: a language, or nothing.
        text: the lines between.
        line: of the first of them.
        span: of the text in the page.
        before: the other library that the code is for, if any.
        data: whether that code would download data.
    """

    kind: str
    text: str
    line: int
    span: tuple[int, int]
    before: str | None = None
    data: bool = False


def pages() -> list[Path]:
    """The pages whose blocks are checked, but for copies that building the site makes."""
    found = (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
    names = sorted(path.relative_to(ROOT).as_posix() for path in found)
    return [ROOT / name for name in names if not name.startswith(BUILT)]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return blocks_of(page.read_text())


def blocks_of(text: str) -> list[Block]:
    """Those of its text."""
    return [
        Block(
            m["kind"].split(" ")[0],
            m["text"],
            text[: m.start("text")].count("\n") + 1,
            m.span("text"),
            m["before"],
            bool(m["data"]),
        )
        for m in BLOCK.finditer(text)
    ]


# -- how a page is shortened ------------------------------------------------------------------------------------------

SHORTER = {
    "train.iterations": 3,
    "train.tasks": 2,
    "train.val_tasks": 2,
    "train.validate_every": 1,
    "evaluate.num_tasks": 2,
}
"""What trainings are cut to in the tests, over what a command says itself."""
SMALLER = {
    "model.width": {"model.width": 4},
    "model.filters": {"model.filters": 4},
    "learner.episodes": {"learner.episodes": 2, "tasks.eval_episodes": 2, "tasks.horizon": 5},
    "tasks.cases": {"tasks.cases": 4},
}
"""And what else is set in the tests where a recipe has some value."""
WORDS = {
    "RECIPE": "sinusoid-maml", "RUN": "runs/sinusoid-maml-seed0", "HOST:29500": "localhost:29500", "PATH": "checkout",
}  # fmt: skip
"""What stands for the words that a reader replaces; DIR is a folder of pictures."""
ARGUMENTS = {"--trials": "2", "--jobs": "1", "--tasks": "2", "--ensemble": "2"}
"""Arguments of commands that are others in the tests."""
LEFT_OUT = {"--storage"}
"""Those that need a server."""
QUICKER = {"report": ("--record-only",), "plot": ("--kind", "inner")}
"""What the quick test adds to commands that draw; the slow one does not."""
SERVERS = {"demo"}
"""Commands that would not end: their options are read, with ``--help`` behind them."""
LONG = {"daml-push", "half-cheetah-direction-quick"}
"""Recipes that take a simulator and its pictures: in the quick test they are read, in the slow one they are trained."""


@dataclass
class Page:
    """A page that is being run.

    Args:
        path: of the page.
        replaced: what is replaced in its Python code, to make it shorter; all of it must be there.
        setting: Python code that runs before it.
        short: whether commands are cut as above.
        long: whether what takes long all the same runs, too.
        pictures: the folder that ``DIR`` stands for.
        text: of the page, if not what the file has.
    """

    path: Path
    replaced: Mapping[str, str] = field(default_factory=dict)
    setting: str = ""
    short: bool = True
    long: bool = False
    pictures: Path = Path("DIR")
    text: str = ""
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    printed: list[tuple[Block, Block, str]] = field(default_factory=list)

    def run(self) -> None:
        """Every block in order, in the working directory.

        Raises:
            NoRuleError: a block of a kind that nothing is known of.
        """
        exec(self.setting, self.names)
        text = self.text or self.path.read_text()
        for one in self.replaced:
            assert one in text, f"{one!r} is to be replaced, but is not in {self.path.name}"
        last, every = None, blocks_of(text)
        for block, after in zip(every, [*(later.kind for later in every[1:]), ""], strict=False):
            if block.kind == "text" and last:
                self.printed.append((block, *last))
            elif block.kind == "sh" and not self.short and after != "text":
                last = None  # at full length, only what is shown is worth the wait
            elif block.kind in ("python", "sh", "toml"):
                last = block, self._printed_by(block)
            elif block.kind and block.kind not in DIRECTIVES:
                raise NoRuleError(f"{self.path.name}:{block.line}: nothing is known of blocks of {block.kind!r}")

    def _printed_by(self, block: Block) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            {"python": self._python, "sh": self._sh, "toml": self._toml}[block.kind](block)
        return out.getvalue()

    def _python(self, block: Block) -> None:
        code, name = block.text, f"{self.path.relative_to(ROOT)}"
        for one, other in self.replaced.items():
            code = code.replace(one, other)
        compiled = compile("\n" * (block.line - 1) + code, name, "exec")
        if block.data or (block.before and not importlib.util.find_spec(block.before)):
            return
        if named := re.match(r"# (\w+\.py)\n", code):
            Path(named[1]).write_text(code)
        exec(compiled, self.names)

    def _toml(self, block: Block) -> None:
        config.parse(block.text)
        if named := re.match(r"# (\S+\.toml)\n", block.text):
            Path(named[1]).write_text(block.text)

    def _sh(self, block: Block) -> None:
        for line in block.text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                rule = next((rule for first, rule in RULES.items() if words[0] == first), None)
                if rule is None:
                    raise NoRuleError(f"{self.path.name}:{block.line}: nothing is known of the command {words[0]!r}")
                rule(self, [WORDS.get(word, word) if self.short else word for word in words])


# -- commands ---------------------------------------------------------------------------------------------------------


def innerloop(page: Page, words: list[str]) -> None:
    """Runs, in this process."""
    if words[1] in SERVERS:
        assert cli.run([*words[1:], "--help"]) == 0, f"{page.path.name}: there is no {' '.join(words)}"
        return
    if page.short and not page.long and (named := [recipe for recipe in LONG if recipe in " ".join(words)]):
        config.load_recipe(named[0])
        return
    words = [part for word in words[1:] for part in _expanded(word)]
    words = [str(page.pictures) if word == "DIR" else word for word in words]
    if page.short:
        words = [*_cut(words), *([] if page.long or "--kind" in words else QUICKER.get(words[0], ()))]
    if not page.short and "--data" in words and page.pictures == Path("DIR"):
        del words[words.index("--data") : words.index("--data") + 2]
    if words[0] == "train":
        _make_room(words)
    elif words[0] != "sweep":
        _train_what_is_missing(page, words)
    code = cli.run(words)
    assert code == 0, f"{page.path.name}: innerloop {' '.join(words)} ended with {code}"


def _expanded(word: str) -> list[str]:
    """A pattern of runs, as a shell has it."""
    return sorted(map(str, Path().glob(word))) or [word] if word.startswith("runs/") else [word]


def _cut(words: list[str]) -> Iterator[str]:
    """A command with what makes it short."""
    rest = iter(words)
    for word in rest:
        if word in LEFT_OUT:
            next(rest)
        elif word in ARGUMENTS:
            next(rest)
            yield from (word, ARGUMENTS[word])
        else:
            yield word
    if words[0] in ("train", "sweep"):
        recipe = config.load_recipe(words[1])
        has = {f"{section}.{key}" for section in ("model", "learner", "tasks") for key in recipe[section]}
        for values in (SHORTER, *(values for key, values in SMALLER.items() if key in has)):
            for key, value in values.items():
                yield from ("--set", f"{key}={value}")
    if words[0] == "train":
        yield "--quiet"


def _folder(words: list[str]) -> Path:
    """Of the run that a command trains."""
    seed = words[words.index("--seed") + 1] if "--seed" in words else "0"
    return Path(words[words.index("--run") + 1] if "--run" in words else f"runs/{Path(words[1]).stem}-seed{seed}")


def _make_room(words: list[str]) -> None:
    """A page's examples of `train` are alternatives, each of which begins anew."""
    if "--resume" not in words:
        shutil.rmtree(_folder(words), ignore_errors=True)


def _train_what_is_missing(page: Page, words: list[str]) -> None:
    """A page speaks of runs that its reader has."""
    for word in words:
        if (named := re.fullmatch(r"runs/([\w.+-]+)-seed(\d|\?)", word)) and not Path(word).exists():
            innerloop(page, ["innerloop", "train", named[1], "--data", "DIR", *_seed(named[2])])
            words[words.index(word)] = word.replace("?", "0")


def _seed(number: str) -> list[str]:
    return [] if number in "0?" else ["--seed", number]


def torchrun(page: Page, words: list[str]) -> None:
    """Its own options are read by its own parser. A recipe is trained by this process alone; a script that a block made
    runs in the slow test."""
    from torch.distributed.run import get_args_parser

    found = get_args_parser().parse_args(words[1:])
    rest = [word for word in (found.training_script, *found.training_script_args) if word != "--"]
    if rest[0] == "innerloop":
        innerloop(page, rest)
        return
    assert Path(rest[0]).is_file(), f"torchrun is to run {rest[0]}, which no block of {page.path.name} makes"
    if page.long or not page.short:
        subprocess_of([sys.executable, "-m", "torch.distributed.run", *words[1:]])


def subprocess_of(words: list[str]) -> None:
    print(subprocess.run(words, capture_output=True, text=True, check=True).stdout, end="")


def python(page: Page, words: list[str]) -> None:
    """A script that a block made runs; of those of the repository, which take long, options are looked for."""
    if words[1] == "-m":
        path = ROOT / f"{words[2].replace('.', '/')}.py"
    elif Path(words[1]).is_file():
        subprocess_of(forked.python(*words[1:]))
        return
    else:
        path = ROOT / words[1]
    assert path.is_file(), f"{page.path.name}: there is no {path.relative_to(ROOT)}"
    source = "\n".join(part.read_text() for part in path.parent.glob("*.py"))
    for option in (word for word in words if word.startswith("--")):
        assert option.removeprefix("--").replace("-", "_") in source.replace("-", "_"), f"{path.name} has no {option}"
    if path.name == "run.py" and path.parent.name == "experiments":
        assert words[2] in config.parse((path.parent / "families.toml").read_text()), f"there is no family {words[2]}"


def make(page: Page, words: list[str]) -> None:
    """The target is there."""
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in words[1:] if "=" not in word} <= set(targets), f"{page.path.name}: no target in {words}"


def pip(page: Page, words: list[str]) -> None:
    """The extras are there."""
    extras = config.parse((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = [name for word in words for match in re.findall(r"\[(.*)\]", word) for name in match.split(",")]
    assert words[1] == "install"
    assert {*asked} <= {*extras}, f"{page.path.name}: no such extra in {words}"


def export(page: Page, words: list[str]) -> None:
    """Named in the source; not set, since the tests have data of their own."""
    for word in words[1:]:
        name = word.partition("=")[0]
        assert any(name in path.read_text() for path in (ROOT / "src").rglob("*.py")), f"nothing reads {name}"


def tensorboard(page: Page, words: list[str]) -> None:
    """A server, which would not end: it is installed, and the folder is there."""
    assert importlib.util.find_spec("tensorboard")
    assert Path(words[words.index("--logdir") + 1]).is_dir()


RULES: dict[str, Callable[[Page, list[str]], None]] = {
    "innerloop": innerloop,
    "torchrun": torchrun,
    "python": python,
    "make": make,
    "pip": pip,
    "export": export,
    "tensorboard": tensorboard,
}
"""How a command is checked, by its first word."""


# -- what was printed -------------------------------------------------------------------------------------------------


def same_words(told: str, printed: str) -> bool:
    """Whether two outputs are the same but for their numbers."""
    return [NUMBER.sub("0", told).split()] == [NUMBER.sub("0", printed).split()]


def near(told: str, printed: str, tolerance: float) -> bool:
    """Whether numbers of two outputs of the same words agree, to a part of the larger, or to 0.05 if they are small."""
    pairs = zip(*(map(_value, NUMBER.findall(text)) for text in (told, printed)), strict=True)
    return all(abs(a - b) <= max(tolerance * max(abs(a), abs(b)), 0.05) for a, b in pairs)


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def write(page: Path) -> None:
    """Run a page at full length, and write what it printed into it."""
    text = page.read_text()
    found = Page(page, short=False, text=text)
    os.chdir(tempfile.mkdtemp())
    found.run()
    if page.read_text() != text:
        raise ValueError(f"{page} was changed while it ran: run it again")
    for block, _, printed in reversed(found.printed):
        start, end = block.span
        text = text[:start] + printed.rstrip() + "\n" + text[end:]
    page.write_text(text)


if __name__ == "__main__":
    for name in [Path(word).resolve() for word in sys.argv[1:]]:
        os.environ.setdefault("INNERLOOP_DATA", str(ROOT.parent / "shared" / "data"))
        write(name)
