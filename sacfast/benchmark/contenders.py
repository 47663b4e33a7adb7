"""Who takes part in `sacfast benchmark update` and `train`: this package's own, and by name those of `peers`.

Imports nothing that loads torch before a contender is built: RLtools refuses to work beside it.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from sacfast.benchmark.problems import TRANSITIONS, TrainProblem, UpdateProblem

FUSED = "fused"
REFERENCE = "reference"
PEAK = "peak"
PEAK_GPU = "peak_gpu"
PRODUCT = "product"
TRAIN = "train"
BARE_UPDATES = "bare_updates"
TRAIN_PEER = "stable_baselines3"

Problem = TypeVar("Problem")


class Sample(NamedTuple):
    """How much was done in how long."""

    amount: float  # updates, environment steps, or floating-point operations
    seconds: float


class Work(NamedTuple):
    """A contender that is ready."""

    measure: Callable[[float], Sample]  # works for about that many seconds
    profile: Callable[[int], list[dict[str, Any]]] | None = None  # as `FusedLearner.profile`, over so many updates


@dataclass(frozen=True)
class Contender(Generic[Problem]):
    """How to make a contender, from a problem and a number of threads."""

    build: Callable[[Problem, int], Work]
    distributions: tuple[str, ...] = ()
    """What must be installed beside this package's own dependencies."""
    devices: tuple[str, ...] = ("cpu",)
    """The kinds of device that it works on."""


def repeat(chunk: Callable[[], float]) -> Callable[[float], Sample]:
    """Make a `Work.measure` of a function that does a piece of work and returns how much it was."""

    def measure(seconds: float) -> Sample:
        start = time.perf_counter()
        amount = chunk()
        while (elapsed := time.perf_counter() - start) < seconds:
            amount += chunk()
        return Sample(amount, elapsed)

    return measure


def _fused(problem: UpdateProblem, threads: int) -> Work:
    """The native update."""
    learner, replay = _learner(problem, threads, backend="fused")
    return Work(_updates(learner, replay, problem), lambda updates: learner.profile(replay, updates))


def _fused_tf32(problem: UpdateProblem, threads: int) -> Work:
    """The native update with matrix products on tensor cores."""
    return Work(_updates(*_learner(problem, threads, backend="fused", matmul_precision="tf32"), problem))


def _fused_bfloat16(problem: UpdateProblem, threads: int) -> Work:
    """The native update with the operands of its matrix products rounded to bfloat16."""
    return Work(_updates(*_learner(problem, threads, backend="fused", matmul_precision="bfloat16"), problem))


SEEDS = 10


def _fused_seeds(problem: UpdateProblem, threads: int) -> Work:
    """The native updates of several learners side by side, counted together."""
    import torch

    from sacfast.learner import side_by_side

    learners, replays = zip(*(_learner(problem, threads, backend="fused") for _ in range(SEEDS)), strict=True)
    group, steps = side_by_side(learners), problem.updates_per_call

    def chunk() -> float:
        for outcome in group.update({number: (replay, steps) for number, replay in enumerate(replays)}).values():
            if isinstance(outcome, Exception):
                raise outcome
        torch.cuda.synchronize(problem.device)
        return SEEDS * steps

    return Work(repeat(chunk))


def _reference(problem: UpdateProblem, threads: int) -> Work:
    """The same update in eager torch, without the fused ops."""
    learner, replay = _learner(problem, threads, backend="reference", fused_ops=False)
    learner._captured = None  # on a GPU it would be a CUDA graph: `_reference_graph`
    return Work(_updates(learner, replay, problem))


def _reference_graph(problem: UpdateProblem, threads: int) -> Work:
    """The same update in torch, recorded as a CUDA graph."""
    return Work(_updates(*_learner(problem, threads, backend="reference", fused_ops=False), problem))


def _reference_compiled_graph(problem: UpdateProblem, threads: int) -> Work:
    """The same update through `torch.compile`, recorded as a CUDA graph: the recipe of LeanRL."""
    import torch

    learner, replay = _learner(problem, threads, backend="reference", fused_ops=False)
    learner._update = torch.compile(learner._update)
    return Work(_updates(learner, replay, problem))


def _reference_compiled(problem: UpdateProblem, threads: int) -> Work:
    """The update of the reference through `torch.compile`, in its default mode.

    It does not become one graph: TorchDynamo (torch 2.13) leaves it for `torch.autograd.grad` and for fused Adam. The
    noise is drawn outside, for `torch.randn` with a generator would break the graph too. What compiles is each stretch
    between: the target with the critics' loss, the policy's loss, their backward passes, the temperature's and the
    targets' steps. Neither `trace_autograd_ops` nor "max-autotune" nor an Adam that compiles was faster.
    """
    import torch

    learner, replay = _learner(problem, threads, backend="reference", fused_ops=False)
    update: Callable[..., Any] = torch.compile(learner._update)
    shape = problem.batch_size, problem.action_dim

    def chunk() -> float:
        for _ in range(problem.updates_per_call):
            update(replay.sample(problem.batch_size), True, torch.randn(shape), torch.randn(shape))
        return problem.updates_per_call

    return Work(repeat(chunk))


def _learner(problem: UpdateProblem, threads: int, backend: str, **fields: Any) -> tuple[Any, Any]:
    """Return a learner, and a replay buffer of random transitions."""
    import torch

    from sacfast import ReplayBuffer, SACConfig, make_learner

    torch.set_num_threads(threads)
    config = SACConfig(hidden_sizes=problem.hidden_sizes, batch_size=problem.batch_size, **fields)
    observation_dim, action_dim = problem.observation_dim, problem.action_dim
    replay = ReplayBuffer(TRANSITIONS, observation_dim, action_dim, device=problem.device)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn((TRANSITIONS, *shape), generator=generator)

    observation, next_observation = normal(observation_dim), normal(observation_dim)
    replay.add(observation, normal(action_dim).tanh(), normal(), next_observation, normal() > 2)
    return make_learner(observation_dim, action_dim, config, backend=backend, device=problem.device), replay


