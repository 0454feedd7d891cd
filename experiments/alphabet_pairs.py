"""Why is the meta-train loss unstable? python experiments/alphabet_pairs.py measure [--data DIR]

``measure`` reads the runs of the two families, measures what the noise of a meta-batch is made of and what training
from scratch comes to, and writes ``alphabet-pairs/study.json``; ``read`` reads the runs alone, and keeps what the file
has of runs whose directories are not here; ``write``, or `make table`, makes the figures and the tables of
``alphabet-pairs/README.md`` from it.
"""

import argparse
import json
import math
import re
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import table
import torch
from torch.nn import functional as F

import innerloop as il
from innerloop.common.disk import replacing, write_text
from innerloop.report import smooth
from innerloop.task import Batch, Task

HERE = Path(__file__).parent / "alphabet-pairs"
STUDY = HERE / "study.json"
PAGE = HERE / "README.md"
FAMILIES = ("omniglot-alphabet-pairs", "alphabet-pairs-28")
LOST = "28-learned-rates-second-order-8"
ORIGINAL = {"steps": 1_300, "hours": 10}
WINDOW = 51
"""Problems of the running mean around which the noise of losses is measured, in units of 8."""
GROWTH = 512
"""Problems of which the growth of second order is told together."""
MARKS = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


# -- measuring --------------------------------------------------------------------------------------------------------


def measure(runs: Path, data: str | None) -> dict[str, Any]:
    """The noise, and training from scratch, of one run of either size; minutes on two cores."""
    found: dict[str, Any] = {"noise": {}, "scratch": {}}
    with ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        jobs = {name: pool.submit(measured, name, runs, data) for name in ("omniglot-alphabet-pairs", "28-batch-8")}
        for name, job in jobs.items():
            found["noise"][name], found["scratch"][name] = job.result()
    return found


def measured(name: str, runs: Path, data: str | None) -> tuple[dict[str, float], dict[str, Any]]:
    """The noise of a run, and training from scratch instead of it."""
    small = name == "28-batch-8"
    return (
        noise(runs / f"{name}-seed0", data, 150 if small else 50),
        scratch(name, data, 5 if small else 2, 100 if small else 30, 600 if small else 200),
    )


def finished(runs: Path, before: dict[str, Any]) -> dict[str, Any]:
    """Of all runs of the families that were tested; of those that are not here, what was found before."""
    names = [table.stem(recipe) for family in FAMILIES for recipe in table.families()[family]["seeds"]]
    paths = {name: runs / f"{name}-seed0" for name in names}
    here = {name: told(il.report.read_run(path)) for name, path in paths.items() if "test" in results(path)}
    print(f"read in {runs}: {', '.join(here) or 'none of the runs'}")
    return {name: found for name in names if (found := here.get(name, before.get(name)))}


def lost(run: il.report.Run) -> dict[str, Any]:
    """Of a run that ended in numbers that were not finite."""
    norms, every = run.column("train", "grad_norm")[1], run.lines["rates"]
    return {
        "iterations": run.iteration,
        "norms": [round(norm, 4) for norm in norms],
        "losses": [round(loss, 4) for loss in run.column("train", "loss")[1]],
        "validation": [[v["iteration"], round(v["mean"], 3), round(v["ci95"], 3)] for v in run.lines["validation"]],
        "rates": [
            [line["iteration"], min(map(min, line["rates"].values())), max(map(max, line["rates"].values()))]
            for line in every
        ],
    }


def results(run: Path) -> dict[str, Any]:
    """What a run came to, empty if there is none yet."""
    path = run / "results.json"
    return json.loads(path.read_text()) if path.exists() else {}


