"""What the examples share: how much faster one way is than another, measured side by side."""

from collections.abc import Callable

from sacfast.benchmark.harness import Rounds, Settings


def print_gain(what: str, contenders: dict[str, Callable[[], object]], rounds: int) -> None:
    """Time two ways of doing `what` in turns; print how much faster the first is.

    A machine's speed drifts by more than what is to be measured, so the ratio is taken inside each round. A sample
    outlasts time slices: on a busy machine the shorter of two calls would else be the one that is not interrupted.
    """
    fast, slow = contenders
    settings = Settings(rounds=rounds, warmup_rounds=1, sample_milliseconds=50)
    timings = Rounds(contenders, settings)
    for _ in range(settings.warmup_rounds + rounds):
        timings.run_one()
    timings.keep_last(rounds)
    ratio, seconds = timings.ratio(slow, fast), timings.spread(fast).p50
    print(
        f"{what}: {fast} takes {seconds * 1e6:.0f} us and is {ratio.p50:.2f} ({ratio.p20:.2f} to {ratio.p80:.2f}) "
        f"times faster than {slow}; median (20th to 80th percentile) of {rounds} rounds"
    )