def _updates(learner: Any, replay: Any, problem: UpdateProblem) -> Callable[[float], Sample]:
    import torch

    def chunk() -> float:
        learner.update(replay, gradient_steps=problem.updates_per_call)
        if problem.device != "cpu":
            torch.cuda.synchronize(problem.device)
        return problem.updates_per_call

    return repeat(chunk)


def _peak(_: UpdateProblem, threads: int) -> Work:
    """The processor's peak of multiply-adds in registers, all threads together."""
    fma_peak = importlib.import_module("sacfast._C").fma_peak
    return Work(lambda seconds: Sample(fma_peak(threads, seconds) * seconds, seconds))


PRODUCT_MATRIX = 1024
"""Rows and columns of the matrices whose product shows how near the processor's peak a library comes."""


def _product(_: UpdateProblem, threads: int) -> Work:
    """Torch's product of large matrices: what is left of the peak once operands come from caches."""
    import torch

    torch.set_num_threads(threads)
    left, out = torch.randn(PRODUCT_MATRIX, PRODUCT_MATRIX), torch.empty(PRODUCT_MATRIX, PRODUCT_MATRIX)

    def chunk() -> float:
        torch.mm(left, left, out=out)
        return 2.0 * PRODUCT_MATRIX**3

    return Work(repeat(chunk))


MATRIX = 8192
"""Rows and columns of the matrices whose product is a GPU's peak."""


def _peak_gpu(problem: UpdateProblem, _: int) -> Work:
    """The GPU's rate of a large product of matrices of the problem's kind; of float32 without TF32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = problem.peak == "tf32"
    dtype = torch.bfloat16 if problem.peak == "bfloat16" else torch.float32
    left = torch.randn(MATRIX, MATRIX, device=problem.device, dtype=dtype)

    def chunk() -> float:
        torch.mm(left, left)
        torch.cuda.synchronize(problem.device)
        return 2.0 * MATRIX**3

    return Work(repeat(chunk))


STEPS_PER_CALL = 512
"""Transitions in one call of `learn`, which has a beginning and an end of its own."""


def _train(problem: TrainProblem, threads: int) -> Work:
    """`sacfast.SAC.learn`, counted in transitions, from when learning has started; no evaluation and no files."""
    model = _model(problem, threads)

    def chunk() -> float:
        model.learn(STEPS_PER_CALL)
        return STEPS_PER_CALL

    return Work(repeat(chunk))


def _bare_updates(problem: TrainProblem, threads: int) -> Work:
    """The updates of a learner and a replay buffer from such a training, and nothing else."""
    import torch

    model = _model(problem, threads)
    torch.set_num_threads(threads)
    steps = UpdateProblem(model.spec.observation_dim, model.spec.action_dim).updates_per_call

    def chunk() -> float:
        model.learner.update(model.replay, gradient_steps=steps)
        return steps

    return Work(repeat(chunk))


def _model(problem: TrainProblem, threads: int) -> Any:
    from sacfast import SAC

    model = SAC(
        problem.env_id,
        num_envs=problem.num_envs,
        env_threads=min(threads, problem.num_envs),
        torch_threads=threads,
        backend=problem.backend,
        device="cpu",
        evaluation_episodes=0,
        progress=False,
    )
    return model.learn(model.config.learning_starts + STEPS_PER_CALL)


def _peer(name: str) -> Callable[[Any, int], Work]:
    # Late, for Gymnasium and the peers are nobody else's business.
    return lambda problem, threads: getattr(importlib.import_module("sacfast.benchmark.peers"), name)(problem, threads)


ANY = ("cpu", "cuda")
UPDATE: Mapping[str, Contender[UpdateProblem]] = {
    FUSED: Contender(_fused, devices=ANY),
    "fused_tf32": Contender(_fused_tf32, devices=("cuda",)),
    "fused_bfloat16": Contender(_fused_bfloat16, devices=("cuda",)),
    f"fused_{SEEDS}_seeds": Contender(_fused_seeds, devices=("cuda",)),
    REFERENCE: Contender(_reference, devices=ANY),
    "reference_compiled": Contender(_reference_compiled),
    "reference_graph": Contender(_reference_graph, devices=("cuda",)),
    "reference_compiled_graph": Contender(_reference_compiled_graph, devices=("cuda",)),
    "stable_baselines3": Contender(_peer("stable_baselines3"), ("stable-baselines3",), ANY),
    "sbx": Contender(_peer("sbx"), ("sbx-rl", "jax"), ANY),
    "rltools": Contender(_peer("rltools"), ("rltools", "mkl", "mkl-include")),
    PEAK: Contender(_peak),
    PRODUCT: Contender(_product),
    PEAK_GPU: Contender(_peak_gpu, devices=("cuda",)),
}


def peak_of(device: str) -> str:
    """Return the name of the contender that measures the limit of a device."""
    return PEAK if device == "cpu" else PEAK_GPU


def contenders_of(device: str) -> list[str]:
    """Return the names of those that make updates on a device, in the order of the table."""
    kind = device.partition(":")[0]
    return [name for name, each in UPDATE.items() if kind in each.devices and name not in (PEAK, PEAK_GPU, PRODUCT)]


TRAINING: Mapping[str, Contender[TrainProblem]] = {
    TRAIN: Contender(_train),
    BARE_UPDATES: Contender(_bare_updates),
    TRAIN_PEER: Contender(_peer("stable_baselines3_training"), ("stable-baselines3", "gymnasium", "mujoco")),
}
