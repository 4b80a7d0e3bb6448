"""Distance to the decision boundary: against foolbox's L2 DeepFool and the authors' loop over images (LTS4).

On one thread, in processor time, which on an idle machine is wall time. The authors' code is not part of this
repository: ``RAYSENSE_LTS4_DEEPFOOL`` names its ``deepfool.py`` (github.com/LTS4/DeepFool, in the folder Python).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from cases import Case, cifar10, fastest_size
from harness import Verdict, interleaved, print_ratio, print_sides, print_title, print_verdict
from rivals import missing, with_plain_weights

from raysense.measures.boundary.deepfool import FOUND, NearestBoundary, nearest_boundary

LTS4 = "RAYSENSE_LTS4_DEEPFOOL"
CHUNKS = (16, 32, 64)
CALIBRATED = 64
"""Images on which the batch size is chosen."""
STEPS, OVERSHOOT, CLASSES = 50, 0.02, 10
UNIT = (0.0, 1.0)
FREE = (-1e3, 1e3)
"""foolbox needs bounds: these are far enough not to matter."""
Points = Callable[[Tensor], Tensor]
"""Images to points beyond or on the boundary."""


def by_foolbox(module: nn.Module, bounds: tuple[float, float]) -> Points:
    """Adversarial images, all classes looked at at each step."""
    import foolbox

    model: Any = foolbox.PyTorchModel(module, bounds=bounds, device="cpu")
    attack = foolbox.attacks.L2DeepFoolAttack(steps=STEPS, candidates=CLASSES, overshoot=OVERSHOOT)

    def points(images: Tensor) -> Tensor:
        with torch.no_grad():
            predicted = module(images).argmax(1)
        found: Tensor = attack.run(model, images, foolbox.criteria.Misclassification(predicted))
        return found

    return points


def by_authors(module: nn.Module, source: ModuleType) -> Points:
    """The authors' loop, image by image."""

    def points(images: Tensor) -> Tensor:
        with contextlib.redirect_stdout(io.StringIO()):  # it says for every image that it is on the CPU
            return torch.cat([source.deepfool(image, module, CLASSES, OVERSHOOT, STEPS)[4] for image in images])

    return points


def authors_module() -> ModuleType | str:
    """The authors' code, or why it is left out."""
    path = os.environ.get(LTS4)
    if path is None:
        return f"the loop of LTS4: {LTS4} does not name its deepfool.py"
    if not Path(path).is_file():
        return f"the loop of LTS4: there is no file {path}, which {LTS4} names"
    spec = importlib.util.spec_from_file_location("lts4_deepfool", path)
    if spec is None or spec.loader is None:
        return f"the loop of LTS4: {path} is no Python file"
    # PyTorch had this function until 1.8; the package's attribute of the module's name is a function.
    importlib.import_module("torch.autograd.gradcheck").zero_gradients = lambda x: x.grad.zero_()
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours(module: nn.Module, images: Tensor, **settings: Any) -> NearestBoundary:
    return nearest_boundary(module, images, candidates=CLASSES, max_iterations=STEPS, overshoot=OVERSHOOT, **settings)


def in_batches(points: Points, images: Tensor, size: int) -> Tensor:
    return torch.cat([points(part) for part in images.split(size)])


def norms(points: Tensor, images: Tensor) -> Tensor:
    return torch.linalg.vector_norm((points.double() - images).flatten(1), dim=1)


def print_passes(module: nn.Module, case: Case, size: int, settings: dict[str, Any]) -> None:
    """Steps, passes, and how exact what was found is."""
    parts = [ours(module, part, **settings) for part in case.images.split(size)]
    steps, residual, alignment, slack, status = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("iterations", "residual", "alignment", "slack", "status")
    )
    distance = torch.cat([part.distance for part in parts])
    count = len(case.images)
    forward, backward = (sum(getattr(part, name) for part in parts) / count for name in ("n_forward", "n_backward"))
    print(
        f"    {settings}: steps mean {steps.double().mean():.2f}, max {int(steps.max())}; passes per image forward "
        f"{forward:.2f}, backward {backward:.2f}; residual / distance max {(residual / distance).max():.1e}; alignment "
        f"median {alignment.median():.3f}; least slack {slack.min():.2f}; found {int((status == FOUND).sum())} of {count}"
    )


