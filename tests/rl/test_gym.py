"""Simulators: the same problems one by one and all at once, and anybody's environments in worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

import innerloop as il
from innerloop import rl
from innerloop.rl.locomotion import FAMILIES

gymnasium = pytest.importorskip("gymnasium")
np = pytest.importorskip("numpy")
G = torch.Generator


def name_of(body: str, goal: str) -> str:
    return f"innerloop.rl.gym:innerloop/{body.title().replace('-', '')}{goal.capitalize()}-v0"


@pytest.fixture(scope="module", autouse=True)
def mujoco():
    pytest.importorskip("mujoco")


# -- locomotion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "goal"), FAMILIES)
def test_the_registered_environments_pass_gymnasiums_checks(body, goal):
    from gymnasium.utils.env_checker import check_env

    environment = gymnasium.make(name_of(body, goal)).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(infinity|-inf|settotalmass).*")  # of Gymnasium's own bodies
        check_env(environment, skip_render_check=True)
    environment.set_task(FAMILIES[body, goal].draw(1, G().manual_seed(3))[0])
    environment.close()


@pytest.mark.parametrize(("body", "goal"), FAMILIES)
def test_all_at_once_is_one_by_one(body, goal):
    """From the same states, by the same actions. Contacts amplify roundings, so a step at a time."""
    batched = rl.Locomotion(body, goal, horizon=30)
    single = gymnasium.make(name_of(body, goal)).unwrapped
    g = G().manual_seed(0)
    tasks = batched.tasks(3, g)
    batched.reset(tasks, 2, g)
    single.reset(seed=0)
    nq, ended = single.model.nq, 0
    for _ in range(30):
        action = 2 * torch.randn(3, 2, batched.actions, generator=g)
        before = batched.state.clone()
        found = batched.step(action)
        for task in range(3):
            for episode in range(2):
                if not before[task, episode].isfinite().all():
                    continue
                single.set_task(tasks[task].numpy())
                start = before[task, episode].numpy()
                single.set_state(start[1 : 1 + nq], start[1 + nq :])
                single.data.qacc_warmstart[:] = 0
                seen, reward, done, _, _ = single.step(action[task, episode].numpy())
                torch.testing.assert_close(found.observation[task, episode], torch.tensor(seen).float(),
                                           atol=1e-4, rtol=1e-4)  # fmt: skip
                assert found.reward[task, episode].item() == pytest.approx(reward, abs=1e-4)
                assert bool(found.done[task, episode]) == done
                ended += done
    assert ended or body == "half-cheetah"
    single.close()


def test_rewards_are_what_they_are_said_to_be():
    environment = gymnasium.make(name_of("half-cheetah", "velocity")).unwrapped
    environment.reset(seed=0)
    environment.set_task([1.5])
    action = np.full(6, 0.5)
    *_, info = found = environment.step(action)
    assert found[1] == pytest.approx(-abs(info["x_velocity"] - 1.5) - 0.05 * 6 * 0.25)
    environment = gymnasium.make(name_of("half-cheetah", "direction")).unwrapped
    environment.reset(seed=0)
    environment.set_task([-1.0])
    *_, info = found = environment.step(action)
    assert found[1] == pytest.approx(-info["x_velocity"] - 0.05 * 6 * 0.25)
    environment = gymnasium.make(name_of("ant", "position")).unwrapped
    environment.reset(seed=0)
    environment.set_task([2.0, -1.0])
    *_, info = found = environment.step(np.zeros(8))
    away = abs(info["x_position"] - 2) + abs(info["y_position"] + 1)
    assert found[1] == pytest.approx(4 - away + 0.05)


def test_locomotion_is_repeated_by_its_generator():
    environment = rl.Locomotion("half-cheetah", "velocity", 10)
    assert isinstance(environment, rl.Environment)
    torch.manual_seed(0)
    own = rl.maml_trpo(rl.gaussian_policy(17, 6, hidden=(8,)), episodes=3, vectorize=True)
    one, other = (rl.Interaction(environment).collect(own, 2, G().manual_seed(1)) for _ in range(2))
    assert torch.equal(one.query.x, other.query.x)
    assert torch.equal(one.query.y.advantages, other.query.y.advantages)


def test_the_number_of_threads_changes_nothing():
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            environment, g = rl.Locomotion("ant", "velocity", 10), G().manual_seed(0)
            environment.reset(environment.tasks(3, g), 4, g)
            for _ in range(10):
                environment.step(2 * torch.rand(3, 4, 8, generator=g) - 1)
            found.append(environment.state)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_a_resumed_run_of_a_simulator_is_the_undisturbed_one(tmp_path):
    def trainer(name, iterations):
        torch.manual_seed(0)
        own = rl.maml_trpo(rl.gaussian_policy(17, 6, hidden=(8,)), episodes=2, vectorize=True)
        source = rl.Interaction(rl.Locomotion("half-cheetah", "velocity", 8))
        return il.Trainer(own, source, run=tmp_path / name, iterations=iterations, tasks=2, progress=False)

    whole, half, rest = trainer("whole", 4), trainer("half", 2), trainer("half", 4)
    whole.fit()
    half.fit()
    rest.fit(resume=True)
    for (key, one), other in zip(whole.learner.state_dict().items(), rest.learner.state_dict().values(), strict=True):
        assert torch.equal(one, other), key


def test_unknown_bodies_are_refused():
    with pytest.raises(ValueError, match=r"no 'ant' with the goal 'speed': choose one of half-cheetah direction"):
        rl.Locomotion("ant", "speed")


# -- anybody's environments -------------------------------------------------------------------------------------------


class Line(gymnasium.Env):
    """A point on a line, whose goal is the task; done when it is there."""

    observation_space = gymnasium.spaces.Box(-10, 10, (1,), dtype=np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), dtype=np.float32)
    trouble = None

    def set_task(self, task):
        self.goal = float(task[0])

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.1, 0.1)
        return np.array([self.position], dtype=np.float32), {}

    def step(self, action):
        if self.trouble == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.trouble == "hangs":
            time.sleep(60)
        if self.trouble == "fails":
            raise KeyError("where am I")
        self.position += 0.1 * float(action[0])
        away = abs(self.position - self.goal)
        return np.array([self.position], dtype=np.float32), -away, away < 0.05, False, {}


def make_line(trouble=None):
    def make():
        environment = Line()
        environment.trouble = trouble
        return environment

    return make


def goals(n, generator):
    return torch.rand(n, 1, generator=generator) - 0.5


def family(workers, trouble=None, timeout=60.0):
    return rl.VectorTasks(lambda n: rl.Workers(make_line(trouble), n, workers, timeout), goals, horizon=12)


def learner():
    torch.manual_seed(0)
    return rl.maml_trpo(rl.gaussian_policy(1, 1, hidden=(8,)), episodes=3, vectorize=True)


def test_worker_processes_give_what_one_process_does():
    found = []
    for workers in (0, 2):
        environment = family(workers)
        found.append(rl.Interaction(environment).collect(learner(), 3, G().manual_seed(0)))
        environment.close()
    leaves = [torch.utils._pytree.tree_leaves(tasks) for tasks in found]
    assert all(torch.equal(a, b) for a, b in zip(*leaves, strict=True))
    assert (found[0].query.y.weights == 0).any()  # some episodes reached their goal
    starts = found[0].support.x[:, :, 0]
    assert len(starts.unique()) == starts.numel()  # each by a seed of its own


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("dies", r"worker [01] of 2 ended \(exit code -9\)"),
        pytest.param("hangs", r"worker [01] of 2 did not answer within 4 s", marks=pytest.mark.slow),
        pytest.param("stops", r"worker [01] of 2 did not answer within 4 s", marks=pytest.mark.slow),
        ("fails", r"worker [01] of 2 failed: KeyError: 'where am I' \(step, line \d+\)"),
    ],
)
def test_a_worker_in_trouble_ends_all_with_a_message(trouble, message):
    environment = family(2, trouble, timeout=4.0 if "4 s" in message else 60.0)
    with pytest.raises(rl.WorkerError, match=message):
        rl.Interaction(environment).collect(learner(), 2, G().manual_seed(0))
    assert not environment._vector._processes


def test_a_vector_environment_of_ones_own():
    class Lines(gymnasium.vector.SyncVectorEnv):
        def set_task(self, tasks):
            for environment, task in zip(self.envs, tasks, strict=True):
                environment.set_task(task)

    environment = rl.VectorTasks(lambda n: Lines([make_line() for _ in range(n)]), goals, horizon=12)
    one = rl.Interaction(environment).collect(learner(), 3, G().manual_seed(0))
    two = rl.Interaction(family(0)).collect(learner(), 3, G().manual_seed(0))
    for a, b in ((one.support, two.support), (one.query, two.query)):  # after the end they show other things
        assert torch.equal(a.y.weights, b.y.weights)
        torch.testing.assert_close(a.y.advantages, b.y.advantages)
        torch.testing.assert_close(a.x * a.y.weights[..., None], b.x * b.y.weights[..., None])


def test_observations_are_kept_though_an_environment_uses_its_memory_again():
    class Reused(gymnasium.vector.SyncVectorEnv):
        def __init__(self, makers):
            super().__init__(makers, copy=False)

        def set_task(self, tasks):
            for environment, task in zip(self.envs, tasks, strict=True):
                environment.set_task(task)

    environment = rl.VectorTasks(lambda n: Reused([make_line() for _ in range(n)]), goals, horizon=6)
    found = rl.Interaction(environment).collect(learner(), 2, G().manual_seed(0))
    assert (found.query.x[:, :, 1:] != found.query.x[:, :, :-1]).any()


def test_ctrl_c_is_for_the_trainer(tmp_path):
    """A terminal sends it to all processes at once; the iteration is finished and saved all the same."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.rl.test_gym import *\n"
        "if __name__ == '__main__':\n"
        "    source = rl.Interaction(family(2))\n"
        "    print('begins', flush=True)\n"
        "    il.Trainer(learner(), source, run=sys.argv[2], iterations=10**6, tasks=3, log_every=1).fit()\n"
    )
    root = str(Path(__file__).parents[2])
    words = [sys.executable, str(script), root, str(tmp_path / "run")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "begins\n"
    metrics = tmp_path / "run" / "metrics.jsonl"
    end = time.monotonic() + 600
    while not (metrics.exists() and metrics.read_text().count('"train"') > 1):
        assert time.monotonic() < end
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert "Interrupted" in err, err
    assert "WorkerError" not in err
    assert len(list((tmp_path / "run" / "checkpoints").glob("state-*.pt"))) == 2


def test_environments_without_tasks_are_refused():
    with pytest.raises(TypeError, match=r"CartPoleEnv has no set_task\(task\)"):
        rl.Workers(lambda: gymnasium.make("CartPole-v1"), 2)
    with pytest.raises(TypeError, match="has no set_task"):
        rl.VectorTasks(lambda n: gymnasium.make_vec("CartPole-v1", n), goals)


def test_training_in_workers():
    found = []
    for workers in (0, 2):
        environment, own = family(workers), learner()
        source, before = rl.Interaction(environment), own.model.head.weight.clone()
        il.Trainer(own, source, iterations=2, tasks=3, progress=False).fit()
        environment.close()
        assert not torch.equal(own.model.head.weight, before)
        found.append((source.environment_steps, own.model.head.weight))
    assert found[0][0] == found[1][0] > 0
    assert torch.equal(found[0][1], found[1][1])
