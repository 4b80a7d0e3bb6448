"""Models: every kind of reference, checkpoints, fingerprints, the bundled digits network."""

from __future__ import annotations

import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from shared_data import shared_data
from torch import nn

from raysense import digits
from raysense.datasets import open_data
from raysense.errors import UsageError
from raysense.models import LoadedModel, load_model
from raysense.networks import Normalize
from raysense.preprocessing import Preprocessing

ZOO = Path(__file__).parent / "zoo"

FACTORIES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))

def make(classes=5):
    net = Net(classes)
    net.preprocessing = {"resize": 12, "crop": 10}
    net.classes = [f"class {k}" for k in range(classes)]
    return net

def own(checkpoint):
    net = Net(5)
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    return net

def bad_geometry():
    net = Net(5)
    net.preprocessing = {"size": 3}
    return net

def nothing():
    return 3
"""


@pytest.fixture
def net_file(tmp_path: Path) -> Path:
    file = tmp_path / "net.py"
    file.write_text(FACTORIES)
    return file


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSENSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def accuracy(model: LoadedModel, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        predicted = torch.cat([model.module(batch).argmax(1) for batch in torch.split(images, 200)])
    return float((predicted == labels).double().mean())


def test_digits_network() -> None:
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    model = load_model("digits")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    test = digits.load_digits("test")
    assert accuracy(model, test.images, test.labels) >= 0.97
    assert model.classes == digits.DIGIT_CLASSES
    assert model.preprocessing is None
    assert model.normalisation is None
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert model.module.output.bias is not None


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    bundled = load_digits()
    for split in ("train", "test"):
        found = digits.load_digits(split)
        np.testing.assert_array_equal(found.images[:, 0] * 16, bundled.images[found.index])
        np.testing.assert_array_equal(found.labels, bundled.target[found.index])


def test_digits_training_is_deterministic_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        first = digits.trained_digits()  # perhaps by another process of this test run
    torch.manual_seed(2)
    trained = digits.train_digits()
    assert all(torch.equal(first.state_dict()[key], trained.state_dict()[key]) for key in first.state_dict())
    monkeypatch.setenv("RAYSENSE_CACHE", str(tmp_path))
    calls: list[int] = []
    monkeypatch.setattr(digits, "train_digits", lambda seed: calls.append(seed) or trained)

    def again() -> None:
        found = digits.trained_digits().state_dict()
        assert all(torch.equal(found[key], trained.state_dict()[key]) for key in found)

    again()
    (file,) = tmp_path.iterdir()
    again()
    assert calls == [0], "trained once"
    for damaged in (b"", b"junk", file.read_bytes()[:5000]):
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match="is damaged"):
            again()
        assert list(tmp_path.iterdir()) == [file]
    assert calls == [0] * 4


def test_digits_without_a_writable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYSENSE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(digits, "train_digits", lambda seed: digits.DigitsNet())
    with pytest.warns(UserWarning, match="cannot be cached.*set RAYSENSE_CACHE"):
        digits.trained_digits()


def test_torchvision_weights_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights, everything but the download itself runs."""
    source = torchvision.models.get_model("resnet18", weights=None)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda url, **kwargs: source.state_dict())
    model = load_model("torchvision:resnet18")
    expected = Preprocessing(256, (224, 224), "bilinear", True, "weights ResNet18_Weights.IMAGENET1K_V1")
    assert model.preprocessing == expected
    assert model.normalisation == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert model.classes[:2] == ("tench", "goldfish")
    image = torch.randint(0, 256, (3, 300, 260), dtype=torch.uint8)
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    reference = source.eval()(transform(image).unsqueeze(0))
    ours = model.module(expected.apply(image).unsqueeze(0) / 255)
    assert (ours - reference).abs().max() < 0.05 * reference.abs().max()
    assert load_model("torchvision:resnet18?weights=IMAGENET1K_V1").preprocessing == expected


