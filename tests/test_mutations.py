"""No run directory, saved model or recipe makes a command end in a traceback, hang, take all memory, write anywhere
else, or lose what there is to say of others. An error is one line that names the file."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

from innerloop import cli
from innerloop.cli.app import EXPECTED
from innerloop.common import streams
from innerloop.recipe import config
from innerloop.use import Classifier, Pretrained

from .mutations import RUNS, Mutation
from .mutations_recipes import BASE, RECIPE, RECIPES, SPACE
from .mutations_saved import FILE, SAVED

Image = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")

SECONDS = 600
"""After which a command counts as hanging; each takes a second or two."""
LOOK, ENOUGH = 20, 20
"""Seconds between two looks at whether a command trains, and lines of a record that show it."""
NOBODY = 65534
MEMORY = 2**30
"""Bytes that a command may take beyond what the process has."""
SHORT = [
    "train.iterations=4", "train.validate_every=2", "train.checkpoint_every=2", "train.val_tasks=2", "train.tasks=2",
    "train.log_every=1", "evaluate.num_tasks=2",
]  # fmt: skip
SETS = [*SHORT, "model.sizes=[1, 4, 1]", "learner.steps=2"]
TRAIN = ["train", "sinusoid-maml", "--quiet", *(word for setting in SETS for word in ("--set", setting))]
RECORD_KINDS = [word for kind in ("inner", "query-grid", "final-support", "meta-train", "validation", "rates")
                for word in ("--kind", kind)]  # fmt: skip
PICTURES = ["model.width=2", "learner.preset=meta-sgd"]
RECIPES_USED = {
    "sinusoid-maml": ["model.sizes=[1, 4, 1]"],
    "linear-maml": [],
    "oscillator-maml": [],
    "strokes-5w1s-maml": ["model.width=2", "learner.preset=maml-plus-plus"],
    "sinusoid-two-phase": ["learner.preset=meta-sgd", "learner.steps=2"],
    "daml-2d": ["model.filters=2", "model.hidden=[2]", "learner.channels=2"],
    "navigation-maml-trpo": ["tasks.horizon=5", "learner.episodes=2", "tasks.eval_episodes=2"],
}
"""Recipes that need no data, and what makes them small."""


class Case(NamedTuple):
    """One mutated folder, and where commands run and write.

    Attributes:
        subject: the mutated folder.
        out: where commands write.
        source: what was made once for all cases.
    """

    subject: Path
    out: Path
    source: Path


class Command(NamedTuple):
    """What is done with a case.

    Attributes:
        name: for messages.
        run: returns the exit code.
        writes: where it may write, besides `Case.out`.
    """

    name: str
    run: Callable[[], int]
    writes: Path | None = None


def line(*words: object, writes: Path | None = None) -> Command:
    """A command line."""
    return Command(str(words[0]), lambda: cli.run([str(word) for word in words]), writes)


def call(name: str, subject: Path, function: Callable[[], object]) -> Command:
    """A call of Python, whose expected errors are printed as those of a command line. Only a path has line feeds."""

    def run() -> int:
        try:
            function()
        except EXPECTED as error:
            several = "\n" in str(error).replace(str(subject), "")
            streams.err(f"several lines: {error}" if several else f"error: {streams.shown(error)}")
            return 1
        return 0

    return Command(name, run)


# -- the three kinds --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A run to change, and another."""
    folder = tmp_path_factory.mktemp("runs")
    assert cli.run([*TRAIN, "--set", "learner.preset=meta-sgd", "--run", str(folder / "subject")]) == 0
    assert cli.run([*TRAIN, "--seed", "1", "--run", str(folder / "other")]) == 0
    return folder


