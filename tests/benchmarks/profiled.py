"""Where the time of the layer target goes, and how far it is from the backward passes that it cannot do without."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from cases import Case
from harness import interleaved, print_title
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from raysense.measures import influence as influence_module
from raysense.measures.capture import ParameterCapture
from raysense.measures.contraction import HeldGradients
from raysense.measures.influence import exact_influence
from raysense.measures.perturbed import Perturbed

STAGES: tuple[tuple[str, Any, str], ...] = (
    ("forward pass with its graph", ParameterCapture, "record"),
    ("backward passes", torch.autograd, "grad"),
    ("contraction of the gradients with the layers' inputs", HeldGradients, "add"),
    ("Gram matrices", HeldGradients, "gram"),
    ("K x K algebra", influence_module, "_solved"),
)
"""What is timed, and the function that does it; none calls another."""
ROUNDS = 3
SHOWN = 8


def plain_passes(perturbed: Perturbed, images: Tensor, passes: int) -> None:
    """A forward pass and backward passes to the images, or to the first layer's output where they are no target."""
    tape = perturbed.record(images, with_input=perturbed.input_only)
    source: Any = tape.inputs if perturbed.input_only else tape.uses[0].edge
    seed = torch.zeros_like(tape.logits)
    seed[:, 0] = 1
    for _ in range(passes):
        torch.autograd.grad(tape.logits, [source], grad_outputs=seed, retain_graph=True)


def floor_seconds(perturbed: Perturbed, images: Tensor, passes: int = 2) -> float:
    """Seconds of one plain backward pass, with respect to activations alone: the least of a few rounds."""
    sides = {str(count): partial(plain_passes, perturbed, images, count) for count in (0, passes)}
    seconds = interleaved(sides, ROUNDS, time.process_time)
    return (min(seconds[str(passes)]) - min(seconds["0"])) / passes


def print_profile(case: Case, size: int = 16) -> None:
    """Shares of the stages and of the operators, for exact values of every layer."""
    images, labels = case.images[:size], case.labels[:size]
    perturbed = case.perturbed("layer")
    print_title(f"Where the time of the layer target goes: {case.title}, {len(images)} images at once")
    passes = int(exact_influence(perturbed, images, labels).n_backward[0])
    sides: dict[str, Callable[[], object]] = {
        "whole": lambda: exact_influence(perturbed, images, labels),
        "floor": lambda: plain_passes(perturbed, images, passes),
    }
    seconds = interleaved(sides, ROUNDS, time.process_time)
    whole, floor = min(seconds["whole"]), min(seconds["floor"])
    with timed_stages() as stages:
        began = time.process_time()
        exact_influence(perturbed, images, labels)
        total = time.process_time() - began
    for name, value in [*stages.items(), ("the rest", total - sum(stages.values()))]:
        print(f"  {name:54s} {1e3 * value / len(images):7.2f} ms/image {value / total:6.1%}")
    print(
        f"  {1e3 * whole / len(images):.2f} ms/image; the forward pass and {passes} backward passes with respect to "
        f"activations alone {1e3 * floor / len(images):.2f}: {whole / floor:.2f} x this floor"
    )
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        exact_influence(perturbed, images, labels)
    events = sorted(recorded.key_averages(), key=lambda event: -event.self_cpu_time_total)
    every = sum(event.self_cpu_time_total for event in events)
    print("  by operator (torch.profiler, its own time):")
    for event in events[:SHOWN]:
        print(f"    {event.key:40s} {event.self_cpu_time_total / every:6.1%}  {event.count:6d} calls")


@contextmanager
def timed_stages() -> Iterator[dict[str, float]]:
    """Processor time of the stages while active."""
    seconds = {name: 0.0 for name, _, _ in STAGES}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                seconds[name] += time.process_time() - began

        return run

    with ExitStack() as stack:
        for name, holder, attribute in STAGES:
            stack.enter_context(patch.object(holder, attribute, timed(name, getattr(holder, attribute))))
        yield seconds