def test_torchvision_without_download(tmp_path: Path) -> None:
    model = load_model("torchvision:resnet18?weights=none&num_classes=7")
    assert (model.preprocessing, model.classes, model.normalisation) == (None, None, None)
    assert model.module(torch.rand(2, 3, 64, 64)).shape == (2, 7)
    assert load_model("torchvision:resnet18?weights=none&num_classes=7").fingerprint == model.fingerprint
    file = tmp_path / "w.pt"
    torch.save(torchvision.models.resnet18(num_classes=7).half().state_dict(), file)
    loaded = load_model(f"torchvision:resnet18?checkpoint={file}&num_classes=7&weights_meta=DEFAULT")
    assert loaded.preprocessing is not None
    assert loaded.classes is None, "the categories are those of 1000 outputs"
    assert isinstance(loaded.module, Normalize)
    assert loaded.module.module.fc.weight.dtype == torch.float32
    given = load_model("torchvision:resnet18?weights=none&mean=0.5,0.5,0.5&std=0.2,0.2,0.2")
    assert given.normalisation == {"mean": [0.5] * 3, "std": [0.2] * 3}


def test_torchvision_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(url: str, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    for text, message in [
        ("torchvision:resnet18", "cannot be downloaded.*no network.*weights=none&checkpoint=PATH"),
        ("torchvision:resnt18", "did you mean resnet18"),
        ("torchvision:resnet18?weights=V9", "weights 'V9' must be none or one of IMAGENET1K_V1, DEFAULT"),
        ("torchvision:resnet18?weights=none&foo=1", "unexpected keyword argument 'foo'"),
        ("torchvision:resnet18?weights=none&mean=0.5", "mean and std go together"),
        ("torchvision:resnet18?weights=none&mean=a&std=b", "mean and std go together"),
        ("torchvision:resnet18?weights=none&mean=0.5,0.5&std=0.5,0", "std positive"),
        ("torchvision:r3d_18?weights=none&weights_meta=DEFAULT", "not for image classification"),
        ("digits?depth=3", "no option depth"),
        ("digits?seed=x", "seed 'x' must be a whole number"),
    ]:
        with pytest.raises(UsageError, match=message):
            load_model(text)


def test_normalize_names_a_wrong_number_of_channels() -> None:
    model = load_model("torchvision:resnet18?weights=none&weights_meta=DEFAULT")
    with pytest.raises(UsageError, match="normalises 3 channels, but the images have 1"):
        model.module(torch.rand(2, 1, 64, 64))


def test_timm() -> None:
    timm = pytest.importorskip("timm")
    model = load_model("timm:test_vit?pretrained=false&num_classes=6")
    assert model.preprocessing == Preprocessing(168, (160, 160), "bicubic", True, "timm config of test_vit")
    assert model.normalisation == {"mean": [0.5] * 3, "std": [0.5] * 3}
    image = torch.randint(0, 256, (3, 300, 260), dtype=torch.uint8)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model.module.module))
    expected = transform(torchvision.transforms.v2.functional.to_pil_image(image))
    ours = (model.preprocessing.apply(image) / 255 - 0.5) / 0.5
    assert (ours - expected).abs().max() < 0.02
    assert model.module(torch.rand(2, 3, 160, 160)).shape == (2, 6)
    with pytest.raises(UsageError, match="Unknown model"):
        load_model("timm:no_such_model?pretrained=false")
    with pytest.raises(UsageError, match="pretrained 'maybe'"):
        load_model("timm:test_vit?pretrained=maybe")


def test_timm_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="timm is not installed"):
        load_model("timm:resnet18")


def test_file_factory(net_file: Path) -> None:
    model = load_model(f"{net_file}:make?classes=4")
    assert model.preprocessing == Preprocessing(12, (10, 10), source="model attribute")
    assert model.classes == ("class 0", "class 1", "class 2", "class 3")
    assert model.module(torch.rand(3, 3, 10, 10)).shape == (3, 4)
    assert not model.module.training


