"""No run directory makes a command end in a traceback, write outside of it, or lose what there is to say of others."""

from __future__ import annotations

import os
import random
import shutil
import warnings
from pathlib import Path

import pytest

from innerloop import cli

from .mutations import MUTATIONS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
SETS = [
    "train.iterations=4", "train.validate_every=2", "train.checkpoint_every=2", "train.val_tasks=2", "train.tasks=2",
    "train.log_every=1", "evaluate.num_tasks=2", "model.sizes=[1, 4, 1]", "learner.steps=2",
]  # fmt: skip
TRAIN = ["train", "sinusoid-maml", "--quiet", *(word for setting in SETS for word in ("--set", setting))]
RECORD_KINDS = [word for kind in ("inner", "query-grid", "final-support", "meta-train", "validation", "rates")
                for word in ("--kind", kind)]  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mutations")
    assert cli.run([*TRAIN, "--set", "learner.preset=meta-sgd", "--run", str(folder / "run")]) == 0
    assert cli.run([*TRAIN, "--seed", "1", "--run", str(folder / "other")]) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mutate(original: Path, folder: Path, seed: int) -> tuple[Path, str]:
    """A run of which one thing or two are odd, beside a home with something in it."""
    rng = random.Random(seed)
    shutil.copytree(original / "run", folder / "run")
    (folder / "home").mkdir()
    (folder / "home" / ".profile").write_text("mine")
    said = []
    chosen = rng.sample(MUTATIONS, rng.choice([1, 1, 2]))
    for mutation in sorted(chosen, key=MUTATIONS.index):  # those first that read what they change
        if (folder / "run").exists():
            try:
                said.append(mutation(folder / "run", rng))
            except (ValueError, OSError, LookupError):  # the first left nothing to change for the second
                said.append("nothing")
    (run,) = (path for path in folder.iterdir() if path.name != "home")
    return run, ", ".join(said)


def commands(run: Path, other: Path, out: Path) -> list[list[str]]:
    return [
        ["report", "--record-only", "-o", str(out / "report.html"), "--", str(other), str(run)],
        ["plot", *RECORD_KINDS, "-o", str(out), "--", str(run)],
        ["watch", "--", str(run)],
        ["evaluate", "--json", "--", str(run)],
        [*TRAIN, "--set", "train.iterations=5", "--run", str(run), "--resume", "--accept-changes"],
    ]


def check(original: Path, folder: Path, seed: int, capsys: pytest.CaptureFixture[str], which: slice) -> None:
    folder.mkdir()
    run, said = mutate(original, folder, seed)
    out = folder.parent / f"{folder.name}-out"
    out.mkdir()
    for command in commands(run, original / "other", out)[which]:
        before = contents(folder / "home")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                code = cli.run(command)
            except Exception as error:
                pytest.fail(f"seed {seed} ({said}), {command[0]}: {type(error).__name__}: {error}")
        told = capsys.readouterr()
        about = f"seed {seed} ({said}), {command[0]}: {told.err}"
        assert code in (0, 1), about
        assert contents(folder / "home") == before, about
        assert "Traceback" not in told.err, about
        errors = [line for line in told.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == code or command[0] == "plot", about
        if command[0] == "report":  # what is odd in one run does not lose the other
            assert code == 0, about
            assert "other" in (out / "report.html").read_text(), about
    shutil.rmtree(out)


@pytest.mark.parametrize("seed", range(40))
def test_mutations(original, tmp_path, seed, capsys):
    check(original, tmp_path / "case", seed, capsys, slice(seed % 5, seed % 5 + 1))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(30))
def test_three_thousand_mutations(original, tmp_path, block, capsys):
    for seed in range(1_000 + 100 * block, 1_100 + 100 * block):
        check(original, tmp_path / f"{seed}", seed, capsys, slice(0, 5))
        shutil.rmtree(tmp_path / f"{seed}")
