"""FI of every layer: against torch.func's Jacobian of all parameters, nngeometry and curvlinops; at K = 1000; a profile.

On one thread, in processor time, which on an idle machine is wall time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from cases import Case, Work, batched, cifar_size, fastest_size, imagenet, imagenet_resnet18, imagenet_resnet50
from harness import Memory, Verdict, interleaved, print_ratio, print_sides, print_title
from profiled import floor_seconds, print_profile
from rivals import (
    layers_by_curvlinops,
    layers_by_nngeometry,
    layers_by_torch_func,
    missing,
    parameters_by_curvlinops,
    values_of,
    with_plain_weights,
)

from raysense.measures.influence import certified_influence, exact_influence

OURS, THEIRS = "layer target", "vmap(jacrev)"
RIVALS = {THEIRS: layers_by_torch_func, "nngeometry": layers_by_nngeometry, "curvlinops J^T": layers_by_curvlinops}
AGREE = 1e-3
"""Relative: the sides' float32 gradients differ by rounding, which the Gram matrices' small eigenvalues enlarge."""
TOLERANCE = 1e-2
Result = TypeVar("Result")
CG_IMAGES = 4


@dataclass(frozen=True)
class Trial:
    """A network at a number of classes.

    Attributes:
        build: Makes the case; by classes and images.
        classes: K.
        images: How many.
        sizes: The batch sizes tried; one image of ResNet-18 at K = 100 is 4.5 GB of Jacobian.
        target: How many times as fast as the rival.
    """

    build: Callable[[int, int], Case]
    classes: int
    images: int
    sizes: tuple[int, ...]
    target: float


TRIALS = (
    Trial(cifar_size, 10, 16, (1, 4, 8, 16), 1.0),
    Trial(imagenet_resnet18, 10, 4, (1, 2, 4), 1.0),
    Trial(cifar_size, 100, 4, (1, 2, 4), 4.0),
    Trial(imagenet_resnet18, 100, 1, (1,), 4.0),
)


def side(name: str, case: Case, double: bool) -> Work:
    """One of the ways to the values of every layer.

    Args:
        name: ``OURS`` or one of ``RIVALS``.
        case: The network.
        double: Whether a rival's Gram matrices are accumulated in float64.
    """
    if name == OURS:
        perturbed = case.perturbed("layer")
        return lambda x, y: values_of(exact_influence(perturbed, x, y))
    rival, module = RIVALS[name], with_plain_weights(case.module)
    return lambda x, y: rival(module, x, y, double)


def against(trial: Trial, rivals: Sequence[str], rounds: int) -> list[Verdict]:
    """All layers' exact FI, ours and others' in turn, each with the batch size that suits it best."""
    case = trial.build(trial.classes, trial.images)
    print_title(
        f"FI of every layer, K = {trial.classes}: {case.title}, {sum(p.numel() for p in case.module.parameters()):,} "
        f"parameters, {len(case.images)} images, {rounds} interleaved rounds"
    )
    double = {name: False if name == OURS else needs_double(name, case.first(1)) for name in (OURS, *rivals)}
    works = {name: side(name, case, double[name]) for name in double}
    size = {name: fastest_size(work, case.images, case.labels, trial.sizes) for name, work in works.items()}
    print(f"  batch sizes, each side's fastest of {trial.sizes}: " + ", ".join(f"{k} {n}" for k, n in size.items()))
    seconds = interleaved(
        {name: partial(batched, work, case.images, case.labels, size[name]) for name, work in works.items()},
        rounds,
        time.process_time,
    )
    print_sides(seconds, len(case.images), "ms/image")
    verdicts = []
    for name in rivals:
        judged = print_ratio(seconds, name, OURS, trial.target if name == THEIRS else None)
        verdicts += [Verdict(f"{case.title}, K = {trial.classes}: {v.what}", v.figure, v.target, v.met) for v in judged]
    for name in works:
        before, peak = in_fresh_process(peak_memory, trial, name, double[name], size[name])
        print(
            f"  peak resident memory, {name}, {size[name]} images at once: {peak / 1e9:.2f} GB, "
            f"{(peak - before) / 1e9:.2f} GB of it for the work"
        )
    return verdicts


def needs_double(name: str, case: Case) -> bool:
    """Whether a rival agrees with us only if it accumulates in float64, which is slower; raises if it does not then."""
    ours = side(OURS, case, False)(case.images, case.labels)
    for double in (False, True):
        theirs = side(name, case, double)(case.images, case.labels)
        off = float((theirs / ours - 1).abs().max())
        if off <= AGREE:
            print(
                f"  {name} agrees: largest relative difference of FI and Jacobian norms {off:.1e}; its Gram matrices "
                f"in {'float64, since float32 is wrong here' if double else 'float32, the faster choice'}"
            )
            return double
    raise AssertionError(f"the values of {name} differ from ours by {off:.1e}")


def peak_memory(trial: Trial, name: str, double: bool, size: int) -> tuple[int, int]:
    """Resident bytes before and at most during one batch of a side; in a process that did nothing else."""
    torch.set_num_threads(1)
    case = trial.build(trial.classes, size)
    work = side(name, case, double)
    case.module(case.images[:1])
    before, during = Memory(), Memory()
    with during.watched():
        work(case.images, case.labels)
    return before.peak, during.peak


def in_fresh_process(work: Callable[..., Result], *arguments: object) -> Result:
    """What a function returns that runs in a new process, with nothing of this one's memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def against_fisher_products() -> None:
    """FI of all parameters by curvlinops' Fisher-vector products and conjugate gradients."""
    if reason := missing("curvlinops"):
        print(f"\nleft out: {reason}")
        return
    case = cifar_size(10, CG_IMAGES)
    perturbed = case.perturbed("parameters")
    exact = exact_influence(perturbed, case.images, case.labels).fi[:, 0]
    sides: dict[str, Callable[[], Tensor]] = {
        "parameters, exact": lambda: exact_influence(perturbed, case.images, case.labels).fi[:, 0],
        "parameters, certified 1e-3": lambda: certified_influence(perturbed, case.images, case.labels, 1e-3).fi[:, 0],
    }
    module = with_plain_weights(case.module)
    names = {count: f"curvlinops CG, {count} iterations" for count in (9, 20)}
    for count, name in names.items():
        sides[name] = partial(parameters_by_curvlinops, module, case.images, case.labels, count)
    print_title(f"FI of all parameters at once, K = 10: {case.title}, {len(case.images)} images")
    for name, work in sides.items():
        print(f"  {name}: largest relative error {float((work() / exact - 1).abs().max()):.1e}")
    seconds = interleaved(sides, 2, time.process_time)
    print_sides(seconds, len(case.images), "ms/image")
    print_ratio(seconds, names[9], "parameters, exact")