def of_runs(case: Case) -> list[Command]:
    run, out, other = case.subject, case.out, case.source / "other"
    resume = [*TRAIN, "--set", "train.iterations=5", "--run", run, "--resume", "--accept-changes"]
    return [
        line("report", "--record-only", "-o", out / "report.html", "--", other, run),
        line("plot", *RECORD_KINDS, "-o", out, "--", run),
        line("plot", "--kind", "adaptation", "--kind", "functions", "-o", out, "--", run),
        line("report", "-o", out / "report.html", "--", other, run),
        line("watch", "--", run),
        line("evaluate", "--json", "--", run),
        line("demo", "--no-browser", "--", run),
        line(*resume, writes=run),
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A saved folder with an adapted classifier in it, and pictures."""
    for name in ("sklearn", "scipy", "safetensors"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("saved")
    sets = [word for setting in [*SHORT, *PICTURES] for word in ("--set", setting)]
    assert cli.run(["train", "strokes-5w1s-maml", "--quiet", *sets, "--run", str(folder / "run")]) == 0
    Pretrained.load(folder / "run").save_pretrained(folder / "subject")
    for number, name in enumerate("abc"):
        (folder / "mine" / name).mkdir(parents=True)
        image = Image.new("L", (40, 40), 255)
        image.paste(0, (5, 5 + 10 * number, 35, 10 + 10 * number))
        image.paste(0, (5 + 10 * number, 5, 8 + 10 * number, 35))
        for shot in range(2):
            image.rotate(4 * shot, fillcolor=255).save(folder / "mine" / name / f"{shot}.png")
    words = ["adapt", str(folder / "subject"), "--support", str(folder / "mine")]
    assert cli.run([*words, "--save", str(folder / "subject" / FILE)]) == 0
    return folder


def of_saved(case: Case) -> list[Command]:
    folder, out, mine = case.subject, case.out, case.source / "mine"
    file = folder / FILE
    return [
        line("adapt", "--support", mine, "--query", mine, "-o", out / "a.csv", "--save", out / "a.st", "--", folder),
        line("adapt", "--query", mine, "--json", "--", file),
        line("demo", "--no-browser", "--", folder),
        line("evaluate", "--", folder),
        call(
            "Pretrained.load, save_pretrained", folder, lambda: Pretrained.load(folder).save_pretrained(out / "again")
        ),
        call("from_pretrained", folder, lambda: Pretrained.from_pretrained(folder).tested()),
        call("Classifier.load, save", folder, lambda: Classifier.load(file).save(out / "b.st")),
        line("report", "--record-only", "-o", out / "report.html", "--", case.source / "run", folder),
    ]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> Path:
    """A folder for each of some recipes that need no data."""
    folder = tmp_path_factory.mktemp("recipes")
    for number, (name, sets) in enumerate(RECIPES_USED.items()):
        subject = folder / f"subject-{number}"
        subject.mkdir()
        (subject / BASE).write_text(config.dumps(config.load_recipe(name, [*SHORT, *sets])))
        lines = [f'extends = "{BASE}"', 'description = "mine"', "[learner]", "steps = 1", "[train]", "tasks = 2"]
        (subject / RECIPE).write_text("\n".join(lines))
        (subject / SPACE).write_text("learner.steps = {low = 1, high = 2}\nlearner.lr = {choices = [0.1, 0.01]}\n")
    return folder


def of_recipes(case: Case) -> list[Command]:
    known = (BASE, SPACE, "folder.toml", "pipe.toml", "a.toml")
    others = [path for path in sorted(case.subject.iterdir()) if path.name not in known and "chain" not in path.name]
    recipe = case.subject / RECIPE
    recipe = recipe if os.path.lexists(recipe) or not others else others[0]
    sweep = ["sweep", "--space", case.subject / SPACE, "--trials", "1", "--folder", case.out / "sweep"]
    return [
        line("train", "--dry-run", "--", recipe),
        call("load_recipe", case.subject, lambda: config.load_recipe(recipe)),
        line("train", "--quiet", *(() if recipe.suffix == ".toml" else ("--run", case.out / "run")), "--", recipe),
        line(*sweep, "--", recipe),
    ]


# -- checking ---------------------------------------------------------------------------------------------------------


def mutate(source: Path, folder: Path, mutations: Sequence[Mutation], seed: int) -> tuple[Path, str]:
    """A folder of which one thing or two are odd, beside a home with something in it."""
    rng = random.Random(seed)
    subject = rng.choice(sorted(source.glob("subject*")))
    shutil.copytree(subject, folder / "subject")
    home = folder / "home"
    home.mkdir()
    (home / ".profile").write_text("mine")
    os.mkfifo(home / "pipe")
    said = [subject.name]
    chosen = rng.sample(mutations, rng.choice([1, 1, 2]))
    for number, mutation in enumerate(sorted(chosen, key=mutations.index)):  # those first that read what they change
        if (folder / "subject").exists():
            with suppress(*((Exception,) if number else ())):  # the first can leave nothing to change for the second
                said.append(mutation(folder / "subject", rng))
    (path,) = (path for path in folder.iterdir() if path.name != "home")
    return path, ", ".join(said)


def snapshot(folder: Path) -> dict[str, object]:
    """All that lies in a folder; of large files no more than the size and the time."""
    found: dict[str, object] = {}
    for entry in os.scandir(folder):
        about = entry.stat(follow_symlinks=False)
        if entry.is_symlink():
            found[entry.path] = Path(entry.path).readlink()
        elif entry.is_dir():
            found |= {entry.path: "folder", **snapshot(Path(entry.path))}
        elif not stat.S_ISREG(about.st_mode):
            found[entry.path] = stat.S_IFMT(about.st_mode)
        else:
            small = about.st_size < 2**20
            found[entry.path] = Path(entry.path).read_bytes() if small else (about.st_size, about.st_mtime_ns)
    return found


class Hanging(BaseException):
    """A command takes too long."""


class Training(BaseException):
    """A command trains, as a recipe says that lost what made it short."""


@contextmanager
def limits(places: Sequence[Path]) -> Iterator[None]:
    """Within, a command that hangs is stopped, and one that wants too much memory gets none.

    Args:
        places: where the runs are that it may train.
    """
    end = time.monotonic() + SECONDS

    def stop(*_: object) -> None:
        records = (path for place in places for path in place.rglob("metrics.jsonl") if path.is_file())
        if any(record.read_bytes().count(b'{"kind": "train"') > ENOUGH for record in records):
            raise Training
        if time.monotonic() > end:
            raise Hanging

    before = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, LOOK, LOOK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def names(text: str, path: Path) -> bool:
    """Whether a message names a path, or something in it; however odd letters are escaped."""
    spelled = {str(path), streams.shown(path), repr(str(path))[1:-1], streams.shown(repr(str(path))[1:-1])}
    return any(one in text for one in spelled)


class Checker:
    """Mutates folders and runs commands on them."""

    def __init__(self, tmp_path: Path, capsys, monkeypatch) -> None:
        self.tmp_path, self.capsys, self.monkeypatch = tmp_path, capsys, monkeypatch
        self.slowest = (0.0, "")
        monkeypatch.setattr(import_module("innerloop.demo.serving"), "serve", lambda *_, **__: None)

    def check(self, source: Path, mutations: Sequence[Mutation], commands, seed: int, which: slice) -> None:
        folder, out, here = (self.tmp_path / f"{seed}{part}" for part in ("", "-out", "-here"))
        folder.mkdir()
        subject, said = mutate(source, folder, mutations, seed)
        self.monkeypatch.setenv("HOME", str(folder / "home"))
        self.monkeypatch.setenv("MPLCONFIGDIR", str(self.tmp_path / "matplotlib"))
        for command in commands(Case(subject, out, source))[which]:
            for path in (out, here):
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
            self.monkeypatch.chdir(here)
            before = snapshot(folder)
            code, told = self.run(command, f"seed {seed} ({said}), {command.name}", (here, out))
            about = f"seed {seed} ({said}), {command.name}, exit code {code}: {told}"
            after = snapshot(folder)
            ours = f"{command.writes}/"
            odd = [path for path in {**before, **after} if before.get(path) != after.get(path)]
            assert not [path for path in odd if not path.startswith(ours)], about
            assert {path.name for path in here.iterdir()} <= ({"runs"} if command.name == "train" else set()), about
            self.require_one_line(command, code, told, about, subject)
            if command.name == "report":  # what is odd in one run does not lose the other
                assert code == 0, about
                assert "other" in (out / "report.html").read_text() or source.name == "saved", about
        self.monkeypatch.chdir(self.tmp_path)
        for path in (folder, out, here):
            shutil.rmtree(path)

    def run(self, command: Command, about: str, places: Sequence[Path] = ()) -> tuple[int, str]:
        self.capsys.readouterr()
        start = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with warnings.catch_warnings(), limits(places):
            warnings.simplefilter("ignore")
            try:
                code = command.run()
            except Training:
                code = 0
            except (Exception, Hanging) as error:
                raise AssertionError(f"{about}: {type(error).__name__}: {error}") from error
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
        assert grown < MEMORY / 2, f"{about}: {grown / 2**20:.0f} MiB"
        self.slowest = max(self.slowest, (time.perf_counter() - start, about))
        return code, self.capsys.readouterr().err

    def require_one_line(self, command: Command, code: int, told: str, about: str, subject: Path) -> None:
        """An error is one line that names the file."""
        assert code in (0, 1, 2), about
        assert "Traceback" not in told, about
        errors = [one for one in told.splitlines() if one.startswith("error: ")]
        assert len(errors) == (code == 1), about
        assert not errors or names(errors[0], subject), about


@pytest.fixture
def checker(tmp_path, capsys, monkeypatch) -> Checker:
    return Checker(tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize("seed", range(40))
def test_runs(runs, checker, seed):
    checker.check(runs, RUNS, of_runs, seed, slice(seed % 8, seed % 8 + 1))


@pytest.mark.parametrize("seed", range(20))
def test_saved_models(saved, checker, seed):
    checker.check(saved, SAVED, of_saved, seed, slice(seed % 8, seed % 8 + 1))


@pytest.mark.parametrize("seed", range(20))
def test_recipes(recipes, checker, seed):
    checker.check(recipes, RECIPES, of_recipes, seed, slice(seed % 4, seed % 4 + 1))


@contextmanager
def unprivileged() -> Iterator[None]:
    """Within, this process is not root, who may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that anybody can enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="innerloop-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [("runs", "metrics.jsonl"), ("runs", "config.toml"), ("runs", "results.json"), ("runs", "checkpoints"),
     ("runs", "."), ("saved", "config.json"), ("saved", "model.safetensors"), ("saved", "README.md"), ("saved", FILE),
     ("saved", "."), ("recipes", RECIPE), ("recipes", BASE), ("recipes", SPACE), ("recipes", ".")],
)  # fmt: skip
def test_files_that_may_not_be_read(request, checker, open_folder, monkeypatch, kind, name):
    source = shutil.copytree(request.getfixturevalue(kind), open_folder / "source")
    case = Case(min(source.glob("subject*")), open_folder / "out", source)
    case.out.mkdir()
    of_kind = {"runs": of_runs, "saved": of_saved, "recipes": of_recipes}[kind]
    warm = Case(Path(shutil.copytree(case.subject, open_folder / "warm")), open_folder / "warm-out", source)
    warm.out.mkdir()
    monkeypatch.chdir(warm.out)
    for command in of_kind(warm):  # root alone may be able to read the modules that these import
        assert checker.run(command, command.name)[0] in (0, 1)
    every = [open_folder, *open_folder.rglob("*")]
    if os.geteuid() == 0:
        for path in every:
            os.chown(path, NOBODY, -1)
    monkeypatch.chdir(case.out)
    monkeypatch.setenv("HOME", str(case.out))
    commands = of_kind(case)
    (case.subject / name).chmod(0)
    try:
        for command in commands:
            with unprivileged():
                code, told = checker.run(command, command.name)
            checker.require_one_line(command, code, told, f"{command.name}, exit code {code}: {told}", case.subject)
            assert command.name != "report" or code == 0, told
    finally:
        (case.subject / name).chmod(0o700)


