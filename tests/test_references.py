"""References: parsing, absolute paths, messages; and preprocessing, which has no torch either."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raysense.errors import UsageError
from raysense.preprocessing import Preprocessing
from raysense.references import absolute_reference, call_factory, import_factory, option_value, parse_reference

PARSED = [
    ("digits", "model", "digits", "", {}),
    ("digits?seed=1", "model", "digits", "", {"seed": "1"}),
    ("torchvision:resnet50?weights=DEFAULT", "model", "torchvision", "resnet50", {"weights": "DEFAULT"}),
    ("timm:hf-hub:timm/resnet18?pretrained=true", "model", "timm", "hf-hub:timm/resnet18", {"pretrained": "true"}),
    ("a/b.py:resnet?depth=20&checkpoint=w.pt", "model", "file", "a/b.py:resnet", {"depth": "20", "checkpoint": "w.pt"}),
    ("package.module:factory", "model", "module", "package.module:factory", {}),
    ("dir/model.pt2", "model", "pt2", "dir/model.pt2", {}),
    ("folder:/data/x y", "data", "folder", "/data/x y", {}),
    ("npz:f.npz?x=a%26b&y=c%3Dd", "data", "npz", "f.npz", {"x": "a&b", "y": "c=d"}),
    ("parquet:s3://bucket/key?region=eu", "data", "parquet", "s3://bucket/key", {"region": "eu"}),
    ("torchvision:CIFAR10?root=r&train=false", "data", "torchvision", "CIFAR10", {"root": "r", "train": "false"}),
]

MALFORMED = [
    ("", "model", "no model reference"),
    ("resnet50", "model", "no model reference"),
    ("torchvision:", "model", "after the colon"),
    ("torchvision", "model", "after the colon"),
    ("digits:x", "data", "just digits"),
    ("folder:/x", "model", "reference to data"),
    ("timm:resnet18", "data", "reference to model"),
    ("x/net.py", "model", "after a colon"),
    ("foldr:/x", "data", "did you mean folder"),
    ("digits?seed", "model", "malformed"),
    ("digits?=1", "model", "malformed"),
    ("digits?seed=1&seed=2", "model", "given twice"),
]


@pytest.mark.parametrize(("text", "argument", "scheme", "target", "options"), PARSED)
def test_parse(text: str, argument: str, scheme: str, target: str, options: dict[str, str]) -> None:
    reference = parse_reference(text, argument)
    assert (reference.scheme, reference.target, reference.options) == (scheme, target, options)
    assert reference.text == text
    assert hash(reference) == hash(pickle.loads(pickle.dumps(reference)))


@pytest.mark.parametrize(("text", "argument", "message"), MALFORMED)
def test_malformed(text: str, argument: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_reference(text, argument)
    assert str(caught.value).startswith(f"{argument} {text!r}")


@pytest.mark.parametrize(("text", "argument", "_", "__", "___"), PARSED)
def test_absolute_means_the_same(text: str, argument: str, _: str, __: str, ___: object) -> None:
    absolute = absolute_reference(text, argument)
    assert absolute_reference(absolute, argument) == absolute
    before, after = parse_reference(text, argument), parse_reference(absolute, argument)
    assert after.scheme == before.scheme
    assert after.options.keys() == before.options.keys()


def test_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    here = str(tmp_path)
    assert absolute_reference("a/b.py:f?checkpoint=w.pt&name=w.pt&other=./o", "model") == (
        f"{here}/a/b.py:f?checkpoint={here}/w.pt&name=w.pt&other={here}/./o".replace("/./", "/")
    )
    assert (
        absolute_reference("folder:x/{split}?classes=c.txt", "data")
        == f"folder:{here}/x/{{split}}?classes={here}/c.txt"
    )
    assert absolute_reference("m.pt2", "model") == f"{here}/m.pt2"
    assert absolute_reference("npz:~/a.npz", "data") == "npz:/home/someone/a.npz"
    assert absolute_reference("torchvision:CIFAR10?root=r", "data") == f"torchvision:CIFAR10?root={here}/r"
    for unchanged in ("parquet:s3://b/k?endpoint_override=localhost:5000&scheme=http", "digits", "npz:/a.npz?x=a%26b"):
        assert absolute_reference(unchanged, "data") == unchanged


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("False", False), ("20", 20), ("-3", -3), ("0", 0), ("0.5", 0.5), ("1e-3", 1e-3), (".5", 0.5),
        ("2.", 2.0), ("007", "007"), ("1_0", "1_0"), ("nan", "nan"), ("2021_train", "2021_train"), ("", ""),
    ],
)  # fmt: skip
def test_option_value(text: str, value: object) -> None:
    converted = option_value(text)
    assert converted == value
    assert type(converted) is type(value)


def test_import_factory_from_file(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_net.py").write_text("VALUE = 3\n")
    file = tmp_path / "net.py"
    file.write_text("from neighbour_of_net import VALUE\ndef make(scale=1): return VALUE * scale\n")
    reference = parse_reference(f"{file}:make?scale=2", "model")
    factory = import_factory(reference)
    assert call_factory(factory, {"scale": 2}, reference) == 6
    assert import_factory(reference) is factory, "an unchanged file is imported once"
    file.write_text("def make(scale=1): return 0\n")
    assert call_factory(import_factory(reference), {}, reference) == 0
    with pytest.raises(UsageError, match="unexpected keyword argument 'other'"):
        call_factory(factory, {"other": 1}, reference)


def test_import_factory_errors(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name\n")
    empty = tmp_path / "empty.py"
    empty.write_text("def other(): raise ValueError('too small')\n")
    for text, message in [
        (f"{tmp_path}/absent.py:f", "there is no file"),
        (f"{broken}:f", "ModuleNotFoundError"),
        (f"{empty}:f", "has no function f; it has: other"),
        ("nothing_of_this_name.module:f", "cannot be imported"),
        ("torchvison:resnet18", "did you mean torchvision"),
    ]:
        with pytest.raises(UsageError, match=message):
            import_factory(parse_reference(text, "model"))
    reference = parse_reference(f"{empty}:other", "model")
    with pytest.raises(UsageError, match="ValueError: too small"):
        call_factory(import_factory(reference), {}, reference)


def test_no_torch_is_imported() -> None:
    code = "import sys, raysense.references, raysense.preprocessing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_preprocessing_geometry(dtype: torch.dtype, interpolation: str) -> None:
    image = torch.randint(0, 256, (3, 60, 40), dtype=torch.uint8)
    if dtype != torch.uint8:
        image = (image > 127).to(dtype)
    preprocessing = Preprocessing(resize=20, crop=(18, 16), interpolation=interpolation)
    result = preprocessing.apply(image)
    assert result.shape == (3, 18, 16)
    assert result.dtype == dtype
    assert result.min() >= 0
    assert result.max() <= (255 if dtype == torch.uint8 else 1)
    assert Preprocessing(20, None).apply(image).shape == (3, 30, 20)
    assert torch.equal(Preprocessing(None, None).apply(image), image)
    assert torch.equal(Preprocessing(None, (40, 40)).apply(image), image[:, 10:50])


def test_preprocessing_round_trip_and_options() -> None:
    preprocessing = Preprocessing(256, (227, 220), "bicubic", False, "weights X")
    assert Preprocessing.from_dict(preprocessing.as_dict()) == preprocessing
    assert Preprocessing.from_options({"x": "1"}, "data reference") is None
    options = {"resize": "256", "crop": "224x192", "antialias": "false"}
    assert Preprocessing.from_options(options, "here") == Preprocessing(256, (224, 192), "bilinear", False, "here")
    assert Preprocessing.from_options({"crop": "227"}, "here") == Preprocessing(None, (227, 227), source="here")
    assert Preprocessing.from_options({"resize": "none"}, "here") == Preprocessing(None, None, source="here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "big"}, "resize 'big'"),
        ({"resize": "0"}, "resize 0"),
        ({"crop": "2x3x4"}, "crop"),
        ({"crop": "true"}, "crop True"),
        ({"interpolation": "cubic"}, "interpolation 'cubic' must be one of"),
        ({"antialias": "yes"}, "antialias 'yes'"),
    ],
)
def test_preprocessing_errors(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocessing.from_options(options, "data reference")
    with pytest.raises(UsageError, match="unknown key 'size'"):
        Preprocessing.from_dict({"size": 3})
