"""The benchmarks run, hand everyone the same problem, and say what they found."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import networks, run, summary, table, tasks
from benchmarks.measure import flops
from benchmarks.rows import INNERLOOP, PLAIN, PLAIN_BARE, ROWS
from benchmarks.subjects import Innerloop, Job, Plain, build

FEW = ("sinusoid-1", "conv4-5w1s-q1")


@pytest.fixture(scope="module", params=[FEW, pytest.param(tuple(ROWS), marks=pytest.mark.slow)], ids=["few", "all"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A quick run of rows, by the libraries that are here."""
    path = tmp_path_factory.mktemp("benchmarks") / "results.json"
    assert run.main(["--quick", "--repeats", "2", "--rows", *request.param, "--out", str(path)]) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    assert names(found) == list(request.param)
    return found


def names(results: dict[str, Any]) -> list[str]:
    return [row["name"] for row in results["rows"]]


def job(name: str, library: str, folder: Path, **changes: Any) -> Job:
    row = replace(ROWS[name].small(), **changes)
    file = tasks.prepare(row, folder, None, quick=True).file
    return Job(row, library, torch.load(file), "cpu", quick=True)


def test_rows_are_measured_and_libraries_agree(results: dict[str, Any]) -> None:
    for row in results["rows"]:
        for library, found in row["libraries"].items():
            assert found["status"] in ("measured", "left out"), (row["name"], library, found)
            if library in (INNERLOOP, PLAIN, PLAIN_BARE):
                assert found["status"] == "measured"
                assert len(found["times"]) == 2
                assert found["seconds"]["low"] <= found["seconds"]["median"] <= found["seconds"]["high"]
                assert found["warm_up"]["steps"] >= 3


def test_a_library_that_is_not_there_is_reported(results: dict[str, Any]) -> None:
    libraries = results["rows"][0]["libraries"]
    absent = [name for name in ("learn2learn", "higher", "torchopt") if libraries[name]["status"] == "left out"]
    for name in absent:
        assert libraries[name]["reason"].startswith("not installed")
        assert f"| {name} " in table.document([results])


def test_the_document_has_every_row_and_says_that_there_was_no_gpu(results: dict[str, Any]) -> None:
    text = table.document([results])
    for name in names(results):
        assert f"\n### {name}\n" in text
    assert "No CUDA GPU was at hand" in text
    if "memory-50" in names(results):
        assert '`memory="constant"` takes' in text.split("### memory-50")[1]
    assert "Nothing has been measured yet" in table.document([])


def test_profiles_say_where_the_time_goes(results: dict[str, Any]) -> None:
    found = {row["name"]: row["libraries"][INNERLOOP].get("profile") for row in results["rows"]}
    assert [name for name, profile in found.items() if profile] == [
        name for name in found if ROWS[name].kind in ("images", "pairs")
    ]
    profile = found["conv4-5w1s-q1"]
    assert all(profile[kind] > 0 for kind in ("products", "pooling", "statistics", "others"))
    assert sum(profile.values()) == pytest.approx(2 * profile["core"])
    assert "| products |" in table.document([results]).split("### conv4-5w1s-q1")[1].split("###")[0]


def test_rows_that_are_not_measured_again_are_kept(results: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    first, second = ({**results, "rows": results["rows"][part]} for part in (slice(1), slice(1, 3)))
    run.write(path, second)
    run.write(path, first)
    assert names(json.loads(path.read_text())) == names(results)[:3]
    elsewhere = {**first, "environment": {**results["environment"], "torch": "another"}}
    run.write(path, elsewhere)
    assert len(json.loads(path.read_text())["rows"]) == 1


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.kind != "iteration"])
def test_ordinary_networks_with_the_same_weights_have_the_same_outputs(name: str) -> None:
    row = replace(ROWS[name], width=8)
    ours, ordinary = tasks.ours(row), networks.ordinary(row)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # so that batch norm's scales and shifts tell
    networks.give_weights(ordinary, ours.parameters())
    size = networks.DRAWING_SIZE if row.kind == "pairs" else networks.IMAGE_SIZE
    x = torch.randn(6, 1) if row.kind == "sinusoid" else torch.rand(6, 1, size, size)
    torch.testing.assert_close(ours(x), ordinary(x), rtol=1e-4, atol=1e-5)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.weight is \[3, 2\], but its weights are \[4, 2\]"):
        networks.give_weights(networks.mlp(2, 3), networks.mlp(2, 4).parameters())