BREAKING: dict[str, Callable[[Path], object]] = {
    "cut": lambda run: os.truncate(run / "metrics.jsonl", 40),
    "pipe": lambda run: ((run / "metrics.jsonl").unlink(), os.mkfifo(run / "metrics.jsonl")),
    "huge": lambda run: os.truncate(run / "results.json", 2**40),
    "device": lambda run: ((run / "config.toml").unlink(), (run / "config.toml").symlink_to("/dev/zero")),
    "typed": lambda run: (run / "results.json").write_text('{"test": {"metric": 3}}'),
    "gone": lambda run: shutil.rmtree(run),
}
"""Ways to break a run, each of which leaves nothing to show."""


@pytest.mark.parametrize("ways", [("cut", "pipe", "huge"), ("device", "typed", "gone")])
def test_a_report_of_ten_runs_of_which_three_are_broken_shows_seven(runs, tmp_path, capsys, ways):
    """With what takes the models; another run has weights that are damaged, and is shown without them."""
    every = [Path(shutil.copytree(runs / "subject", tmp_path / f"run-{number}")) for number in range(10)]
    broken = dict(zip(ways, (every[1], every[4], every[8]), strict=True))
    for way, run in broken.items():
        BREAKING[way](run)
    shutil.rmtree(every[6] / "checkpoints")
    page = tmp_path / "report.html"
    with limits(()):
        assert cli.run(["report", *map(str, every), "-o", str(page)]) == 0
    told = [one for one in capsys.readouterr().err.splitlines() if one.startswith("left out: ")]
    assert [str(run) in one for run, one in zip(broken.values(), told, strict=True)] == [True, True, True]
    text = page.read_text()
    assert "3 of 10 run directories are left out" in text
    assert all(f"</span>{run.name}" in text for run in every if run not in broken.values())
    assert not any(f"</span>{run.name}" in text for run in broken.values())
    assert "Not run on unseen tasks: run-6: no checkpoint in" in text


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize("kind", ["runs", "saved", "recipes"])
def test_three_thousand_mutations(request, checker, kind, block, capsys):
    mutations, commands = {"runs": (RUNS, of_runs), "saved": (SAVED, of_saved), "recipes": (RECIPES, of_recipes)}[kind]
    source, faults = request.getfixturevalue(kind), []
    for seed in range(1_000 + 100 * block, 1_100 + 100 * block):
        try:
            checker.check(source, mutations, commands, seed, slice(None))
        except AssertionError as fault:
            faults.append(str(fault))
    with capsys.disabled():
        print(f" slowest: {checker.slowest[0]:.1f} s, {checker.slowest[1]}")
    assert not faults, "\n".join(faults)