def told(run: il.report.Run) -> dict[str, Any]:
    """Of one run."""
    validations = run.lines["validation"]
    test = {key: value for key, value in run.results["test"].items() if key not in ("scores", "steps_ci95")}
    config = run.config
    return {
        "command": run.results["command"],
        "size": config["tasks"]["size"],
        "preset": config["learner"]["preset"],
        "optimizer": config["train"]["optimizer"],
        "lr": config["train"]["lr"],
        "meta_batch": config["train"]["tasks"],
        "losses": [round(loss, 4) for loss in run.column("train", "loss")[1]],
        "grad_norms": [round(norm, 4) for norm in run.column("train", "grad_norm")[1]],
        "first_losses": [round(steps[0], 3) for steps in run.column("train", "steps")[1]],
        "validation": [[v["iteration"], round(v["mean"], 3), round(v["ci95"], 3)] for v in validations],
        "test": test,
        "seconds": run.results["seconds"],
        "threads": run.results["environment"]["threads"],
        "machine": run.results["environment"]["cpu"],
    }


@torch.no_grad()
def noise(run: Path, data: str | None, problems: int, draws: int = 4) -> dict[str, float]:
    """Standard deviations of the query loss of single meta-train problems under fixed weights: between problems, and
    between draws of which drawings of a problem are adapted on and which are judged."""
    learner, sources, _ = il.load_run(run, data)
    generator = torch.Generator().manual_seed(0)
    losses = torch.empty(problems, draws)
    for start in range(0, problems, 25):
        tasks = sources.train.sample(25, generator)
        for draw in range(draws):
            dealt = tasks if draw == 0 else dealt_anew(tasks, generator)
            logits = learner.predict(dealt, at=[learner.steps])[:, 0]
            each = F.binary_cross_entropy_with_logits(logits, dealt.query.y, reduction="none")
            losses[start : start + 25, draw] = each.mean(1)
    within = losses.var(1).mean()
    between = (losses.mean(1).var() - within / draws).clamp(min=0)
    one = losses[:, 0]
    return {
        "mean": round(losses.mean().item(), 4),
        "between": round(between.sqrt().item(), 4),
        "within": round(within.sqrt().item(), 4),
        "median": round(one.median().item(), 4),
        "worst_tenth": round((one.sort(descending=True).values[: problems // 10].sum() / one.sum()).item(), 3),
        "problems": problems,
        "draws": draws,
    }


def dealt_anew(tasks: Task, generator: torch.Generator) -> Task:
    """The same problems and drawings, differently shared out between support and query sets, as many of each class."""
    shots = tasks.support.x.shape[1] // 2
    x = torch.cat([tasks.support.x, tasks.query.x], 1).unflatten(1, (-1, 2))
    order = torch.rand(x.shape[:3], generator=generator).argsort(1)
    x = x.gather(1, order[(...,) + (None,) * (x.dim() - 3)].expand_as(x))
    return Task(Batch(x[:, :shots].flatten(1, 2), tasks.support.y), Batch(x[:, shots:].flatten(1, 2), tasks.query.y))


def scratch(recipe: str, data: str | None, times: int, val_tasks: int, test_tasks: int) -> dict[str, Any]:
    """The network untrained, adapted for up to so many times the steps, at the rate and number of steps that are best
    on meta-validation."""
    path = HERE / f"{recipe}.toml"
    name, tried = str(path) if path.exists() else recipe, []
    for lr in (0.01, 0.03, 0.1):
        learner, sources = il.config.build(il.config.load_recipe(name, [f"learner.lr={lr}"]), data)
        found = il.evaluate(learner, sources.val, val_tasks, steps=times * learner.steps)
        best = max(range(len(found.steps)), key=lambda k: found.steps[k])
        tried.append({"lr": lr, "steps": best, "validation": round(found.steps[best], 3)})
    chosen = max(tried, key=lambda one: one["validation"])
    learner, sources = il.config.build(il.config.load_recipe(name, [f"learner.lr={chosen['lr']}"]), data)
    tuned = il.evaluate(learner, sources.test, test_tasks, steps=chosen["steps"])
    settings = il.config.load_recipe(name)
    learner, sources = il.config.build(settings, data)
    same = il.evaluate(learner, sources.test, test_tasks)
    return {
        "tried": tried,
        "tuned": {**chosen, "mean": tuned.mean, "ci95": tuned.ci95, "num_tasks": test_tasks},
        "same": {
            "lr": settings["learner"]["lr"],
            "steps": learner.steps,
            "mean": same.mean,
            "ci95": same.ci95,
            "num_tasks": test_tasks,
        },
    }


# -- writing ----------------------------------------------------------------------------------------------------------


def residuals(run: dict[str, Any]) -> list[float]:
    """The meta-train loss less its running mean, in the second half of the run."""
    losses, window = run["losses"], smoothing(run)
    return [loss - mean for loss, mean in zip(losses, smooth(losses, window), strict=True)][len(losses) // 2 :]


def smoothing(run: dict[str, Any]) -> int:
    """The window, of as many problems in every run."""
    return max(3, WINDOW * 8 // run["meta_batch"]) | 1


def deviation(run: dict[str, Any]) -> float:
    """The standard deviation of the residuals, corrected for the loss itself being in its running mean."""
    apart, window = residuals(run), smoothing(run)
    return math.sqrt(sum(value**2 for value in apart) / len(apart) * window / (window - 1))


def shared(study: dict[str, Any], name: str) -> str:
    """The correlation of the residuals with those of the first run that drew the same problems."""
    run = study["runs"][name]
    alike = [
        other for other, one in study["runs"].items()
        if (one["size"], one["meta_batch"]) == (run["size"], run["meta_batch"])
    ]  # fmt: skip
    if alike[0] == name:
        return ""
    return f"{statistics.correlation(residuals(study['runs'][alike[0]]), residuals(run)):.2f} with `{alike[0]}`"


def tables(study: dict[str, Any]) -> dict[str, str]:
    """By the marks they stand between."""
    return {
        "runs": _runs(study),
        "noise": _noise(study),
        "scratch": _scratch(study),
        "speed": _speed(study),
        "lost": _lost(study),
    }


def _runs(study: dict[str, Any]) -> str:
    rows = [[
        "run", "outer", "problems seen", "meta-train loss, last tenth",
        "inner loss before the first step, first and last tenth", "its noise", "correlation of the noise",
        "meta-validation, last", "meta-test", "minutes",
    ]]  # fmt: skip
    for name, run in study["runs"].items():
        tenth = max(1, len(run["losses"]) // 10)
        last, starts = run["losses"][-tenth:], run["first_losses"]
        start = f"{statistics.fmean(starts[:tenth]):.2f}, {statistics.fmean(starts[-tenth:]):.2f}"
        _, mean, half = run["validation"][-1]
        test, cores = run["test"], f"{run['threads']} core{'s' * (run['threads'] > 1)}"
        outer = "SGD" if run["optimizer"] == "sgd" else "Adam"
        outer += f" {run['lr']:g}, {len(run['losses'])} x {run['meta_batch']}"
        rows.append([
            f"`{name}`", outer, f"{len(run['losses']) * run['meta_batch']:,}", f"{sum(last) / len(last):.3f}", start,
            f"{deviation(run):.3f}", shared(study, name), f"{mean:.2f} ± {half:.2f} %",
            f"**{test['mean']:.2f}** ± {test['ci95']:.2f} %",
            f"{run['seconds'] / 60:.1f} on {cores}",
        ])  # fmt: skip
    tests = ", ".join(sorted({str(run["test"]["num_tasks"]) for run in study["runs"].values()}))
    note = (
        f"One seed each; intervals are 95 % over tasks ({tests} of meta-test, after 56 steps, by the best validated "
        "weights). *Its noise*: the standard deviation of the meta-train loss around its running mean in the second "
        "half. *Correlation*: with the noise of another run, which drew the same problems in the same order. Minutes "
        "are of training; validations, records and the test come to it."
    )
    return f"{table.markdown(rows)}\n\n{note}\n"


def _lost(study: dict[str, Any]) -> str:
    """Where second order grows: of the runs that lasted, and of the one that did not."""
    rows = [["run", "outer steps", f"meta-train loss, by {GROWTH} problems",
             f"largest norm of the meta-gradient, by {GROWTH} problems", "inner rates at the last record"]]  # fmt: skip
    lost = study["lost"]
    at, low, high = lost["rates"][-1]
    told = [
        (name, run["losses"], run["grad_norms"], run["meta_batch"], "0.01")
        for name, run in study["runs"].items() if name.startswith("28-second-order")
    ]  # fmt: skip
    told.append((LOST, lost["losses"], lost["norms"], 8, f"{low:.3f} to {high:.3f} (step {at})"))
    for name, losses, norms, meta_batch, rates in told:
        parts = [slice(i, i + GROWTH // meta_batch) for i in range(0, len(losses), GROWTH // meta_batch)]
        means = ", ".join(f"{statistics.fmean(losses[part]):.2f}" for part in parts)
        largest = ", ".join(f"{max(norms[part]):,.{int(max(norms[part]) < 2)}f}" for part in parts)
        rows.append([f"`{name}`", str(len(losses)), means, largest, rates])
    return f"{table.markdown(rows)}\n"


def _noise(study: dict[str, Any]) -> str:
    rows = [["weights of", "mean loss", "median", "between problems", "between draws of one problem",
             "share of the worst tenth", "expected of means of 8", "seen in the run"]]  # fmt: skip
    for name, found in study["noise"].items():
        expected = math.sqrt((found["between"] ** 2 + found["within"] ** 2) / 8)
        rows.append([
            f"`{name}`", f"{found['mean']:.3f}", f"{found['median']:.3f}", f"{found['between']:.3f}",
            f"{found['within']:.3f}", f"{100 * found['worst_tenth']:.0f} %", f"{expected:.3f}",
            f"{deviation(study['runs'][name]):.3f}",
        ])  # fmt: skip
    sizes = [(found["problems"], found["draws"]) for found in study["noise"].values()]
    note = (
        f"Query losses after 56 steps of {' and '.join(str(problems) for problems, _ in sizes)} meta-train problems, "
        f"weights fixed, the drawings of each dealt out {sizes[0][1]} times: standard deviations of single problems, "
        "and what they make of a mean of 8."
    )
    return f"{table.markdown(rows)}\n\n{note}\n"


def _scratch(study: dict[str, Any]) -> str:
    rows = [["network", "from scratch, as in meta-training", "from scratch, at its best", "meta-trained"]]
    for name, found in study["scratch"].items():
        run, same, tuned = study["runs"][name], found["same"], found["tuned"]
        cells = [
            f"{one['mean']:.2f} ± {one['ci95']:.2f} % ({one['steps']} steps at {one['lr']:g})" for one in (same, tuned)
        ]
        test = f"{run['test']['mean']:.2f} ± {run['test']['ci95']:.2f} %"
        rows.append([f"{run['size']} x {run['size']}", *cells, test])
    found = list(study["scratch"].values())
    tasks = " and ".join(str(one["same"]["num_tasks"]) for one in found)
    rates = ", ".join(format(one["lr"], "g") for one in found[0]["tried"])
    note = (
        f"Meta-test, {tasks} tasks from scratch. At its best: of the rates {rates} and all numbers of steps up to two "
        "(105 x 105) or five (28 x 28) times 56, what is best on meta-validation."
    )
    return f"{table.markdown(rows)}\n\n{note}\n"


def _speed(study: dict[str, Any]) -> str:
    original = ORIGINAL["hours"] * 3600 / ORIGINAL["steps"]
    rows = [
        ["", "seconds an outer step of 8 problems", "times the original"],
        ["original loop", f"{original:.1f}", "1"],
    ]
    for name, run in study["runs"].items():
        if run["size"] == 105:
            each = run["seconds"] / len(run["losses"])
            cores = f"{run['threads']} core{'s' * (run['threads'] > 1)}"
            rows.append([f"`{name}`, {cores}", f"{each:.2f}", f"{original / each:.1f}"])
    machine = ", ".join(sorted({run["machine"] for run in study["runs"].values()}))
    return (
        f"{table.markdown(rows)}\n\nThe original: 1,300 steps in 10 hours on its author's machine. Ours: {machine}.\n"
    )


def figures(study: dict[str, Any]) -> None:
    """Losses and validations, and noise by the size of the meta-batch."""
    from matplotlib.figure import Figure

    for part, large in (("105", True), ("28", False)):
        runs = {name: run for name, run in study["runs"].items() if (run["size"] == 105) == large}
        figure = Figure(figsize=(12, 4.2), dpi=100, layout="constrained")
        losses, validation = figure.subplots(1, 2)
        for index, (name, run) in enumerate(runs.items()):
            problems = [run["meta_batch"] * (i + 1) for i in range(len(run["losses"]))]
            colour = il.report.series.COLORS[index]
            window = smoothing(run)
            losses.plot(problems, run["losses"], color=colour, alpha=0.25, linewidth=0.7)
            losses.plot(problems, smooth(run["losses"], window), color=colour, label=name)
            at = [run["meta_batch"] * i + 30 * index for i, _, _ in run["validation"]]  # beside each other
            validation.errorbar(at, [m for _, m, _ in run["validation"]], [h for *_, h in run["validation"]],
                                color=colour, marker=".", capsize=2, label=name)  # fmt: skip
        losses.set(xlabel="problems seen", ylabel=f"meta-train loss; means of {WINDOW * 8} problems", ylim=(0, 0.7))
        validation.set(xlabel="problems seen", ylabel="meta-validation accuracy (%), 95 % intervals")
        figure.legend(*validation.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
        with replacing(HERE / f"training-{part}.png") as temporary:
            figure.savefig(temporary)
    figure = Figure(figsize=(6.2, 4.2), dpi=130, layout="constrained")
    axes, sizes = figure.subplots(), (8, 32, 128)
    for order, marker in (("batch", "o"), ("second-order", "s")):
        names = {size: f"28-{order}-{size}" for size in sizes if f"28-{order}-{size}" in study["runs"]}
        seen = [deviation(study["runs"][name]) for name in names.values()]
        label = "first order" if order == "batch" else "second order"
        axes.plot(
            list(names),
            seen,
            marker,
            markersize=8,
            label=f"seen, {label}",
            color=il.report.series.COLORS[order != "batch"],
        )
    found = study["noise"]["28-batch-8"]
    single = math.hypot(found["between"], found["within"])
    axes.plot(sizes, [single / math.sqrt(size) for size in sizes], ":", color="#555555",
              label="of independent problems, weights fixed")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="problems in a meta-batch", ylabel="noise of the meta-train loss")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_yticks([0.02, 0.05, 0.1], ["0.02", "0.05", "0.1"])
    axes.legend(fontsize="small")
    with replacing(HERE / "noise.png") as temporary:
        figure.savefig(temporary)


def filled(text: str) -> str:
    """The page with its tables as they should be."""
    made = tables(json.loads(STUDY.read_text()))
    return MARKS.sub(lambda match: f"{match[1]}\n{made[match[2]]}\n{match[3]}", text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "read", "write"])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run directories are")
    parser.add_argument("--data", help="where the data are; else $INNERLOOP_DATA and the cache")
    given = parser.parse_args()
    study = json.loads(STUDY.read_text()) if STUDY.exists() else {}
    if given.what != "write":
        study["runs"] = finished(given.runs, study.get("runs", {}))
        if (gone := given.runs / f"{LOST}-seed0").exists():
            study["lost"] = lost(il.report.read_run(gone))
        study |= measure(given.runs, given.data) if given.what == "measure" else {}
        write_text(STUDY, json.dumps(study) + "\n")
    figures(study)
    write_text(PAGE, filled(PAGE.read_text()))