@pytest.mark.parametrize("name", ["sinusoid-5", "alphabet-pairs"])
def test_the_plain_loop_and_innerloop_have_the_same_meta_gradient(name: str, tmp_path: Path) -> None:
    own, plain = build(job(name, INNERLOOP, tmp_path)), build(job(name, PLAIN, tmp_path))
    assert isinstance(own, Innerloop)
    assert isinstance(plain, Plain)
    assert plain.check() == pytest.approx(own.check(), rel=1e-4)
    for a, b in zip(own.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)


def test_validation_changes_the_work_and_not_the_gradient(tmp_path: Path) -> None:
    with_it, without = (build(job("alphabet-pairs", library, tmp_path)) for library in (PLAIN, PLAIN_BARE))
    assert with_it.check() == pytest.approx(without.check(), rel=1e-5)
    assert flops(with_it.step) > 1.05 * flops(without.step)


def test_a_repeat_begins_at_the_first_weights(tmp_path: Path) -> None:
    plain = build(job("sinusoid-1", PLAIN, tmp_path))
    before = [p.detach().clone() for p in plain.parameters]
    plain.step()
    assert not torch.equal(plain.parameters[0], before[0])
    plain.reset()
    for parameter, weight in zip(plain.parameters, before, strict=True):
        assert torch.equal(parameter, weight)


def test_peak_memory_is_what_was_added() -> None:
    script = """
import torch
from benchmarks.measure import Peak
passed = torch.ones(64 * 2**20)
del passed
peak = Peak("cpu")
held = torch.ones(16 * 2**20)
print(peak.bytes() / 2**20)
"""  # in a process of its own, since this one has freed memory at hand
    root = Path(run.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert 60 < float(done.stdout) < 80


def test_spread_and_paired_ratios() -> None:
    assert summary.spread([3.0, 1.0, 2.0, 5.0, 4.0]) == {"low": 2.0, "median": 3.0, "high": 4.0}
    assert summary.spread([7.0]) == {"low": 7.0, "median": 7.0, "high": 7.0}
    # A machine that slows down for everyone leaves the ratios alone.
    assert summary.paired([2.0, 4.0, 20.0], [1.0, 2.0, 10.0]) == {"low": 2.0, "median": 2.0, "high": 2.0}
    with pytest.raises(ValueError, match="no measurements"):
        summary.spread([])


def test_no_folder_of_a_machine_gets_into_the_results() -> None:
    text = "no Omniglot in /home/me/data, /home/me/data/omniglot: see https://example.org/a/b; 1/2"
    assert summary.without_folders(text) == "no Omniglot in data, omniglot: see https://example.org/a/b; 1/2"


def test_disagreement_names_both_numbers() -> None:
    own = {"loss": 2.0, "gradient_norm": 1.0}
    assert summary.disagreement({"loss": 2.0001, "gradient_norm": 1.0005}, own, 1e-4, 1e-3) == ""
    assert summary.disagreement({"loss": 2.1, "gradient_norm": 1.0}, own, 1e-4, 1e-3) == "loss 2.1, innerloop's 2"
    assert "norm" in summary.disagreement({"loss": 2.0, "gradient_norm": math.nan}, own, 1e-4, 1e-3)


def test_the_best_peer_is_the_quickest_that_agrees() -> None:
    def at(median: float, status: str = "measured") -> dict[str, Any]:
        return {"status": status, "seconds": {"median": median}}

    libraries = {"innerloop": at(1.0), "a": at(3.0), "b": at(2.0), "c": at(0.5, "disagrees")}
    assert summary.best_peer(libraries, ("innerloop",)) == "b"
    assert summary.best_peer({"innerloop": at(1.0)}, ("innerloop",)) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "sinusoid"], "--rows sinusoid: there are only sinusoid-1, "),
        (["--repeats", "3"], "--repeats 3: at least 10, or --quick"),
        (["--higher", "/nowhere"], "--higher /nowhere: no package higher in it"),
        (["--data", "/nowhere"], "--data /nowhere: no such folder"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run.main(words)
    assert message in capsys.readouterr().err


def test_waiting_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("uvicorn", "plotly"):
        pytest.importorskip(package)
    from benchmarks import waiting

    monkeypatch.setattr(waiting, "ITERATIONS", 300)
    assert {kind: len(times) for kind, times in waiting.answers(2).items()} == {"characters": 2, "function": 2}
    assert waiting.report(tmp_path).read_text().startswith("<!doctype html>")