def at_a_thousand_classes(build: Callable[[int], Case], count: int) -> None:
    """Certified to 1e-2 for one image after the other, against the floor of its plain backward passes."""
    torch.set_num_threads(1)
    case = build(count)
    print_title(f"certified {TOLERANCE:g}, K = 1000, one image at a time: {case.title}, {len(case.images)} images")
    floor = {
        "input": floor_seconds(case.perturbed("input"), case.images[:1]),
        "parameters": floor_seconds(case.perturbed("parameters"), case.images[:1]),
    }
    print(
        "  their floor: all their backward passes as plain ones; forward-mode products, one a row and try, are not in it"
    )
    print("  a plain backward pass: " + ", ".join(f"{1e3 * s:.0f} ms ({name})" for name, s in floor.items()))
    for kind in ("input", "parameters", "layer"):
        perturbed = case.perturbed(kind)
        perturbed.forward(case.images[:1])  # looks at how the parameters are used, once
        least = floor["input" if kind == "input" else "parameters"]
        for image, label in zip(case.images.split(1), case.labels.split(1), strict=True):
            memory = Memory()
            with memory.watched():
                began = time.process_time()
                found = certified_influence(perturbed, image, label, TOLERANCE)
                seconds = time.process_time() - began
            if not (found.upper - found.lower <= TOLERANCE * found.upper).all():
                raise AssertionError(f"an interval of target {kind} is wider than {TOLERANCE:g}")
            passes = int(found.n_backward)
            print(
                f"  {kind:10s} {seconds:7.2f} s  {passes:4d} passes  {seconds / (passes * least):5.2f} x their floor  "
                f"peak resident {memory.peak / 1e9:.2f} GB",
                flush=True,
            )


def squeezenet(count: int) -> Case:
    """Without the ids of the images."""
    return imagenet(count)[0]


def main(arguments: Sequence[str] = ()) -> list[Verdict]:
    """Print all comparisons; returns the figures against their targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds against the others")
    parser.add_argument("--images", type=int, default=2, help="images at K = 1000 of SqueezeNet; 0 leaves K = 1000 out")
    parser.add_argument("--trials", type=int, nargs="*", default=range(len(TRIALS)), help="which of the four trials")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    verdicts = []
    try:
        for number in options.trials:
            verdicts += against(TRIALS[number], others(number), options.rounds)
        against_fisher_products()
        if options.images:
            try:
                in_fresh_process(at_a_thousand_classes, squeezenet, options.images)
            except pytest.skip.Exception as absent:
                print(f"left out: {absent}")
            in_fresh_process(at_a_thousand_classes, imagenet_resnet50, 1)
        print_profile(cifar_size(10, 32))
    finally:
        torch.set_num_threads(threads)
    return verdicts


def others(number: int) -> list[str]:
    """The rivals of a trial: nngeometry and curvlinops, where they are installed, on the smallest only."""
    chosen = [THEIRS]
    if number == 0:
        for name, package in (("nngeometry", "nngeometry"), ("curvlinops J^T", "curvlinops")):
            reason = missing(package)
            if reason is None:
                chosen.append(name)
            else:
                print(f"\nleft out: {reason}")
    return chosen


if __name__ == "__main__":
    main(sys.argv[1:])
