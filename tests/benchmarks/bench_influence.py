"""FI of the input: exact and certified against torch.func at K = 10, certified against brute force at K = 1000.

All on one thread, in processor time, which on an idle machine is wall time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import Memory, Verdict, interleaved, print_ratio, print_sides, print_title, print_verdict
from shared_data import shared_data

from raysense.datasets import open_data
from raysense.digits import load_digits
from raysense.measures.fisher import gram_matrix, influence
from raysense.measures.influence import certified_influence, exact_influence
from raysense.measures.perturbed import Perturbed
from raysense.models import load_model

CIFAR = "CIFAR-10, ResNet-20"
TESTS = Path(__file__).resolve().parents[1]
CHUNKS = (8, 16, 32, 64, 128)
CALIBRATED = 128
"""Images on which the batch size is chosen."""
AGREE = 1e-3
"""Relative: the sides' float32 gradients differ by rounding, which the Gram matrix's small eigenvalues enlarge."""
ROUNDING = 1e-4
"""Relative: float32 logits, and with them the bound (1 - p) / p, differ by the composition of the batch."""
MEMORY_TARGET = 4e9
Work = Callable[[Tensor, Tensor], Tensor]
"""FI of images and their labels."""


def small_case(count: int) -> tuple[str, nn.Module, Tensor, Tensor]:
    """Ten classes: name, model, images and labels; CIFAR-10 where its data are found, else the bundled digits."""
    try:
        checkpoint, data = shared_data("cifar10", "resnet20.pt"), shared_data("cifar10", "test.npz")
    except pytest.skip.Exception as absent:
        print(f"digits instead of CIFAR-10: {absent}")
        digits = load_digits("test")
        return "digits CNN", load_model("digits").module, digits.images[:count], digits.labels[:count]
    model = load_model(f"{TESTS / 'zoo' / 'cifar_resnet.py'}:resnet?depth=20&checkpoint={checkpoint}").module
    source = open_data(f"npz:{data}")
    table = source.list().table
    reader = source.reader(table)
    images = torch.stack([reader.read(row) for row in range(min(count, len(reader)))])
    return CIFAR, model, images.float() / 255, torch.tensor(table["label"].to_pylist()[: len(images)])


def by_torch_func(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """FI from vmap(jacrev) of one sample's logits, which come out beside their Jacobian, and our Gram algebra."""

    def logits_twice(image: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(image[None])[0]
        return logits, logits

    jacobian, logits = vmap(jacrev(logits_twice, has_aux=True))(images)
    logits, rows = logits.double(), jacobian.flatten(2)
    reference = logits.argmax(1)
    rows = rows - rows.gather(1, reference[:, None, None].expand(-1, 1, rows.shape[2]))
    return influence(logits, gram_matrix(rows), classes, reference).fi


def at_ten_classes(count: int, rounds: int) -> list[Verdict]:
    """Each side with the batch size that suits it best, found beforehand on some of the images."""
    name, model, images, labels = small_case(count)
    certified, exact, reference = "certified 1e-3", "exact", "vmap(jacrev)"
    perturbed = Perturbed(model)
    sides: dict[str, Work] = {
        reference: lambda x, y: by_torch_func(model, x, y),
        exact: lambda x, y: exact_influence(perturbed, x, y).fi[:, 0],
        certified: lambda x, y: certified_influence(perturbed, x, y, 1e-3).fi[:, 0],
    }
    print_title(f"FI of the input, K = 10: {name}, {len(images)} images, {rounds} interleaved rounds")
    size = {side: fastest_size(work, images[:CALIBRATED], labels[:CALIBRATED]) for side, work in sides.items()}
    print(f"  batch sizes, each side's fastest of {CHUNKS}: " + ", ".join(f"{side} {n}" for side, n in size.items()))
    check_agreement(perturbed, images, labels, batched(sides[reference], images, labels, size[reference]))
    seconds = interleaved(
        {side: partial(batched, work, images, labels, size[side]) for side, work in sides.items()},
        rounds,
        time.process_time,
    )
    print_sides(seconds, len(images), "ms/image")
    judged = name == CIFAR  # the digits CNN is too small for the targets
    return [
        *print_ratio(seconds, reference, exact, 1.3 if judged else None),
        *print_ratio(seconds, reference, certified, 2.0 if judged else None),
        *print_ratio(seconds, exact, certified),
    ]


def batched(work: Work, images: Tensor, labels: Tensor, size: int) -> Tensor:
    """Values of all images, ``size`` at a time."""
    return torch.cat([work(x, y) for x, y in zip(images.split(size), labels.split(size), strict=True)])


def fastest_size(work: Work, images: Tensor, labels: Tensor) -> int:
    """The batch size with the least time in two rounds over all of them."""
    sizes = [size for size in CHUNKS if size <= len(images)] or [len(images)]
    sides = {str(size): partial(batched, work, images, labels, size) for size in sizes}
    seconds = interleaved(sides, 2, time.process_time)
    return min(sizes, key=lambda size: min(seconds[str(size)]))


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
    checkpoint = shared_data("imagenet", "squeezenet1_0_fp16.pt")
    folder, synsets = shared_data("imagenet", "images"), shared_data("imagenet", "synsets.txt")
    loaded = load_model(f"{TESTS / 'zoo' / 'squeezenet.py'}:squeezenet?checkpoint={checkpoint}")
    assert loaded.preprocessing is not None
    source = open_data(f"folder:{folder}?classes={synsets}")
    table = source.list().table
    reader = source.reader(table)
    perturbed = Perturbed(loaded.module)
    chosen = [index * len(reader) // count for index in range(min(count, len(reader)))]
    print_title(f"FI of the input, K = 1000: ImageNet, SqueezeNet 1.0, {len(chosen)} images, one at a time, true label")
    certified, exact = "certified 1e-2", "999 passes"
    seconds: dict[str, list[float]] = {certified: [], exact: []}
    memory = {certified: Memory(), exact: Memory()}
    passes = []
    for row in chosen:
        image = loaded.preprocessing.apply(reader.read(row))[None].float() / 255
        label = torch.tensor([table["label"][row].as_py()])
        if row == chosen[0]:
            loaded.module(image)  # the first pass pays for what comes once
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
            f"  {table['sample_id'][row].as_py():48s} {passes[-1]:4d} passes {seconds[certified][-1]:7.2f} s, "
            f"{seconds[exact][-1]:7.2f} s  FI {fi:.6g} in [{low:.6g}, {high:.6g}], "
            f"(1 - p) / p {float(value.bound):.6g}, rank {int(value.rank)}"
        )
        if not low * (1 - ROUNDING) <= fi <= high * (1 + ROUNDING):
            raise AssertionError(f"FI of row {row} is {fi!r}, outside the certified [{low!r}, {high!r}]")
        if high - low > 1e-2 * high:
            raise AssertionError(f"the interval of row {row} is wider than 1e-2: [{low!r}, {high!r}]")
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