def compare(case: Case, rounds: int, threads: int) -> list[Verdict]:
    """Each side in batches of the size that suits it best, found beforehand."""
    module, plain = case.module, with_plain_weights(case.module)
    rivals: dict[str, tuple[Points, dict[str, Any]]] = {}
    absent = missing("foolbox")
    if absent is None:
        rivals["foolbox in [0, 1]"] = by_foolbox(plain, UNIT), {"box": UNIT}
        rivals["foolbox"] = by_foolbox(plain, FREE), {}
    else:
        print(f"  left out: {absent}")
    authors = authors_module()
    if isinstance(authors, ModuleType):
        rivals["LTS4"] = by_authors(plain, authors), {}
    else:
        print(f"  left out: {authors}")
    sides: dict[str, Points] = {name: points for name, (points, _) in rivals.items()}
    variants = {
        "raysense in [0, 1]": {"box": UNIT},
        "raysense": {},
        "raysense, polish 2": {"polish": 2},
        "raysense, polish 0": {"polish": 0},
    }
    for name, settings in variants.items():
        sides[name] = partial(_points, module, settings)
    what = f"{case.title}, {len(case.images)} images, {rounds} interleaved rounds, {threads} thread(s)"
    print_title(f"Distance to the boundary: {what}")
    shown = case.first(CALIBRATED)
    size = {
        name: 1
        if name == "LTS4"
        else fastest_size(lambda x, _, work=work: work(x), shown.images, shown.labels, CHUNKS, 1)
        for name, work in sides.items()
    }
    print("  batch sizes, each side's fastest: " + ", ".join(f"{name} {n}" for name, n in size.items()))
    found: dict[str, Tensor] = {}

    def keeping(name: str) -> None:
        found[name] = in_batches(sides[name], case.images, size[name])

    clock = time.process_time if threads == 1 else time.perf_counter
    seconds = interleaved({name: partial(keeping, name) for name in sides}, rounds, clock)
    print_sides(seconds, len(case.images), "ms/image")
    for settings in variants.values():
        print_passes(module, case, size["raysense"], settings)
    verdicts = []
    for rival, (_, settings) in rivals.items():
        own = "raysense in [0, 1]" if settings else "raysense"
        with torch.no_grad():
            predicted = plain(case.images).argmax(1)
            crossed = plain(found[rival]).argmax(1) != predicted
        others = () if settings else ("raysense, polish 2", "raysense, polish 0")
        for name in (own, *others):
            ratio = norms(found[name], case.images)[crossed] / norms(found[rival], case.images)[crossed]
            figure = f"{ratio.median():.4f} median, {ratio.mean():.4f} mean, {ratio.max():.4f} largest"
            text = f"{name} / {rival}: {figure}; nearer for {(ratio < 1).double().mean():.1%} of {len(ratio)}"
            if name == own:
                verdicts.append(print_verdict("distance " + text, "as said", "median <= 1", bool(ratio.median() <= 1)))
                verdicts += print_ratio(seconds, rival, name, 10.0 if rival == "LTS4" else 5.0)
            else:
                print(f"  distance {text}")
                print_ratio(seconds, rival, name)
    return verdicts


def _points(module: nn.Module, settings: dict[str, Any], images: Tensor) -> Tensor:
    return ours(module, images, **settings).points


def main(arguments: Sequence[str] = ()) -> list[Verdict]:
    """Print the comparison; returns the figures against their targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--threads", type=int, default=1, help="of every side; beyond one it is wall time that counts")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        return compare(cifar10(options.images), options.rounds, options.threads)
    except pytest.skip.Exception as absent:
        print(f"left out: {absent}")
        return []
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main(sys.argv[1:])
