"""The rasteriser against brute force, analytic scenes and PyTorch3D; camera and clipping."""

from __future__ import annotations

import math

import pytest
import torch
from small_meshes import crossed_boards, cube, floor, joined, poses, torus
from torch import Tensor

from raysense.semantics.camera import NEAR, camera, direction, to_raster
from raysense.semantics.clipping import Projected, project
from raysense.semantics.meshes import Mesh
from raysense.semantics.rasterizer import Seen, rasterize

SIZE = 48


def drawn(mesh: Mesh, parameters: dict[str, Tensor], size: int = SIZE, memory_bytes: int = 2**28) -> Seen:
    projected = project(camera(parameters), mesh.vertices, mesh.faces.T, size)
    return seen(projected, len(parameters["azimuth"]), size, memory_bytes)


def seen(projected: Projected, count: int, size: int = SIZE, memory_bytes: int = 2**28) -> Seen:
    return rasterize(projected.points, projected.corners, projected.pose, count, size, memory_bytes)


def brute_force(points: Tensor, corners: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Inverse depth [T, size, size] of every triangle at every sample, -inf outside, by barycentric coordinates."""
    y, x = torch.meshgrid(*(torch.arange(size, dtype=torch.float64),) * 2, indexing="ij")
    (ax, ay, aw), (bx, by, bw), (cx, cy, cw) = (points[row].T[:, :, None, None] for row in corners)
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    b = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) / area
    c = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / area
    a = 1 - b - c
    inside = (a >= 0) & (b >= 0) & (c >= 0)
    return torch.where(inside, a * aw + b * bw + c * cw, -torch.inf), torch.minimum(torch.minimum(a, b), c)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nearest_triangle_of_random_ones_is_that_of_brute_force(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(3 * 60, 3, dtype=torch.float64, generator=generator)
    points[:, :2] = points[:, :2] * 2 * SIZE - SIZE / 2  # many reach beyond the raster
    points[:, 2] += 0.1
    points[90:, :2] = points[90:, :2] / 8 + SIZE / 3  # many are small
    corners = torch.arange(len(points)).view(-1, 3).T
    depth, margin = brute_force(points, corners, SIZE)
    nearest, expected = depth.max(0)
    covered = nearest > -torch.inf
    found = rasterize(points.to(dtype), corners, torch.zeros(60, dtype=torch.int64), 1, SIZE)
    # In float32, samples that are nearly on an edge, or where two depths nearly agree, may go either way.
    unsure = (margin.abs() < 1e-4).any(0) | (depth.sort(0).values.diff(dim=0)[-1] < 1e-4)
    sure = ~unsure if dtype == torch.float32 else torch.ones_like(unsure)
    assert sure.double().mean() > 0.9
    assert covered.double().mean() > 0.5
    assert torch.equal(torch.where(covered, expected, 60)[sure], found.triangle[0][sure])
    torch.testing.assert_close(
        found.inverse_depth[0][covered & sure],
        nearest[covered & sure],
        rtol=0,
        atol=1e-9 if dtype == torch.float64 else 1e-4,
    )


def test_shared_edges_leave_no_gap_even_through_samples() -> None:
    generator = torch.Generator().manual_seed(1)
    steps = 12
    y, x = torch.meshgrid(*(torch.arange(steps + 1, dtype=torch.float64),) * 2, indexing="ij")
    grid = torch.stack((x, y), -1) * (SIZE / (steps - 2)) - SIZE / (steps - 2)
    inner = grid[1:-1, 1:-1]
    inner += torch.rand(inner.shape, generator=generator, dtype=torch.float64) * 3 - 1.5
    inner[::2] = inner[::2].round()  # corners and edges exactly on samples
    points = torch.cat((grid.view(-1, 2), torch.ones((steps + 1) ** 2, 1, dtype=torch.float64)), 1)
    i, j = torch.meshgrid(torch.arange(steps), torch.arange(steps), indexing="ij")
    a = (i * (steps + 1) + j).view(-1)
    corners = torch.cat((torch.stack((a, a + 1, a + steps + 1)), torch.stack((a + 1, a + steps + 2, a + steps + 1))), 1)
    for dtype in (torch.float64, torch.float32):
        found = rasterize(points.to(dtype), corners, torch.zeros_like(corners[0]), 1, SIZE)
        assert (found.triangle < corners.shape[1]).all()
        torch.testing.assert_close(found.inverse_depth, torch.ones(1, SIZE, SIZE, dtype=torch.float64))


def test_first_of_coinciding_triangles_is_shown() -> None:
    points = torch.tensor([[2.0, 2, 1], [30, 5, 1], [9, 40, 1]], dtype=torch.float64)
    corners = torch.tensor([[0, 1], [1, 2], [2, 0]])
    triangle = rasterize(points, corners, torch.zeros(2, dtype=torch.int64), 1, SIZE).triangle
    assert set(triangle.unique().tolist()) == {0, 2}


def test_parts_and_batches_give_the_same_as_all_at_once_and_one_by_one() -> None:
    mesh = joined(torus(), crossed_boards(), floor())
    many = poses(5, azimuth=torch.arange(5) * 70.0, elevation=torch.tensor([0.0, 20, 60, 90, 130]), distance=0.9)
    whole = drawn(mesh, many)
    assert torch.equal(whole.triangle, drawn(mesh, many, memory_bytes=2**16).triangle)
    assert torch.equal(whole.triangle, drawn(mesh, many, memory_bytes=1).triangle)
    projected = project(camera(many), mesh.vertices, mesh.faces.T, SIZE)
    face = torch.cat((projected.face, torch.tensor([-1])))
    for index in range(5):
        one = {name: value[index : index + 1] for name, value in many.items()}
        alone = project(camera(one), mesh.vertices, mesh.faces.T, SIZE)
        single = seen(alone, 1)
        assert torch.equal(face[whole.triangle[index]], torch.cat((alone.face, torch.tensor([-1])))[single.triangle[0]])
        # The fixed point of a batch is that of its nearest point.
        torch.testing.assert_close(whole.inverse_depth[index], single.inverse_depth[0], rtol=0, atol=1e-8)


def test_nothing_in_view_is_an_empty_raster() -> None:
    aside = Mesh(cube().vertices + torch.tensor([50.0, 0, 0]), cube().faces, "aside")
    behind = Mesh(cube().vertices - torch.tensor([0.0, 0, 9]), cube().faces, "behind")
    small = Mesh(cube().vertices * 1e-4 + torch.tensor([1e-3, 0, 0]), cube().faces, "between samples")
    for mesh in (aside, behind, small):
        found = drawn(mesh, poses(2))
        assert (found.triangle == found.triangle.max()).all()
        assert (found.inverse_depth == 0).all()


@pytest.mark.parametrize(("elevation", "roll"), [(20.0, 0.0), (-15.0, 0.0), (5.0, 70.0), (90.0, 0.0), (-90.0, 30.0)])
def test_a_floor_through_the_near_plane_is_where_the_rays_meet_it(elevation: float, roll: float) -> None:
    """The floor reaches behind the camera: without clipping, or with faces dropped, it would be wrong or missing."""
    height, half = -0.5, 40.0
    parameters = poses(1, elevation=elevation, roll=roll, azimuth=25.0)
    projected = project(camera(parameters), floor(height, half).vertices, floor().faces.T, SIZE)
    found = seen(projected, 1)
    view = camera(parameters)
    steps = (torch.arange(SIZE, dtype=torch.float64) + 0.5) / SIZE * 2 - 1
    y, x = torch.meshgrid(-steps, steps, indexing="ij")
    rays = torch.stack((x, y, torch.ones_like(x) * view.focal), dim=-1) @ view.rotation[0]
    rays = rays / view.focal  # depth 1 along the viewing direction
    depth = (height - view.eye[0, 1]) / rays[..., 1]
    hit = view.eye[0] + depth[..., None] * rays
    expected = (depth >= NEAR) & (hit[..., 0].abs() <= half) & (hit[..., 2].abs() <= half)
    if abs(elevation) < 90:
        assert len(projected.corners[0]) > 2  # that is, something was cut
        assert 0.1 < expected.double().mean() < 0.9
    assert torch.equal(found.inverse_depth[0] > 0, expected)
    torch.testing.assert_close(1 / found.inverse_depth[0][expected], depth[expected], rtol=1e-7, atol=1e-7)


def test_faces_are_cut_to_what_is_in_front() -> None:
    """One vertex behind the near plane leaves two triangles, two leave one, three none; the cut lies on the plane."""
    z = -2.732  # where the camera of the default elevation 0 is
    places = torch.tensor([[0.0, 0, z + 1], [1, 0, z + 1], [0, 1, z + 1], [1, 1, z - 1], [0, 2, z - 1], [2, 2, z - 2]])
    faces = torch.tensor([[0, 1, 2], [0, 1, 3], [3, 1, 4], [3, 4, 5]])
    found = project(camera(poses(1, elevation=0.0)), places.double(), faces.T, SIZE)
    assert found.face.tolist() == [0, 1, 2, 1]
    nearest = found.points[found.corners, 2].amax(0)
    torch.testing.assert_close(nearest, torch.tensor([1, 1 / NEAR, 1 / NEAR, 1 / NEAR], dtype=torch.float64))


def test_camera_is_that_of_look_at_below_the_poles() -> None:
    azimuth = torch.tensor([0.0, 40, 130, 300, -20])
    elevation = torch.tensor([0.0, 30, -60, 89, -89.9])
    view = camera(poses(5, azimuth=azimuth, elevation=elevation, distance=3.0))
    a, e = azimuth.double() * math.pi / 180, elevation.double() * math.pi / 180
    eye = 3 * torch.stack((e.cos() * a.sin(), e.sin(), -e.cos() * a.cos()), 1)
    forward = -eye / 3
    right = torch.nn.functional.normalize(
        torch.linalg.cross(torch.tensor([[0.0, 1, 0]]).double().expand(5, 3), forward)
    )
    rotation = torch.stack((right, torch.linalg.cross(forward, right), forward), 1)
    torch.testing.assert_close(view.eye, eye)
    torch.testing.assert_close(view.rotation, rotation)
    torch.testing.assert_close(direction(azimuth.double(), elevation.double()), eye / 3)


def test_the_way_over_a_pole_is_smooth_and_goes_on_upside_down() -> None:
    over = camera(poses(3, azimuth=20.0, elevation=torch.tensor([89.999999, 90.0, 90.000001])))
    torch.testing.assert_close(over.rotation[0], over.rotation[1], rtol=0, atol=1e-7)
    torch.testing.assert_close(over.rotation[1], over.rotation[2], rtol=0, atol=1e-7)
    past, before = camera(poses(1, azimuth=20.0, elevation=110.0)), camera(poses(1, azimuth=200.0, elevation=70.0))
    torch.testing.assert_close(past.eye, before.eye)
    turned = torch.tensor([-1.0, -1, 1], dtype=torch.float64)[:, None] * before.rotation
    torch.testing.assert_close(past.rotation, turned)


def test_projection_centre_and_field_of_view() -> None:
    view = torch.tensor([[0.0, 0, 2], [1, 1, 1], [-1, 1, 1]], dtype=torch.float64)
    points = to_raster(view, torch.tensor(1.0, dtype=torch.float64), 10)  # 90 degrees
    torch.testing.assert_close(points, torch.tensor([[4.5, 4.5, 0.5], [9.5, -0.5, 1], [-0.5, -0.5, 1]]).double())


def test_visible_faces_and_depths_are_those_of_pytorch3d_with_its_own_camera() -> None:
    renderer = pytest.importorskip("pytorch3d.renderer", reason="PyTorch3D is not installed")
    structures = pytest.importorskip("pytorch3d.structures")
    size, mesh = 96, joined(torus(32, 16), crossed_boards())
    mirrored = mesh.vertices * torch.tensor([1.0, 1, -1])
    for azimuth, elevation, field in ((30.0, 20.0, 60.0), (200.0, -35.0, 45.0), (310.0, 75.0, 60.0)):
        found = drawn(mesh, poses(1, azimuth=azimuth, elevation=elevation, field_of_view=field), size)
        rotation, translation = renderer.look_at_view_transform(2.732, elevation, azimuth)
        cameras = renderer.FoVPerspectiveCameras(R=rotation, T=translation, fov=field, znear=0.1)
        settings = renderer.RasterizationSettings(image_size=size, bin_size=0)
        fragments = renderer.MeshRasterizer(cameras, settings)(
            structures.Meshes([mirrored.float()], [mesh.faces.flip(1)])
        )
        face = fragments.pix_to_face[0, ..., 0]
        same = torch.where(face < 0, len(mesh.faces), face) == found.triangle[0]
        assert same.double().mean() >= 0.995
        both = same & (face >= 0)
        assert both.double().mean() > 0.1
        assert (fragments.zbuf[0, ..., 0] - 1 / found.inverse_depth[0])[both].abs().max() < 1e-4
