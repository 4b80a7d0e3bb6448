"""Our rasteriser against PyTorch3D's on the CPU at 224 x 224, and seconds per picture with shading and derivatives.

All on one thread, in processor time, which on an idle machine is wall time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import Verdict, interleaved, print_ratio, print_sides, print_title, print_verdict
from shared_data import shared_data
from small_meshes import poses, subdivided, torus

from raysense.errors import UsageError
from raysense.semantics.camera import camera
from raysense.semantics.clipping import Projected, project
from raysense.semantics.mesh_files import load_mesh
from raysense.semantics.meshes import Mesh, cleaned, normalised
from raysense.semantics.renderers import PreparedMesh, Renderer, TorchRenderer, open_renderer

SIZE = 224
BATCH = 8
TARGET = 20.0
STORED = {"small": 288, "median": 9_828, "big": 73_610}
"""Faces as the files store them, nearly each twice, in the meshes of the published study; half of that is drawn."""


def meshes() -> dict[str, Mesh]:
    """A small, a median and a big mesh: the nearest of the authors' shapes at hand, cut finer where it has fewer faces."""
    found = {}
    try:
        files = sorted(shared_data("semantic", "shapes_dev").glob("*/*.obj"))
        shapes = [cleaned(normalised(load_mesh(path, path.parent.name))) for path in files]
    except pytest.skip.Exception as absent:
        print(f"subdivided tori instead of the authors' shapes: {absent}")
        shapes = [torus()]
    for size, stored in STORED.items():
        nearest = min(shapes, key=lambda mesh: abs(len(mesh.faces) + mesh.duplicates - stored))
        least = stored // 2
        found[size] = nearest if len(nearest.faces) > 0.9 * least else subdivided(nearest, least)
    return found


def rivals() -> dict[str, Renderer]:
    """Back ends that can be had, at one sample a pixel: both sides draw the same raster."""
    sides: dict[str, Renderer] = {"torch": TorchRenderer(SIZE, supersampling=1)}
    try:
        sides["pytorch3d"] = open_renderer("pytorch3d", SIZE, supersampling=1)
    except UsageError as absent:
        print(f"left out: {absent}")
    return sides


def compare(size: str, mesh: Mesh, rounds: int) -> list[Verdict]:
    """Visible faces alone: one pose, and a batch of poses (on PyTorch3D's side for the small and the median mesh only)."""
    sides = rivals()
    prepared = sides["torch"].prepare(mesh)
    verdicts = []
    print_title(f"Visible faces, {size} mesh: {mesh.name}, {len(mesh.faces):,} faces, {SIZE} x {SIZE}, CPU")
    for count in (1, BATCH):
        scene = poses(count, azimuth=33.0 + torch.arange(count) * (360 / count), elevation=20.0)
        projected = projection(prepared, scene)
        compared = {
            f"{name}, {count} at a time": work(renderer, projected, count)
            for name, renderer in sides.items()
            if name == "torch" or count == 1 or size != "big"
        }
        results = [run() for run in compared.values()]
        if len(results) == 2:
            same = float((results[0] == results[1]).double().mean())
            verdicts.append(print_verdict(f"{size}: same face", f"{100 * same:.3f}%", ">= 99.5%", same >= 0.995))
        seconds = interleaved(compared, rounds, time.process_time)
        print_sides(seconds, count, "ms/image")
        if len(compared) == 2:
            fast, slow = compared
            verdicts += print_ratio(seconds, slow, fast, TARGET)
    return verdicts


def projection(prepared: PreparedMesh, scene: dict[str, Tensor]) -> Projected:
    """Triangles in raster coordinates: the same for both sides."""
    return project(camera(scene), prepared.vertices, prepared.faces, SIZE)


def work(renderer: Renderer, projected: Projected, count: int) -> Callable[[], Tensor]:
    """What is timed."""
    return lambda: renderer.visible(projected, count)


def pictures(size: str, mesh: Mesh, rounds: int) -> None:
    """Seconds of whole pictures as scans draw them: 448 x 448 samples, light, colours, antialiasing."""
    print_title(
        f"Pictures, {size} mesh: {len(mesh.faces):,} faces, {SIZE} x {SIZE} pixels of 2 x 2 samples, one at a time"
    )
    smooth, hard = TorchRenderer(SIZE), TorchRenderer(SIZE, antialias=False)
    prepared = smooth.prepare(mesh)
    scene = poses(1, azimuth=33.0, elevation=20.0)

    def with_gradient() -> None:
        leaves = {name: value.clone().requires_grad_() for name, value in scene.items()}
        smooth.render(prepared, leaves).sum().backward()

    sides: dict[str, Callable[[], object]] = {
        "prepare (once for each mesh)": lambda: smooth.prepare(mesh),
        "hard edges": lambda: hard.render(prepared, scene),
        "antialiased": lambda: smooth.render(prepared, scene),
        "antialiased, forward and backward": with_gradient,
    }
    print_sides(interleaved(sides, rounds, time.process_time), 1, "ms/image")


def main(arguments: Sequence[str] = ()) -> list[Verdict]:
    """Print the comparisons; returns the figures against their targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; PyTorch3D takes up to 10 s an image")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    verdicts = []
    try:
        for size, mesh in meshes().items():
            verdicts += compare(size, mesh, options.rounds)
            pictures(size, mesh, max(10, options.rounds))
    finally:
        torch.set_num_threads(threads)
    return verdicts


if __name__ == "__main__":
    main(sys.argv[1:])
