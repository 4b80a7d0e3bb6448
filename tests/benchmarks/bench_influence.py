"""FI of the input: exact and certified against torch.func at K = 10, certified against brute force at K = 1000.

All on one thread, in processor time, which on an idle machine is wall time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from cases import Case, Work, batched, cifar10, fastest_size, imagenet
from harness import Memory, Verdict, interleaved, print_ratio, print_sides, print_title, print_verdict
from rivals import input_by_torch_func, with_plain_weights

from raysense.digits import load_digits
from raysense.measures.influence import certified_influence, exact_influence
from raysense.measures.perturbed import Perturbed
from raysense.models import load_model

CHUNKS = (8, 16, 32, 64, 128)
CALIBRATED = 128
"""Images on which the batch size is chosen."""
AGREE = 1e-3
"""Relative: the sides' float32 gradients differ by rounding, which the Gram matrix's small eigenvalues enlarge."""
ROUNDING = 1e-4
"""Relative: float32 logits, and with them the bound (1 - p) / p, differ by the composition of the batch."""
MEMORY_TARGET = 4e9


def small_case(count: int) -> Case:
    """Ten classes: CIFAR-10 where its data are found, else the bundled digits."""
    try:
        return cifar10(count)
    except pytest.skip.Exception as absent:
        print(f"digits instead of CIFAR-10: {absent}")
    digits = load_digits("test")
    return Case("digits CNN", load_model("digits").module, digits.images[:count], digits.labels[:count])


def at_ten_classes(count: int, rounds: int) -> list[Verdict]:
    """Each side with the batch size that suits it best, found beforehand on some of the images."""
    case = small_case(count)
    images, labels = case.images, case.labels
    certified, exact, reference = "certified 1e-3", "exact", "vmap(jacrev)"
    perturbed, plain = case.perturbed("input"), with_plain_weights(case.module)
    sides: dict[str, Work] = {
        reference: lambda x, y: input_by_torch_func(plain, x, y),
        exact: lambda x, y: exact_influence(perturbed, x, y).fi[:, 0],
        certified: lambda x, y: certified_influence(perturbed, x, y, 1e-3).fi[:, 0],
    }
    print_title(f"FI of the input, K = 10: {case.title}, {len(images)} images, {rounds} interleaved rounds")
    shown = case.first(CALIBRATED)
    size = {side: fastest_size(work, shown.images, shown.labels, CHUNKS) for side, work in sides.items()}
    print(f"  batch sizes, each side's fastest of {CHUNKS}: " + ", ".join(f"{side} {n}" for side, n in size.items()))
    check_agreement(perturbed, images, labels, batched(sides[reference], images, labels, size[reference]))
    seconds = interleaved(
        {side: partial(batched, work, images, labels, size[side]) for side, work in sides.items()},
        rounds,
        time.process_time,
    )
    print_sides(seconds, len(images), "ms/image")
    judged = case.title.startswith("CIFAR")  # the digits CNN is too small for the targets
    return [
        *print_ratio(seconds, reference, exact, 1.3 if judged else None),
        *print_ratio(seconds, reference, certified, 2.0 if judged else None),
        *print_ratio(seconds, exact, certified),
    ]


def check_agreement(perturbed: Perturbed, images: Tensor, labels: Tensor, reference: Tensor) -> None:
    """Refuse to compare the times of sides that compute different things."""
    exact, certified = exact_influence(perturbed, images, labels), certified_influence(perturbed, images, labels, 1e-3)
    torch.testing.assert_close(exact.fi[:, 0], reference, rtol=AGREE, atol=0)
    lower, upper = certified.lower[:, 0], certified.upper[:, 0]
    inside = (lower <= reference * (1 + ROUNDING)) & (reference <= upper * (1 + ROUNDING))
    if not inside.all():
        raise AssertionError(
            f"the certified intervals of images {(~inside).nonzero().squeeze(1).tolist()} do not hold FI"
        )
    passes = certified.n_backward.double()
    print(
        f"  the values agree: largest relative difference {float((exact.fi[:, 0] / reference - 1).abs().max()):.1e}; all "
        f"certified intervals hold FI; backward passes per image: exact {int(exact.n_backward[0])}, certified mean "
        f"{passes.mean():.2f}"
    )


def at_a_thousand_classes(count: int) -> list[Verdict]:
    """Certified to 1e-2 and 999 backward passes in turn, image by image."""
    case, ids = imagenet(count)
    perturbed = case.perturbed("input")
    print_title(f"FI of the input, K = 1000: {case.title}, {len(ids)} images, one at a time, true label")
    certified, exact = "certified 1e-2", "999 passes"
    seconds: dict[str, list[float]] = {certified: [], exact: []}
    memory = {certified: Memory(), exact: Memory()}
    passes = []
    case.module(case.images[:1])  # the first pass pays for what comes once
    for name, image, label in zip(ids, case.images.split(1), case.labels.split(1), strict=True):
        with memory[certified].watched():
            began = time.process_time()
            interval = certified_influence(perturbed, image, label, 1e-2)
            seconds[certified].append(time.process_time() - began)
        with memory[exact].watched():
            began = time.process_time()
            value = exact_influence(perturbed, image, label)
            seconds[exact].append(time.process_time() - began)
        low, high, fi = float(interval.lower), float(interval.upper), float(value.fi)
        passes.append(int(interval.n_backward))
        print(
            f"  {name:48s} {passes[-1]:4d} passes {seconds[certified][-1]:7.2f} s, "
            f"{seconds[exact][-1]:7.2f} s  FI {fi:.6g} in [{low:.6g}, {high:.6g}], "
            f"(1 - p) / p {float(value.bound):.6g}, rank {int(value.rank)}"
        )
        if not low * (1 - ROUNDING) <= fi <= high * (1 + ROUNDING):
            raise AssertionError(f"FI of {name} is {fi!r}, outside the certified [{low!r}, {high!r}]")
        if high - low > 1e-2 * high:
            raise AssertionError(f"the interval of {name} is wider than 1e-2: [{low!r}, {high!r}]")
    print(
        f"  all intervals hold FI; certified backward passes: mean {statistics.mean(passes):.1f}, median "
        f"{statistics.median(passes):g}, max {max(passes)}"
    )
    print_sides(seconds, 1, "s/image")
    print_ratio(seconds, exact, certified)
    total = sum(seconds[exact]) / sum(seconds[certified])
    peak = memory[certified].peak
    print(f"  peak resident memory of the process in exact {memory[exact].peak / 1e9:.2f} GB")
    return [
        print_verdict("all images, 999 passes / certified 1e-2", f"{total:.1f}x in total time", ">= 20x", total >= 20),
        print_verdict("peak resident memory in certified 1e-2", f"{peak / 1e9:.2f} GB", "< 4 GB", peak < MEMORY_TARGET),
    ]


def main(arguments: Sequence[str] = ()) -> list[Verdict]:
    """Print both comparisons; returns the figures against their targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small-images", type=int, default=256, help="images at K = 10")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds at K = 10")
    parser.add_argument("--images", type=int, default=8, help="images at K = 1000, about 40 s each; 0 leaves them out")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        verdicts = at_ten_classes(options.small_images, options.rounds)
        if options.images:
            verdicts += at_a_thousand_classes(options.images)
    except pytest.skip.Exception as absent:
        print(f"left out: {absent}")
    finally:
        torch.set_num_threads(threads)
    return verdicts


if __name__ == "__main__":
    main(sys.argv[1:])
