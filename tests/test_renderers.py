"""Pictures: colours, antialiasing, derivatives by every parameter, back ends, and the authors' reference renders."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from shared_data import shared_data
from small_meshes import GENERIC, crossed_boards, cube, floor, joined, poses, torus
from torch import Tensor
from torchvision.io import read_image

from raysense.errors import UsageError
from raysense.semantics.axes import SCENE_AXES
from raysense.semantics.mesh_files import load_mesh
from raysense.semantics.meshes import Mesh, cleaned, normalised
from raysense.semantics.renderers import TorchRenderer, open_renderer
from raysense.semantics.shapes import open_shapes
from raysense.semantics.space import parse_space

CAMERA_AXES = ("azimuth", "elevation", "distance", "roll", "field_of_view")


def hard(size: int = 48, supersampling: int = 2) -> TorchRenderer:
    return TorchRenderer(size, supersampling, antialias=False, dtype=torch.float64)


def smooth(size: int = 48, supersampling: int = 2) -> TorchRenderer:
    return TorchRenderer(size, supersampling, dtype=torch.float64)


def picture(renderer: TorchRenderer, mesh: Mesh, parameters: dict[str, Tensor]) -> Tensor:
    return renderer.render(renderer.prepare(mesh), parameters)


def weighting(size: int) -> Tensor:
    """[3, size, size], smooth: the sum of a picture times it depends on where things are, and on each colour."""
    x = torch.linspace(-1, 1, size, dtype=torch.float64)
    return torch.stack([torch.cos(3 * x[:, None] + 1 + c) * torch.sin(2 * x + 0.5 * c) + 0.3 * x for c in range(3)])


def weighted_sum(renderer: TorchRenderer, mesh: Mesh) -> Callable[[dict[str, Tensor]], Tensor]:
    prepared = renderer.prepare(mesh)
    return lambda parameters: (renderer.render(prepared, parameters) * weighting(renderer.size)).sum()


def test_defaults_are_the_authors_light_and_colours() -> None:
    """A cube from in front and above: the top has light 0.5 + 0.5, the front 0.5, the background 0."""
    image = picture(hard(supersampling=1), cube(), poses(1, elevation=30.0))[0]
    assert image.unique().tolist() == [0.0, 0.5, 1.0]
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])
    lit, dim = ((image[0] == value).nonzero()[:, 0].double().mean() for value in (1.0, 0.5))
    assert lit < dim  # the top is above the front


@pytest.mark.parametrize("turned", [False, True])
def test_both_sides_of_a_face_are_shaded(turned: bool) -> None:
    board = Mesh(floor(0.0, 0.7).vertices, floor().faces.flip(1) if turned else floor().faces, "board")
    scene = {"ambient": 0.2, "light_intensity": 0.6, "red": 0.5, "background": 0.1, "light_elevation": 30.0}
    above = picture(hard(supersampling=1), board, poses(1, elevation=50.0, **scene))[0]
    below = picture(hard(supersampling=1), board, poses(1, elevation=-50.0, **scene))[0]
    middle = 24
    assert above[:, middle, middle].tolist() == pytest.approx([0.25, 0.5, 0.5])  # 0.2 + 0.6 sin 30
    assert below[:, middle, middle].tolist() == pytest.approx([0.1, 0.2, 0.2])
    assert above[:, 0, 0].tolist() == pytest.approx([0.1] * 3)


def test_colours_stay_in_range() -> None:
    bright = poses(1, ambient=0.9, light_intensity=0.9, background=1.0)
    thin = joined(torus(24, 12, 0.7, 0.02), crossed_boards())
    for renderer in (hard(), smooth()):
        for parameters in (bright, poses(1), poses(1, background=1.0, red=0.0)):
            image = picture(renderer, thin, parameters)
            assert image.min() >= 0
            assert image.max() <= 1 + 1e-12


def test_axes_are_turned_the_way_they_say() -> None:
    mesh = crossed_boards()
    upright, rolled = (picture(smooth(), mesh, poses(1, azimuth=20.0, elevation=10.0, roll=r)) for r in (0.0, 90.0))
    torch.testing.assert_close(rolled, torch.rot90(upright, 1, (2, 3)), rtol=0, atol=1e-9)
    over = picture(smooth(), mesh, poses(1, azimuth=20.0, elevation=115.0))
    before = picture(smooth(), mesh, poses(1, azimuth=200.0, elevation=65.0))
    torch.testing.assert_close(over, before.flip(2, 3), rtol=0, atol=1e-9)
    turned = picture(smooth(), mesh, poses(1, azimuth=380.0, elevation=10.0))
    torch.testing.assert_close(turned, upright, rtol=0, atol=1e-6)
    pole = picture(smooth(), mesh, poses(1, azimuth=20.0, elevation=90.0))
    beside = picture(smooth(), mesh, poses(1, azimuth=20.0, elevation=90.0 + 1e-7))
    torch.testing.assert_close(pole, beside, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("mesh", "most"),
    [(cube(), 0.15), (crossed_boards(), 0.15), (torus(), 0.3), (torus(96, 48), 0.5)],
    ids=["cube", "boards", "torus", "fine torus"],
)
def test_antialiasing_comes_near_the_exact_picture(mesh: Mesh, most: float) -> None:
    """Also where they pierce each other; less so where most faces are smaller than a sample, as of the last torus."""
    scene = poses(1, generic=True)
    exact = picture(hard(supersampling=24), mesh, scene)
    rough, fine = ((picture(renderer, mesh, scene) - exact).abs().mean() for renderer in (hard(), smooth()))
    assert fine < most * rough


@pytest.mark.parametrize("name", SCENE_AXES)
def test_derivatives_are_those_of_the_picture(name: str) -> None:
    """Central differences with a step so small that no sample changes its face: the derivative is exact."""
    function = weighted_sum(smooth(), joined(torus(), crossed_boards()))
    scene = poses(1, generic=True)
    scene[name].requires_grad_()
    (derivative,) = torch.autograd.grad(function(scene), scene[name])
    step = 1e-6
    ends = [float(function(scene | {name: (scene[name] + sign * step).detach()})) for sign in (1, -1)]
    assert float(derivative) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-6, abs=1e-6)
    assert abs(float(derivative)) > 1e-3


@pytest.mark.parametrize("name", CAMERA_AXES)
def test_derivatives_by_the_camera_are_those_of_the_exact_picture(name: str) -> None:
    """Steps of whole samples, against a fine raster without antialiasing.

    Where samples pass from face to face the antialiased picture is not continuous at corners: that is the allowance.
    """
    mesh, step = joined(cube(0.5), crossed_boards()), 0.02 if name == "distance" else 0.5
    exact = weighted_sum(hard(supersampling=20), mesh)
    ours, finite = [], []
    for azimuth in (10.0, 33.0, 140.0, 250.0):
        scene = poses(1, generic=True, azimuth=azimuth)
        ends = [float(exact(scene | {name: scene[name] + sign * step})) for sign in (1, -1)]
        finite.append((ends[0] - ends[1]) / (2 * step))
        scene[name].requires_grad_()
        ours.append(float(torch.autograd.grad(weighted_sum(smooth(), mesh)(scene), scene[name])[0]))
    error = torch.tensor(ours) - torch.tensor(finite)
    assert error.norm() < 0.12 * torch.tensor(finite).norm()


def test_forward_mode_and_vmapped_forward_mode_are_reverse_mode() -> None:
    renderer = smooth(24)
    prepared = renderer.prepare(joined(torus(), crossed_boards(), floor()))
    names = list(SCENE_AXES)
    point = torch.tensor([[GENERIC[name] for name in names]] * 2, dtype=torch.float64)
    point[1] *= 0.9
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(point.shape, dtype=torch.float64, generator=generator)

    def render(values: Tensor) -> Tensor:
        return renderer.render(prepared, {name: values[:, index] for index, name in enumerate(names)})

    image, tangent = torch.func.jvp(render, (point,), (direction,))
    pull = torch.randn(image.shape, dtype=torch.float64, generator=generator)
    leaf = point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((render(leaf) * pull).sum(), leaf)
    torch.testing.assert_close((tangent * pull).sum(), (gradient * direction).sum())
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(render(forward_ad.make_dual(point, direction))).tangent
    torch.testing.assert_close(dual, tangent)
    jacobian = torch.func.jacfwd(render)(point)
    torch.testing.assert_close((jacobian * direction).sum((-1, -2)), tangent)


def test_derivatives_go_through_the_near_plane() -> None:
    """A floor that the near plane cuts, and boards that the camera is between."""
    function = weighted_sum(smooth(), joined(floor(), crossed_boards()))
    scene = poses(1, generic=True, distance=0.3, elevation=12.0)
    for name in CAMERA_AXES:
        variable = scene[name].clone().requires_grad_()
        (derivative,) = torch.autograd.grad(function(scene | {name: variable}), variable)
        step = 1e-6
        ends = [float(function(scene | {name: scene[name] + sign * step})) for sign in (1, -1)]
        assert float(derivative) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-5)


def test_hard_pictures_depend_on_colours_alone() -> None:
    function = weighted_sum(hard(), torus())
    scene = {name: value.requires_grad_() for name, value in poses(1, generic=True).items()}
    gradients = torch.autograd.grad(function(scene), list(scene.values()), allow_unused=True)
    moved = {name for name, part in zip(scene, gradients, strict=True) if part is not None and part.abs() > 0}
    assert moved == set(SCENE_AXES) - set(CAMERA_AXES)


def test_poses_together_are_poses_one_by_one() -> None:
    mesh = joined(torus(), floor())
    many = poses(7, generic=True, azimuth=torch.arange(7) * 50.0, distance=torch.linspace(0.5, 3, 7))
    for renderer in (TorchRenderer(40), TorchRenderer(40, memory_bytes=2**18), TorchRenderer(40, antialias=False)):
        prepared = renderer.prepare(mesh)
        together = renderer.render(prepared, many)
        assert together.dtype == torch.float32
        assert together.shape == (7, 3, 40, 40)
        for index in range(7):
            one = renderer.render(prepared, {name: value[index : index + 1] for name, value in many.items()})
            torch.testing.assert_close(together[index : index + 1], one, rtol=0, atol=2e-7)
    assert renderer.render(prepared, poses(0)).shape == (0, 3, 40, 40)


def test_an_empty_view_is_background_and_differentiable() -> None:
    aside = Mesh(cube().vertices + torch.tensor([50.0, 0, 0]), cube().faces, "aside")
    scene = {name: value.requires_grad_() for name, value in poses(1, background=0.3).items()}
    image = picture(smooth(), aside, scene)
    torch.testing.assert_close(image, torch.full_like(image, 0.3))
    gradients = torch.autograd.grad(image.mean(), list(scene.values()), allow_unused=True)
    found = {name: 0.0 if part is None else float(part) for name, part in zip(scene, gradients, strict=True)}
    assert found.pop("background") == pytest.approx(1)
    assert not any(found.values())


def test_poses_that_are_not_finite_are_not_pictures() -> None:
    scene = poses(3, generic=True, azimuth=torch.tensor([0.0, float("nan"), 10]))
    scene["distance"][2] = torch.inf
    image = picture(smooth(), torus(), scene)
    assert image[0].isfinite().all()
    assert image[1:].isnan().all()


def test_single_precision_pictures_are_those_of_double_precision() -> None:
    scene = poses(3, generic=True, azimuth=torch.tensor([0.0, 50, 200]))
    single = TorchRenderer(48)
    difference = single.render(single.prepare(torus()), scene) - picture(smooth(), torus(), scene)
    assert difference.abs().max() < 1e-6


def test_repeated_and_reversed_faces_change_nothing() -> None:
    twice = Mesh(torus().vertices, torch.cat((torus().faces, torus().faces.flip(1))), "twice")
    scene = poses(1, generic=True)
    torch.testing.assert_close(picture(hard(), twice, scene), picture(hard(), torus(), scene))


def test_pictures_of_pytorch3d_are_ours() -> None:
    pytest.importorskip("pytorch3d.renderer.mesh", reason="PyTorch3D is not installed")
    mesh = joined(torus(), crossed_boards(), floor())
    scene = poses(3, generic=True, azimuth=torch.tensor([33.0, 100, 290]), distance=torch.tensor([2.9, 2.0, 0.6]))
    for antialias in (False, True):
        ours, theirs = (open_renderer(name, 64, antialias=antialias) for name in ("torch", "pytorch3d"))
        images = [renderer.render(renderer.prepare(mesh), scene) for renderer in (ours, theirs)]
        assert ((images[0] - images[1]).abs() < 1e-4).double().mean() > 0.995


def test_unusable_renderers_and_parameters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"renderer: there is no 'opengl'; choose from auto, torch, pytorch3d"):
        open_renderer("opengl")
    with pytest.raises(UsageError, match=r"size: 0 is too small"):
        open_renderer("torch", size=0)
    assert open_renderer("auto").name == "torch"
    monkeypatch.setitem(sys.modules, "pytorch3d.renderer.mesh", None)
    with pytest.raises(UsageError, match=r"'pytorch3d' cannot be imported .* or use 'torch'"):
        open_renderer("pytorch3d")
    renderer = hard()
    with pytest.raises(UsageError, match=r"parameters: roll is missing"):
        renderer.render(renderer.prepare(cube()), {k: v for k, v in poses(1).items() if k != "roll"})


AUTHORS_CLASSES = ["aeroplane", "bathtub", "bench", "bottle", "chair", "cup", "piano", "rifle", "vase", "toilet"]


def test_reference_renders_are_reproduced() -> None:
    """Without antialiasing and with two samples a side, to the rounding of the stored pictures."""
    data = shared_data("semantic")
    renderer = TorchRenderer(antialias=False)
    numbers: dict[str, list[int]] = {}
    for class_index, shape in json.loads((data / "dev_shapes.json").read_text()):
        numbers.setdefault(AUTHORS_CLASSES[class_index], []).append(shape)
    references = sorted((data / "ref_png").glob("*.png"))
    assert len(references) >= 7
    for path in references:
        name, shape, elevation, azimuth = re.fullmatch(r"(\w+)_(\d+)_e(\d+)_a(\d+)", path.stem).groups()  # type: ignore[union-attr]
        files = sorted((data / "shapes_dev" / name).glob("*.obj"))
        mesh = cleaned(normalised(load_mesh(files[numbers[name].index(int(shape))])))
        image = 255 * picture(renderer, mesh, poses(1, azimuth=float(azimuth), elevation=float(elevation)))[0]
        difference = (image - read_image(str(path))[:3]).abs()
        assert difference.mean() < 0.2, path.name
        assert (difference > 1.01).double().mean() < 1e-4, path.name


def test_faces_in_one_plane_are_drawn_alike_in_any_company() -> None:
    """A procedural chair's legs share planes with its seat: which face is seen there must not depend on other poses."""
    renderer = open_renderer("torch", size=16)
    mesh = renderer.prepare(open_shapes("procedural?variants=1&classes=chair").mesh("chair/0"))
    poses = torch.tensor([[a, e, d] for a in (0, 90, 180) for e in (-10, 40) for d in (2.7, 0.8)], dtype=torch.float64)
    space = parse_space(["azimuth", "elevation", "distance"])
    together = renderer.render(mesh, space.parameters(poses))
    alone = torch.cat([renderer.render(mesh, space.parameters(pose[None])) for pose in poses])
    assert torch.equal(together, alone)
