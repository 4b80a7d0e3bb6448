"""Data: listings, readers, splits and messages of every source."""

from __future__ import annotations

import io
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from shared_data import shared_data

from raysense.datasets import Listing, open_data
from raysense.datasets.decoding import decode
from raysense.datasets.images import to_image
from raysense.errors import SampleError, UsageError
from raysense.preprocessing import Preprocessing

RNG = np.random.default_rng(0)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def picture(height: int = 24, width: int = 32) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def read_all(reference: str, splits: tuple[str, ...] = ()) -> tuple[Listing, list[torch.Tensor]]:
    """List and read everything through a pickled reader, as a loader process does."""
    listing = open_data(reference, splits).list()
    reader = pickle.loads(pickle.dumps(open_data(reference, splits).reader(listing.table)))
    assert len(reader) == listing.table.num_rows
    images = [reader.read(row) for row in range(len(reader))]
    for image in images:
        assert image.ndim == 3
        assert image.dtype in (torch.uint8, torch.float32)
    assert listing.table.schema.field("sample_id").type == pa.string()
    assert listing.table.schema.field("label").type == pa.int32()
    assert listing.table.schema.field("split").type == pa.string()
    return listing, images


def refused(reference: str, message: str, splits: tuple[str, ...] = ()) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_data(reference, splits).list()
    assert str(caught.value).startswith("data ") or "data reference" in str(caught.value)
    assert "\n" not in str(caught.value)


# Decoding


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_decoded_as_pil_does(form: str, mode: str) -> None:
    image = picture().convert(mode)
    data = encoded(image.convert("RGB") if (form, mode) == ("JPEG", "P") else image, form)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    assert np.abs(decode(data, "rgb").numpy().astype(int) - expected).max() <= 2
    gray = decode(data, "gray")
    assert gray.shape == (1, 24, 32)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").convert("L"))
    assert np.abs(gray.numpy().astype(int) - expected).mean() <= 2


