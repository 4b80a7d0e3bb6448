"""Class maps: data under the classes of other data."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysense.datasets import open_data
from raysense.errors import UsageError
from raysense.references import absolute_reference
from raysense.studies.overlaps import overlaps_reference
from raysense.studies.shifts import shifted_reference

PARITY = """
classes = ["odd", "none", "even"]
[map]
even = ["0", "8", "2"]
odd = ["1", "7"]
"""


@pytest.fixture
def parity(tmp_path: Path) -> Path:
    file = tmp_path / "parity.toml"
    file.write_text(PARITY)
    return file


def rows(reference: str, *splits: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = open_data(reference, splits).list().table.to_pylist()
    return found


def test_samples_of_classes_not_mapped_are_left_out(parity: Path) -> None:
    source = open_data(f"digits?class_map={parity}", ("train", "test"))
    listing = source.list()
    new = {0: 2, 8: 2, 2: 2, 1: 0, 7: 0}
    expected = [{**row, "label": new[row["label"]]} for row in rows("digits", "train", "test") if row["label"] in new]
    assert listing.table.to_pylist() == expected
    assert listing.classes == ("odd", "none", "even")
    left_out = [sum(row["label"] not in new for row in rows("digits", split)) for split in ("train", "test")]
    assert [note.partition(" are left out")[0] for note in listing.notes] == [
        f"data 'digits?class_map={parity}': {left_out[0]} of 1347 samples of split train",
        f"data 'digits?class_map={parity}': {left_out[1]} of 450 samples of split test",
    ]
    assert "does not map their classes (3, 4, 5, 6, 9)" in listing.notes[0]


def test_images_are_read_where_the_map_is_not(parity: Path) -> None:
    source = open_data(f"digits?class_map={parity}&resize=none", ("test",))
    table = source.list().table
    parity.unlink()
    reader = pickle.loads(pickle.dumps(open_data(f"digits?class_map={parity}", ("test",)).reader(table)))
    base = open_data("digits", ("test",))
    whole = base.list().table
    place = whole["sample_id"].to_pylist().index(table["sample_id"][3].as_py())
    assert torch.equal(reader.read(3), base.reader(whole).read(place))
    assert source.preprocessing is not None
    assert source.preprocessing.resize is None


def test_labels_without_names_are_named_by_their_number(tmp_path: Path) -> None:
    for split, labels in (("a", [3, 5, 3, 0]), ("b", [5, 7, 7, 7])):
        np.savez(tmp_path / f"{split}.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.array(labels))
    file = tmp_path / "map.toml"
    file.write_text('classes = ["x", "y"]\nmap = {y = [3], x = ["7"]}')
    listing = open_data(f"npz:{tmp_path}/{{split}}.npz?class_map={file}", ("a", "b")).list()
    assert listing.table["sample_id"].to_pylist() == ["a/0000000", "a/0000002", "b/0000001", "b/0000002", "b/0000003"]
    assert listing.table["label"].to_pylist() == [1, 1, 0, 0, 0]
    assert listing.classes == ("x", "y")


def test_the_content_of_the_map_enters_the_fingerprint(parity: Path, tmp_path: Path) -> None:
    copied, other = tmp_path / "copied.toml", tmp_path / "other.toml"
    copied.write_text(f"# the same\n{PARITY}")
    other.write_text(PARITY.replace('"none", ', ""))
    prints = [open_data(f"digits?class_map={file}").list().fingerprint for file in (parity, copied, other)]
    assert prints[0] == prints[1]
    assert len({*prints, open_data("digits").list().fingerprint}) == 3


def test_other_data_are_made_of_mapped_ones(parity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(parity.parent)
    mapped = absolute_reference("digits?class_map=./parity.toml", "data")
    assert mapped == f"digits?class_map={parity}"
    expected = open_data(mapped).list()
    for reference in (shifted_reference(mapped, invert=True), f"{shifted_reference('digits')}&class_map={parity}"):
        listing = open_data(reference).list()
        assert listing.table.equals(expected.table)
        assert listing.classes == ("odd", "none", "even")
    overlaps = open_data(overlaps_reference(mapped, base="test", fraction=0.1)).list().table
    assert set(overlaps["label"].to_pylist()) == {0, 2}


def test_the_map_of_the_paper_ships(tmp_path: Path) -> None:
    from torchvision.io import write_png

    cars, frogs = ("n03599486", "n02814533", "n03444034", "n03100240"), ("n01641577", "n01644900")
    birds, deer = ("n02058221", "n02002724"), ("n02423022",)
    cats = ("n02124075", "n02125311", "n02123394", "n02509815", "n02123045")
    dogs = ("n02106662", "n02099712", "n02094433", "n02085620")
    trucks = ("n04146614", "n02917067", "n04465501", "n04487081")
    for name in (*cars, *birds, *cats, *deer, *dogs, *frogs, *trucks, "n99999999"):
        (tmp_path / name).mkdir()
        write_png(torch.zeros(3, 2, 2, dtype=torch.uint8), str(tmp_path / name / "0.png"))
    listing = open_data(f"folder:{tmp_path}?class_map=tiny_imagenet_to_cifar10").list()
    assert listing.classes is not None
    assert listing.classes[::3] == ("airplane", "cat", "frog", "truck")
    found: dict[int, list[str]] = {}
    for row in listing.table.to_pylist():
        found.setdefault(row["label"], []).append(row["path"].partition("/")[0])
    folders = {1: cars, 2: birds, 3: cats, 4: deer, 5: dogs, 6: frogs, 9: trucks}
    assert found == {label: sorted(names) for label, names in folders.items()}, "n99999999 is left out"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PARITY.replace("even =", "evn ="), "evn is mapped to, but is not one of its classes odd, none, even"),
        (PARITY.replace('"8"', '"ten"'), "the data have no class ten, but 0, 1, 2, 3, 4 and 5 more"),
        (PARITY.replace('"8"', '"7"'), "class 7 is mapped twice"),
        (PARITY.replace('"8"', '"0"'), "class 0 is mapped twice"),
        (PARITY.replace('["1", "7"]', '"1"'), "odd is not a list"),
        (PARITY.replace('"none"', '"odd"'), "it lists a class twice"),
        (PARITY.replace("classes", "names"), "it has no list of names classes"),
        (PARITY.replace("[map]", "[maps]"), "not made of classes = "),
        ('classes = ["a"]\n[map]\na = []', "it maps no class of split test, which has 0, 1, 2, 3, 4 and 5 more"),
        ("classes = [", "it cannot be read"),
        (None, "there is no file .*parity.toml; correct class_map="),
    ],
)
def test_maps_say_what_is_wrong(parity: Path, text: str | None, message: str) -> None:
    if text is None:
        parity.unlink()
    else:
        parity.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        open_data(f"digits?class_map={parity}").list()
    assert str(parity) in str(caught.value)


@pytest.mark.parametrize("name", ["parity.toml", "maps/parity.toml", "cifar"])
def test_a_file_is_named_by_a_path_that_stays_the_same(name: str) -> None:
    with pytest.raises(UsageError, match=rf"no class map {name} in raysense, but tiny_imagenet_to_cifar10; write \./"):
        open_data(f"digits?class_map={name}")