def test_module_factory(net_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(net_file.parent))
    (net_file.parent / "raysense_test_package.py").write_text(FACTORIES)
    assert load_model("raysense_test_package:make?classes=4").module(torch.rand(3, 3, 10, 10)).shape == (3, 4)
    with pytest.raises(UsageError, match=r"return a torch\.nn\.Module"):
        load_model("raysense_test_package:nothing")
    with pytest.raises(UsageError, match="unknown key 'size'"):
        load_model("raysense_test_package:bad_geometry")


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "parallel", "half"])
def test_checkpoint_forms(wrap: str, net_file: Path, tmp_path: Path) -> None:
    source = load_model(f"{net_file}:make").module
    source.head.bias.fill_(3)
    state = source.state_dict()
    if wrap == "half":
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    if wrap == "parallel":
        state = {f"module.{key}": value for key, value in state.items()}
    torch.save({wrap: state, "epoch": 3} if wrap in ("state_dict", "model") else state, tmp_path / "w.pt")
    loaded = load_model(f"{net_file}:make?checkpoint={tmp_path}/w.pt").module
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(loaded.parameters(), source.parameters(), strict=True))
    assert loaded.head.bias.dtype == torch.float32


def test_checkpoint_of_a_factory_that_takes_it(net_file: Path, tmp_path: Path) -> None:
    torch.save(load_model(f"{net_file}:make").module.state_dict(), tmp_path / "w.pt")
    load_model(f"{net_file}:own?checkpoint={tmp_path}/w.pt")
    with pytest.raises(UsageError, match="FileNotFoundError"):
        load_model(f"{net_file}:own?checkpoint={tmp_path}/absent.pt")


def test_checkpoint_errors(net_file: Path, tmp_path: Path) -> None:
    good = load_model(f"{net_file}:make").module.state_dict()
    cases = {
        "junk": (b"junk", "cannot be read"),
        "number": (3, "holds no state dict"),
        "missing": ({key: value for key, value in good.items() if key != "head.bias"}, "lacks head.bias"),
        "extra": ({**good, "tail.bias": torch.zeros(1)}, "has the unknown tail.bias"),
        "shape": ({**good, "head.bias": torch.zeros(3)}, "size mismatch for head.bias"),
        "code": ({"weights": Path("x")}, "cannot be read"),
    }
    for name, (content, message) in cases.items():
        file = tmp_path / f"{name}.pt"
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        with pytest.raises(UsageError, match=message):
            load_model(f"{net_file}:make?checkpoint={file}")
    with pytest.raises(UsageError, match="there is no checkpoint"):
        load_model(f"{net_file}:make?checkpoint={tmp_path}/absent.pt")


def test_fingerprint(net_file: Path, tmp_path: Path) -> None:
    state = load_model(f"{net_file}:make").module.state_dict()
    first, same, other = (tmp_path / name for name in ("a.pt", "b.pt", "c.pt"))
    torch.save(state, first)
    torch.save(state, same)
    state["head.bias"] = state["head.bias"] + 1e-6
    torch.save(state, other)

    def fingerprint(file: Path, options: str = "") -> str:
        return load_model(f"{net_file}:make?checkpoint={file}{options}").fingerprint

    base = fingerprint(first)
    assert base == fingerprint(first)
    assert base == fingerprint(same), "where the weights lie does not matter"
    assert base != fingerprint(other)
    assert base != fingerprint(first, "&classes=5"), "options enter"
    net_file.write_text(FACTORIES + "\n# changed\n")
    assert base != fingerprint(first), "code enters"


