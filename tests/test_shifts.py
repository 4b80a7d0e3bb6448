"""Data under a distribution shift."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raysense.datasets import open_data
from raysense.digits import load_digits
from raysense.errors import SampleError, UsageError
from raysense.references import absolute_reference
from raysense.semantics.axes import IMAGE_AXES
from raysense.semantics.image_transforms import transform
from raysense.studies.shifts import shifted_reference

DIGITS = load_digits("test").images


def images(*rows: int, **options: object) -> list[Tensor]:
    """Shifted digits of the test split."""
    source = open_data(shifted_reference("digits", split="test", **options))
    reader = pickle.loads(pickle.dumps(source.reader(source.list().table)))
    return [reader.read(row) for row in rows]


def transformed(row: int, **values: float) -> Tensor:
    """A digit by the image transforms."""
    axes = {name: torch.tensor([values.get(name, axis.default)]).double() for name, axis in IMAGE_AXES.items()}
    return transform(DIGITS[row : row + 1], axes)[0]


def test_samples_are_those_of_the_data() -> None:
    reference = shifted_reference("digits", noise=0.2)
    assert absolute_reference(reference, "data") == reference
    for splits in ((), ("train",), ("train", "test")):
        listing, base = (open_data(name, splits).list() for name in (reference, "digits"))
        assert listing.table.equals(base.table)
        assert listing.classes == base.classes
        assert listing.fingerprint != base.fingerprint


def test_no_option_changes_nothing() -> None:
    assert torch.equal(torch.stack(images(0, 5)), DIGITS[[0, 5]])
    assert torch.equal(images(3, rotation=0, contrast=1.0, invert=False)[0], DIGITS[3])


def test_images_are_transformed_inverted_then_noisy() -> None:
    turned, plain, inverted = (
        images(4, **options)[0] for options in ({"rotation": 30}, {"blur": 1, "contrast": 0.5}, {"invert": True})
    )
    assert torch.equal(turned, transformed(4, rotation=30))
    assert torch.equal(plain, transformed(4, blur=1, contrast=0.5))
    assert torch.equal(inverted, 1 - DIGITS[4])
    both, noise = images(4, rotation=30, invert=True, noise=0.2)[0], images(4, contrast=0, noise=0.2)[0]
    drawn = noise - transformed(4, contrast=0)
    inside = (noise > 0) & (noise < 1) & (both > 0) & (both < 1)
    assert int(inside.sum()) > 8, "where nothing is cut off at 0 or 1"
    assert torch.allclose((1 - turned + drawn)[inside], both[inside], atol=1e-6)


def test_noise_is_a_function_of_seed_and_sample() -> None:
    flat = {"contrast": 0, "brightness": 0.2, "noise": 0.05}
    first, second = images(7, 8, **flat)
    assert torch.equal(images(8, 7, **flat)[1], first), "whatever was read before"
    assert not torch.equal(images(7, **flat, seed=1)[0], first)
    noise = torch.stack(
        [image - transformed(row, contrast=0, brightness=0.2) for row, image in ((7, first), (8, second))]
    )
    assert not torch.allclose(noise[0], noise[1])
    many = torch.stack(images(*range(100), **flat))
    clean = torch.stack([transformed(row, contrast=0, brightness=0.2) for row in range(100)])
    assert float((many - clean).std()) == pytest.approx(0.05, rel=0.03)
    assert float((many - clean).mean()) == pytest.approx(0, abs=0.003)
    loud = torch.stack(images(*range(20), noise=3))
    assert (float(loud.min()), float(loud.max())) == (0, 1)


def test_every_shift_has_a_fingerprint_of_its_own() -> None:
    options = ({}, {"noise": 0.1}, {"noise": 0.2}, {"noise": 0.1, "seed": 1}, {"invert": True}, {"scale": 1.5})
    prints = {open_data(shifted_reference("digits", **option)).list().fingerprint for option in options}
    assert len(prints) == len(options)
    again = open_data(shifted_reference("digits", noise=0.1, rotation=0)).list().fingerprint
    assert again in prints, "a default changes nothing"


def test_geometry_comes_first_and_bytes_become_floats(tmp_path: Path) -> None:
    pixels = np.arange(2 * 12 * 16 * 3, dtype=np.uint16).reshape(2, 12, 16, 3).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x=pixels, y=np.array([0, 1]))
    source = open_data(shifted_reference(f"npz:{tmp_path}/images.npz?crop=8", invert=True))
    image = source.reader(source.list().table).read(1)
    assert image.dtype == torch.float32
    assert torch.allclose(image.permute(1, 2, 0), 1 - torch.from_numpy(pixels[1, 2:10, 4:12] / 255).float())
    assert source.preprocessing is not None
    assert source.preprocessing.apply(torch.zeros(3, 8, 8)).shape == (3, 8, 8), "the model's own is left out"
    assert open_data(shifted_reference(f"npz:{tmp_path}/images.npz")).preprocessing is None


def test_channels_that_cannot_be_transformed_are_the_samples_failure(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", x=np.zeros((1, 2, 8, 8), np.uint8), y=np.array([0]))
    data = f"npz:{tmp_path}/two.npz?layout=NCHW"
    source = open_data(shifted_reference(data, blur=1))
    with pytest.raises(SampleError, match=r"sample two/0000000 cannot be read: images: .*1 or 3 channels"):
        source.reader(source.list().table).read(0)
    noisy = open_data(shifted_reference(data, noise=0.5))
    assert float(noisy.reader(noisy.list().table).read(0).max()) > 0


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("data=digits&colour=1", "no option colour; there are data, split, invert, noise, seed, rotation"),
        ("noise=1", "says not what to shift; give data=REFERENCE"),
        ("data=digits&noise=-1", r"noise -1 must be a number, 0 or more"),
        ("data=digits&noise=loud", "noise 'loud' must be a number"),
        ("data=digits&blur=-0.5", "blur -0.5 must be a number from 0 to 1000"),
        ("data=digits&rotation=true", "rotation True must be a number"),
        ("data=digits&contrast=-1", "contrast -1 must be a number, 0 or more"),
        ("data=digits&invert=1", "invert 1 must be true or false"),
        ("data=digits&seed=0.5", "seed 0.5 must be a whole number"),
        ("data=digits&split=dev", "there is no split dev"),
        ("data=nothing", "no data reference"),
    ],
)
def test_shifts_say_what_is_wrong(query: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_data(f"raysense.studies.shifts:Shifted?{query}")


def test_a_split_is_asked_for_in_one_place() -> None:
    with pytest.raises(UsageError, match="has split=test, but split train is asked for too"):
        open_data(shifted_reference("digits", split="test"), ("train",))