def test_decode_unusual_images() -> None:
    image = picture()
    for data in (encoded(image.convert("CMYK"), "JPEG"), encoded(image.convert("RGBA"), "PNG")):
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
        assert np.abs(decode(data, "rgb").numpy().astype(int) - expected).max() <= 2
    deep = RNG.integers(0, 65536, (5, 6), dtype=np.uint16)
    assert np.array_equal(decode(encoded(Image.fromarray(deep), "PNG"), "rgb").numpy()[0], deep >> 8)
    frames = [picture().convert("P") for _ in range(3)]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    first = np.asarray(Image.open(io.BytesIO(animation)).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode(animation, "rgb").numpy(), first)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(image, "JPEG", exif=exif), "rgb").shape == (3, 24, 32), "EXIF orientation is not applied"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_decode_damaged_files(form: str) -> None:
    data = encoded(picture(), form)
    for damaged in (b"", b"not an image at all, though long enough", data[: len(data) // 3], encoded(picture(), "BMP")):
        with pytest.raises(ValueError, match=r"empty|damaged"):
            decode(damaged, "rgb")


def test_to_image() -> None:
    array = RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    channels_first = array.transpose(2, 0, 1)
    for value in (array, channels_first, torch.from_numpy(channels_first.copy()), Image.fromarray(array)):
        assert np.array_equal(to_image(value).numpy(), channels_first)
    assert to_image(array[..., 0]).shape == (1, 4, 5)
    assert to_image(Image.fromarray(array).convert("L")).shape == (1, 4, 5)
    assert to_image(Image.fromarray(array).convert("1")).shape == (1, 4, 5)
    assert to_image(Image.fromarray(array).convert("P")).shape == (3, 4, 5)
    assert to_image(Image.fromarray(array).convert("CMYK")).shape == (3, 4, 5)
    assert to_image(array / 255).dtype == torch.float32
    for value, message in [
        (array.astype(np.int64), "int64"),
        (array.astype(float), "divide them by 255"),
        (array / 255 - 0.5, "before any normalisation"),
        (np.full((2, 2), np.nan), "nan"),
        (array[None], "has shape"),
        (Image.fromarray(array).convert("F"), "PIL mode F"),
        ("text", "is a str"),
    ]:
        with pytest.raises(ValueError, match=message):
            to_image(value)


# digits


def test_digits() -> None:
    listing, images = read_all("digits")
    assert listing.table.num_rows == 450
    assert listing.classes == tuple("0123456789")
    assert set(listing.table["split"].to_pylist()) == {"test"}
    both, _ = read_all("digits", ("train", "test"))
    assert both.table.num_rows == 1797
    assert sorted(int(name[-7:]) for name in both.table["sample_id"].to_pylist()) == list(range(1797))
    assert both.table["sample_id"][0].as_py().startswith("train/000")
    counts = np.bincount(listing.table["label"].to_numpy())
    assert counts.min() >= 44
    assert counts.max() <= 46
    stacked = torch.stack(images)
    assert stacked.shape == (450, 1, 8, 8)
    assert (stacked.min(), stacked.max()) == (0, 1)
    assert open_data("digits").list().fingerprint == listing.fingerprint != both.fingerprint
    assert open_data("digits").reader(listing.table).in_memory
    refused("digits", "there is no split val", ("val",))
    refused("digits", "named twice", ("test", "test"))
    refused("digits?root=x", "no option root")


def test_preprocessing_of_the_reference() -> None:
    assert open_data("digits").preprocessing is None
    expected = Preprocessing(None, (6, 6), "bicubic", source="data reference")
    assert open_data("digits?crop=6&interpolation=bicubic").preprocessing == expected
    refused("digits?resize=big", "resize 'big'")


# folder


def make_folder(root: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index}.jpg").write_bytes(encoded(picture(), "JPEG"))
    return root


def test_folder(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data set", {"cat": 2, "ant": 1, "empty": 0})
    (root / "cat" / "notes.txt").write_text("")
    (root / "cat" / "._0.jpg").write_text("")
    (root / ".hidden").mkdir()
    (root / "cat" / "more").mkdir()
    (root / "cat" / "more" / "B.PNG").write_bytes(encoded(picture().convert("L"), "PNG"))
    listing, images = read_all(f"folder:{root}")
    assert listing.table["sample_id"].to_pylist() == ["ant/0.jpg", "cat/0.jpg", "cat/1.jpg", "cat/more/B.PNG"]
    assert listing.table["label"].to_pylist() == [0, 1, 1, 1]
    assert set(listing.table["split"].to_pylist()) == {"all"}
    assert listing.classes == ("ant", "cat", "empty")
    assert all(image.shape == (3, 24, 32) for image in images)
    assert all(image.shape == (1, 24, 32) for image in read_all(f"folder:{root}?mode=gray")[1])
    assert not open_data(f"folder:{root}").reader(listing.table).in_memory
    assert read_all(f"folder:file://{tmp_path}/data%20set")[0].table.equals(listing.table)
    with (root / "cat" / "0.jpg").open("ab") as stream:
        stream.write(b"x")
    assert open_data(f"folder:{root}").list().fingerprint != listing.fingerprint


def test_folder_reader_of_a_part(tmp_path: Path) -> None:
    listing, images = read_all(f"folder:{make_folder(tmp_path, {'a': 3, 'b': 3})}")
    reader = open_data(f"folder:{tmp_path}").reader(listing.table.slice(2, 3))
    assert torch.equal(reader.read(1), images[3])


def test_folder_one_bad_sample(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"a": 4})
    data = (root / "a" / "0.jpg").read_bytes()
    (root / "a" / "1.jpg").write_bytes(data[: len(data) // 2])
    (root / "a" / "2.jpg").write_bytes(b"")
    source = open_data(f"folder:{root}")
    table = source.list().table
    (root / "a" / "3.jpg").unlink()
    reader = source.reader(table)
    assert reader.read(0).shape == (3, 24, 32)
    for row, message in [(1, "a/1.jpg.*damaged"), (2, "a/2.jpg.*empty"), (3, "a/3.jpg.*FileNotFound")]:
        with pytest.raises(SampleError, match=message) as caught:
            reader.read(row)
        assert "\n" not in str(caught.value)


def test_folder_classes_file(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images", {"n2": 1, "n1": 1})
    classes = tmp_path / "classes.txt"
    classes.write_text("n0 great white\nn1 tench\n\nn2\n")
    listing = open_data(f"folder:{root}?classes={classes}").list()
    assert listing.table["label"].to_pylist() == [1, 2]
    assert listing.classes == ("great white", "tench", "n2")
    classes.write_text("n1\n")
    refused(f"folder:{root}?classes={classes}", "folder n2 is not in")
    classes.write_text("n1\nn1\nn2\n")
    refused(f"folder:{root}?classes={classes}", "names a folder twice")
    refused(f"folder:{root}?classes={tmp_path}/absent", "there is no file")


def test_folder_splits(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", {"a": 1, "b": 2})
    make_folder(tmp_path / "val", {"a": 1, "b": 1})
    make_folder(tmp_path / "other", {"a": 1, "c": 1})
    listing, _ = read_all(f"folder:{tmp_path}/{{split}}", ("train", "val"))
    assert listing.table["sample_id"].to_pylist() == [
        "train/a/0.jpg", "train/b/0.jpg", "train/b/1.jpg", "val/a/0.jpg", "val/b/0.jpg",
    ]  # fmt: skip
    assert listing.table["split"].to_pylist() == ["train"] * 3 + ["val"] * 2
    refused(f"folder:{tmp_path}/{{split}}", "name the splits")
    refused(f"folder:{tmp_path}/train", "write {split}", ("train",))
    refused(f"folder:{tmp_path}/{{split}}", "different classes", ("train", "other"))


def test_folder_errors(tmp_path: Path) -> None:
    make_folder(tmp_path / "empty", {"a": 0})
    (tmp_path / "flat").mkdir()
    (tmp_path / "file").write_text("")
    refused(f"folder:{tmp_path}/absent", "there is nothing at")
    refused(f"folder:{tmp_path}/file", "is not a folder")
    refused(f"folder:{tmp_path}/flat", "has no class folders")
    refused(f"folder:{tmp_path}/empty", "there are no images")
    refused(f"folder:{tmp_path}?depth=3", "there is no option depth; there are classes, mode")
    refused(f"folder:{tmp_path}?mode=cmyk", "mode 'cmyk' must be rgb or gray")
    refused("folder:foo://bucket", "cannot be opened")


def test_listing_many_files(tmp_path: Path) -> None:
    for folder in range(20):
        (tmp_path / f"n{folder:03d}").mkdir()
        for index in range(1000):
            (tmp_path / f"n{folder:03d}" / f"{index:06d}.JPEG").touch()
    calls: list[int] = []
    started = time.perf_counter()
    listing = open_data(f"folder:{tmp_path}").list(lambda done, total: calls.append(done))
    seconds = time.perf_counter() - started
    print(f"listed 20,000 files in {seconds:.2f} s: {seconds * 50:.1f} s for a million")
    assert listing.table.num_rows == 20_000 == calls[-1]
    assert calls == sorted(calls)


# npz


@pytest.mark.parametrize(
    ("shape", "query", "expected"),
    [
        ((6, 4, 5), "", (1, 4, 5)),
        ((6, 4, 5, 3), "", (3, 4, 5)),
        ((6, 3, 4, 5), "", (3, 4, 5)),
        ((6, 4, 5, 1), "", (1, 4, 5)),
        ((6, 4, 5, 2), "&layout=NHWC", (2, 4, 5)),
        ((6, 3, 4, 3), "&layout=NCHW", (3, 4, 3)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.float16])
def test_npz(tmp_path: Path, shape: tuple[int, ...], query: str, expected: tuple[int, ...], dtype: type) -> None:
    images = RNG.integers(0, 256, shape).astype(dtype)
    if dtype != np.uint8:
        images /= 255
    np.savez(tmp_path / "some.npz", images=images, labels=np.arange(6, dtype=np.uint8))
    reference = f"npz:{tmp_path}/some.npz?x=images&y=labels{query}"
    listing, tensors = read_all(reference)
    assert listing.table["sample_id"].to_pylist()[:2] == ["some/0000000", "some/0000001"]
    assert listing.table["label"].to_pylist() == list(range(6))
    assert tensors[0].shape == expected
    assert tensors[0].dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
    assert torch.stack(tensors).double().sum() == pytest.approx(float(images.astype(float).sum()), rel=1e-6)
    reader = open_data(reference).reader(listing.table)
    assert reader.in_memory
    reader.read(0)
    assert len(pickle.dumps(reader)) < 5000
    images[-1] = 0
    np.savez(tmp_path / "some.npz", images=images, labels=np.arange(6, dtype=np.uint8))
    assert open_data(reference).list().fingerprint != listing.fingerprint


def test_npz_splits(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        np.savez(tmp_path / f"{split}.npz", x=np.full((count, 4, 5), count, np.uint8), y=np.zeros(count, int))
    listing, images = read_all(f"npz:{tmp_path}/{{split}}.npz", ("train", "test"))
    assert listing.table["split"].to_pylist() == ["train"] * 3 + ["test"] * 2
    assert listing.table["sample_id"].to_pylist()[3] == "test/0000000"
    assert [int(image[0, 0, 0]) for image in images] == [3, 3, 3, 2, 2]
    assert read_all(f"npz:{tmp_path}/test.npz")[0].table["split"].to_pylist() == ["all"] * 2


def test_npz_errors(tmp_path: Path) -> None:
    ok, labels = np.zeros((3, 4, 5), np.uint8), np.arange(3)
    nan = np.zeros((3, 4, 5))
    nan[2, 1, 1] = np.nan
    for name, arrays, message in [
        ("large", {"x": ok.astype(float) + 255, "y": labels}, r"255\.\.255, not in \[0, 1\]; divide them by 255"),
        ("negative", {"x": ok - 0.5, "y": labels}, "before any normalisation"),
        ("nan", {"x": nan, "y": labels}, "nan"),
        ("int", {"x": ok.astype(int), "y": labels}, "int64; store uint8"),
        ("ambiguous", {"x": np.zeros((3, 3, 4, 3), np.uint8), "y": labels}, "ambiguous; give layout="),
        ("flat", {"x": np.zeros((3, 4), np.uint8), "y": labels}, "ambiguous; give layout="),
        ("float", {"x": ok, "y": labels + 0.5}, "labels are float64"),
        ("short", {"x": ok, "y": labels[:2]}, r"labels have shape \[2\] for 3 images"),
        ("onehot", {"x": ok, "y": np.eye(3, dtype=int)}, "give one integer per image"),
        ("minus", {"x": ok, "y": labels - 1}, "minus/0000000 has label -1"),
        ("huge", {"x": ok, "y": labels + 2**40}, "has label 1099511627778"),
        ("empty", {"x": ok[:0], "y": labels[:0]}, "there are no images"),
        ("named", {"images": ok, "y": labels}, "no array x but images, y; give x=NAME"),
        ("object", {"x": np.array([None, None, None]), "y": labels}, "cannot be read"),
    ]:
        np.savez(tmp_path / f"{name}.npz", **arrays)
        refused(f"npz:{tmp_path}/{name}.npz", message)
    (tmp_path / "junk.npz").write_bytes(b"junk")
    np.save(tmp_path / "one.npy", ok)
    refused(f"npz:{tmp_path}/junk.npz", "cannot be read")
    refused(f"npz:{tmp_path}/one.npy", "not an .npz file")
    refused(f"npz:{tmp_path}/absent.npz", "there is nothing at")
    refused(f"npz:{tmp_path}/large.npz?layout=CHW", "layout 'CHW' must be NHW, NHWC, NCHW")


# parquet


def parquet_table(count: int, huggingface: bool = False) -> pa.Table:
    images: list[object] = [encoded(picture(), "JPEG") for _ in range(count)]
    if huggingface:
        images = [{"bytes": data, "path": None} for data in images]
    return pa.table({"image": images, "label": list(range(count)), "name": [f"name {k}" for k in range(count)]})


@pytest.mark.parametrize("huggingface", [False, True])
def test_parquet(tmp_path: Path, huggingface: bool) -> None:
    first, second = parquet_table(5, huggingface), parquet_table(4, huggingface)
    (tmp_path / "deep").mkdir()
    pq.write_table(first, tmp_path / "b.parquet", row_group_size=2)
    pq.write_table(second, tmp_path / "deep" / "c.parquet")
    (tmp_path / "_metadata.parquet").write_text("")
    (tmp_path / "readme.txt").write_text("")
    listing, images = read_all(f"parquet:{tmp_path}")
    assert listing.table["sample_id"].to_pylist()[4:6] == ["b.parquet/0000004", "deep/c.parquet/0000000"]
    assert listing.table["label"].to_pylist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    source = [row.as_py() for row in pa.concat_tables([first, second])["image"]]
    for image, data in zip(images, source, strict=True):
        assert torch.equal(image, decode(data["bytes"] if huggingface else data, "rgb"))
    alone, _ = read_all(f"parquet:{tmp_path}/b.parquet?id=name")
    assert alone.table["sample_id"].to_pylist() == [f"name {k}" for k in range(5)]
    assert read_all(f"parquet:{tmp_path}/b.parquet")[0].table["sample_id"][0].as_py() == "b.parquet/0000000"
    (tmp_path / "train").mkdir()
    pq.write_table(second, tmp_path / "train" / "0.parquet")
    split, _ = read_all(f"parquet:{tmp_path}/{{split}}", ("train",))
    assert split.table["sample_id"][0].as_py() == "train/0.parquet/0000000"


def test_parquet_errors(tmp_path: Path) -> None:
    table = parquet_table(3)
    for name, changed, message in [
        ("no_label", table.drop(["label"]), "no column label but image, name; give label=NAME"),
        ("text", table.set_column(0, "image", pa.array(["a", "b", "c"])), "store encoded images as bytes"),
        ("null", table.set_column(1, "label", pa.array([0, None, 1])), "missing labels"),
        ("float", table.set_column(1, "label", pa.array([0.5, 1, 1])), "labels are double|labels are float64"),
        ("words", table.set_column(1, "label", pa.array(["a", "b", "c"])), "give integers from 0 on"),
        ("empty", table.slice(0, 0), "there are no images"),
    ]:
        pq.write_table(changed, tmp_path / f"{name}.parquet")
        refused(f"parquet:{tmp_path}/{name}.parquet", message)
    (tmp_path / "junk.parquet").write_text("junk")
    refused(f"parquet:{tmp_path}/junk.parquet", "is not a Parquet file")
    (tmp_path / "none").mkdir()
    refused(f"parquet:{tmp_path}/none", "holds no .parquet files")
    pq.write_table(table.set_column(2, "name", pa.array(["a", "b", "a"])), tmp_path / "twice.parquet")
    refused(f"parquet:{tmp_path}/twice.parquet?id=name", "sample id 'a' is there 2 times")
    pq.write_table(table.set_column(2, "name", pa.array(["a", None, "c"])), tmp_path / "nameless.parquet")
    refused(f"parquet:{tmp_path}/nameless.parquet?id=name", "missing ids")


def test_parquet_one_bad_sample(tmp_path: Path) -> None:
    table = parquet_table(3)
    images = table["image"].to_pylist()
    pq.write_table(table.set_column(0, "image", pa.array([images[0], None, b"junk"])), tmp_path / "a.parquet")
    source = open_data(f"parquet:{tmp_path}")
    reader = source.reader(source.list().table)
    assert reader.read(0).shape == (3, 24, 32)
    for row, message in [(1, "a.parquet/0000001.*no image bytes"), (2, "a.parquet/0000002.*damaged")]:
        with pytest.raises(SampleError, match=message):
            reader.read(row)


# torchvision and factories


def make_cifar(root: Path) -> None:
    """Write a tiny CIFAR-10 in the original's format, without its checksums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        batch = {"data": RNG.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 9]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {k}" for k in range(10)]}))


def test_torchvision_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cifar(tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    reference = f"torchvision:CIFAR10?root={tmp_path}"
    both, images = read_all(reference, ("train", "test"))
    assert both.table["split"].to_pylist() == ["train"] * 20 + ["test"] * 4
    assert both.table["sample_id"].to_pylist()[20] == "test/0000000"
    assert both.classes == tuple(f"class {k}" for k in range(10))
    assert images[0].shape == (3, 32, 32)
    test, _ = read_all(f"{reference}&train=false")
    assert test.table["sample_id"].to_pylist() == [f"test/{k:07d}" for k in range(4)]
    assert test.table["label"].to_pylist() == [0, 1, 2, 9]
    assert read_all(reference)[0].table["split"].to_pylist() == ["train"] * 20, "the constructor's own default"
    assert open_data(reference).reader(both.table).in_memory
    refused(reference, "splits train and test, not val", ("val",))
    refused(f"{reference}&train=true", "train=true, but split test", ("test",))


def test_torchvision_folders_are_listed_without_reading(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"a": 2, "b": 1})
    (root / "a" / "1.jpg").write_bytes(b"damaged")
    source = open_data(f"torchvision:ImageFolder?root={root}")
    listing = source.list()
    assert listing.table["label"].to_pylist() == [0, 0, 1]
    reader = source.reader(listing.table)
    assert not reader.in_memory
    assert reader.read(2).shape == (3, 24, 32)
    with pytest.raises(SampleError, match="ImageFolder/0000001"):
        reader.read(1)


def test_torchvision_read_in_full() -> None:
    listing, images = read_all("torchvision:FakeData?size=5&num_classes=3")
    assert listing.table["sample_id"].to_pylist() == [f"FakeData/{k:07d}" for k in range(5)]
    assert images[0].shape == (3, 224, 224)
    assert listing.fingerprint == open_data("torchvision:FakeData?size=5&num_classes=3").list().fingerprint
    assert (
        listing.fingerprint != open_data("torchvision:FakeData?size=5&num_classes=3&random_offset=1").list().fingerprint
    )


def test_torchvision_errors(tmp_path: Path) -> None:
    refused("torchvision:CIFAR11?root=x", "did you mean CIFAR10")
    refused("torchvision:CIFAR10", "give root=PATH")
    refused(f"torchvision:CIFAR10?root={tmp_path}", f"cannot be opened in {tmp_path}.*add download=true")
    refused(f"torchvision:CIFAR10?root={tmp_path}&depth=3", "unexpected keyword argument 'depth'")
    refused("torchvision:FakeData", "has no splits", ("train",))


FACTORIES = """
import numpy as np, torch
from torch.utils.data import TensorDataset

class Items:
    classes = ["x", "y"]
    def __init__(self, size, item): self.size, self.item = size, item
    def __len__(self): return self.size
    def __getitem__(self, row): return self.item(row)

def image(row): return np.full((4, 5, 3), row, np.uint8)
def pairs(size=3): return Items(size, lambda row: (image(row), np.int64(row)))
def triples(size=3): return Items(size, lambda row: (image(row), row, f"name {row}"))
def twins(size=3): return Items(size, lambda row: (image(row), row, "name"))
def mixed(size=3): return Items(size, lambda row: (image(row), row) if row else (image(row), row, "a"))
def normalised(size=3): return Items(size, lambda row: (torch.randn(3, 4, 5) * 3, row))
def floats(size=3): return Items(size, lambda row: (image(row), 0.5))
def nothing(): return iter([])
def by_split(split="train", size=2): return pairs(size if split == "train" else 1)
def tensors(): return TensorDataset(torch.zeros(3, 1, 4, 5), torch.arange(3))
def fragile():
    def item(row):
        import os
        if row == 1 and os.environ.get("FRAGILE"): raise OSError("gone")
        return image(row), row
    return Items(3, item)
"""


def test_factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data.py"
    file.write_text(FACTORIES)
    listing, images = read_all(f"{file}:pairs?size=4")
    assert listing.table["sample_id"].to_pylist() == [f"pairs/{k:07d}" for k in range(4)]
    assert listing.classes == ("x", "y")
    assert [int(image[0, 0, 0]) for image in images] == [0, 1, 2, 3]
    assert read_all(f"{file}:triples")[0].table["sample_id"].to_pylist() == ["name 0", "name 1", "name 2"]
    both, _ = read_all(f"{file}:by_split", ("train", "test"))
    assert both.table["split"].to_pylist() == ["train", "train", "test"]
    tensors, images = read_all(f"{file}:tensors")
    assert images[0].dtype == torch.float32
    assert open_data(f"{file}:tensors").reader(tensors.table).in_memory
    assert not open_data(f"{file}:pairs").reader(listing.table).in_memory
    for name, message in [
        ("twins", "sample id 'name' is there 3 times"),
        ("mixed", "all alike"),
        ("normalised", "item 0 cannot be read.*before any normalisation"),
        ("floats", "item 0 has the label 0.5"),
        ("nothing", "is not map-style"),
        ("pairs?size=0", "there are no images"),
        ("pairs?length=2", "unexpected keyword argument 'length'"),
    ]:
        refused(f"{file}:{name}", message)
    refused(f"{file}:pairs", "has no splits", ("train",))
    source = open_data(f"{file}:fragile")
    listing = source.list()
    reader = source.reader(listing.table)
    monkeypatch.setenv("FRAGILE", "1")
    with pytest.raises(SampleError, match=r"fragile/0000001.*OSError: gone"):
        reader.read(1)
    assert reader.read(2).shape == (3, 4, 5)
    monkeypatch.delenv("FRAGILE")
    file.write_text(FACTORIES + "\n# changed\n")
    assert open_data(f"{file}:fragile").list().fingerprint != listing.fingerprint


# Real data and object stores


def test_imagenet_samples() -> None:
    folder, synsets = shared_data("imagenet", "images"), shared_data("imagenet", "synsets.txt")
    listing, images = read_all(f"folder:{folder}?classes={synsets}")
    names = [
        name.split("/")[1].split("_", 1)[1].removesuffix(".JPEG") for name in listing.table["sample_id"].to_pylist()
    ]
    assert names == [listing.classes[label] for label in listing.table["label"].to_pylist()]
    assert all(image.shape[0] == 3 for image in images)


def test_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every path source reads s3:// URIs, whose own options follow the question mark."""
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    for key, value in {
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    server = server_module.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        root = make_folder(tmp_path / "images", {"a": 2, "b": 1})
        np.savez(tmp_path / "a.npz", x=np.zeros((2, 4, 5), np.uint8), y=np.arange(2))
        pq.write_table(parquet_table(3), tmp_path / "a.parquet")
        for file in tmp_path.rglob("*.*"):
            if file.is_file():
                client.put_object(Bucket="bucket", Key=f"d/{file.relative_to(tmp_path)}", Body=file.read_bytes())
        query = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        local, remote = read_all(f"folder:{root}"), read_all(f"folder:s3://bucket/d/images?{query}&mode=rgb")
        assert remote[0].table.equals(local[0].table)
        assert remote[0].fingerprint == local[0].fingerprint
        assert all(torch.equal(a, b) for a, b in zip(local[1], remote[1], strict=True))
        assert read_all(f"npz:s3://bucket/d/a.npz?{query}")[0].table.num_rows == 2
        assert read_all(f"parquet:s3://bucket/d?{query}&label=label")[0].table.num_rows == 3
        refused(f"npz:s3://bucket/d/absent.npz?{query}", "there is nothing at")
    finally:
        server.stop()


def test_files_that_are_no_images_are_counted(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.bmp", "b/3.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture().save(tmp_path / name) if name.endswith("png") else (tmp_path / name).touch()
    listing = open_data(f"folder:{tmp_path}").list()
    assert listing.table["sample_id"].to_pylist() == ["a/1.png", "b/3.png"]
    assert "2 files are left out, such as a/2.bmp" in listing.notes[0]


def test_a_file_name_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / os.fsdecode(b"\xff.png")).touch()
    with pytest.raises(UsageError, match="not UTF-8; rename it"):
        open_data(f"folder:{tmp_path}").list()