def test_random_weights_are_the_same_in_every_worker(net_file: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = load_model(f"{net_file}:make")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert load_model(f"{net_file}:make").fingerprint == first.fingerprint


def _export(module: nn.Module, file: Path, dynamic: bool = True, inputs: int = 1) -> str:
    shapes = tuple({0: torch.export.Dim("batch")} for _ in range(inputs)) if dynamic else None
    program = torch.export.export(module, tuple(torch.rand(2, 3, 8, 8) for _ in range(inputs)), dynamic_shapes=shapes)
    torch.export.save(program, file)
    return str(file)


def test_exported_model(net_file: Path, tmp_path: Path) -> None:
    net = load_model(f"{net_file}:make").module
    path = _export(net, tmp_path / "net.pt2")
    model = load_model(f"{path}?mean=0.5&std=0.25")
    for batch in (1, 2, 5):
        images = torch.rand(batch, 3, 8, 8, requires_grad=True)
        logits = model.module(images)
        torch.testing.assert_close(logits, net((images - 0.5) / 0.25))
        (gradient,) = torch.autograd.grad(logits.sum(), images)
        assert gradient.abs().max() > 0
    assert model.module.eval() is model.module
    assert model.fingerprint == load_model(f"{path}?mean=0.5&std=0.25").fingerprint
    assert model.fingerprint != load_model(path).fingerprint
    assert all(p.device.type == "meta" for p in load_model(path, "meta").module.parameters())


def test_exported_model_errors(net_file: Path, tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    net = load_model(f"{net_file}:make").module
    norm = nn.BatchNorm2d(3)
    (tmp_path / "junk.pt2").write_bytes(b"junk")
    torch.save({}, tmp_path / "other.pt2")
    for path, message in [
        (_export(net, tmp_path / "fixed.pt2", dynamic=False), "for batches of exactly 2"),
        (_export(norm.train(), tmp_path / "norm.pt2"), "training mode"),
        (_export(nn.Dropout().train(), tmp_path / "dropout.pt2"), "training mode"),
        (_export(Two(), tmp_path / "two.pt2", inputs=2), "takes 2 inputs"),
        (str(tmp_path / "junk.pt2"), "is not a torch.export file"),
        (str(tmp_path / "other.pt2"), "is not in the format that torch.export.save writes"),
        (str(tmp_path / "absent.pt2"), "there is no file"),
        (_export(net, tmp_path / "option.pt2") + "?depth=3", "no option depth"),
    ]:
        with pytest.raises(UsageError, match=message):
            load_model(path)


@pytest.mark.parametrize(("depth", "expected"), [(20, 0.81), (56, 0.83)])
def test_cifar_resnet_on_real_data(depth: int, expected: float) -> None:
    checkpoint = shared_data("cifar10", f"resnet{depth}.pt")
    model = load_model(f"{ZOO / 'cifar_resnet.py'}:resnet?depth={depth}&checkpoint={checkpoint}")
    assert model.normalisation == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    source = open_data(f"npz:{shared_data('cifar10', 'test.npz')}")
    table = source.list().table
    reader = source.reader(table)
    images = torch.stack([reader.read(row) for row in range(len(reader))])
    assert images.shape == (1000, 3, 32, 32)
    measured = accuracy(model, images / 255, torch.from_numpy(table["label"].to_numpy().astype(np.int64)))
    print(f"ResNet-{depth}: top-1 {measured:.1%}")
    assert measured == pytest.approx(expected, abs=0.015)


def test_squeezenet_on_real_images() -> None:
    checkpoint = shared_data("imagenet", "squeezenet1_0_fp16.pt")
    folder, synsets = shared_data("imagenet", "images"), shared_data("imagenet", "synsets.txt")
    model = load_model(f"{ZOO / 'squeezenet.py'}:squeezenet?checkpoint={checkpoint}")
    assert model.preprocessing == Preprocessing(256, (227, 227), source="model attribute")
    source = open_data(f"folder:{folder}?classes={synsets}")
    listing = source.list()
    assert listing.table.num_rows == 99
    assert len(listing.classes) == 1000
    reader = source.reader(listing.table)
    images = torch.stack([model.preprocessing.apply(reader.read(row)) for row in range(len(reader))])
    measured = accuracy(model, images / 255, torch.from_numpy(listing.table["label"].to_numpy().astype(np.int64)))
    print(f"SqueezeNet 1.0: top-1 {measured:.1%}")
    # Iandola et al. 2016 report 57.5 % on all of ImageNet's validation set; 99 images have a standard error of 5 %.
    assert measured == pytest.approx(0.575, abs=0.04)
