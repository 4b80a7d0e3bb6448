"""Models: from a reference to a module that takes images in [0, 1], with normalisation inside.

Normalisation belongs to the model, so that a perturbation of its input is in pixel units. Networks are built under a
fixed random seed: one with random weights is the same in every worker.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raysense.digits import DIGIT_CLASSES, trained_digits
from raysense.errors import first_line
from raysense.exported_files import UnsafeFileError, check_exported_file
from raysense.networks import ExportedModel, Normalize, arrange_convolutions, check_exported, load_checkpoint
from raysense.preprocessing import Preprocessing
from raysense.references import (
    Reference,
    call_factory,
    factory_source,
    import_factory,
    local_path,
    option_value,
    parse_reference,
)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be scanned.

    ``module`` takes floating images ``[N, C, H, W]`` in [0, 1] and returns logits ``[N, K]``; it is in evaluation mode
    and its parameters do not require gradients. ``preprocessing`` (None where unknown) is the geometry its weights were
    made for. ``classes`` are the names of the outputs where known, ``normalisation`` the ``mean`` and ``std`` inside
    ``module`` where known. ``fingerprint`` is a SHA-256 of weights and code, the same on every device. ``trainable`` are
    the names, as ``module`` gives them, of the parameters that its builder left requiring gradients.
    """

    module: nn.Module
    preprocessing: Preprocessing | None
    classes: tuple[str, ...] | None
    normalisation: dict[str, list[float]] | None
    fingerprint: str
    reference: str
    trainable: tuple[str, ...] = ()


@dataclass
class _Network:
    """What a builder returns; ``code`` stands for all that determines the function beside the state dict."""

    module: nn.Module
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None
    code: bytes = field(default=b"")


def load_model(reference: str, device: str | torch.device = "cpu") -> LoadedModel:
    """Load the model that a reference names (see ``raysense.references``) onto a device.

    Options that are not named here go to the function that builds the network.

    - ``torchvision:NAME``: ``weights=NAME|DEFAULT|none`` (DEFAULT unless ``checkpoint`` is given), with which come
      normalisation, preprocessing and class names; ``weights_meta=NAME`` takes just these, without a download.
    - ``timm:NAME``: ``pretrained=true|false`` (true unless ``checkpoint`` is given).
    - ``file.py:factory``, ``module:factory``: the factory is called with the options and returns an ``nn.Module``,
      which normalises by itself and may have the attributes ``preprocessing`` (a dict) and ``classes`` (names).
    - ``model.pt2``: a torch.export program with a dynamic batch dimension, exported in evaluation mode.
    - ``digits``: the bundled example; ``seed=0``.
    - ``checkpoint=PATH`` (torchvision, timm, factories that do not take it themselves): a state dict to load.
    - ``mean=..,..,..&std=..,..,..`` (torchvision, timm, pt2): normalisation to put in front.

    Raises UsageError where any of this fails.
    """
    parsed = parse_reference(reference, "model")
    with _fixed_random_state():
        network = _BUILDERS[parsed.scheme](parsed)
    fingerprint = _fingerprint(parsed, network)
    trainable = tuple(name for name, value in network.module.named_parameters() if value.requires_grad)
    try:
        for part in network.module.modules():
            if isinstance(part, ExportedModel):
                part.place(device)
        module = network.module.to(device).eval()
        for parameter in module.parameters():  # a scripted module has no requires_grad_
            parameter.requires_grad_(False)
        if torch.device(device).type == "cpu":
            arrange_convolutions(module)
    except (RuntimeError, AssertionError) as error:
        raise parsed.error(f"cannot be put on device {device} ({first_line(error)}); choose another device") from error
    constants = module.constants if isinstance(module, Normalize) else None
    return LoadedModel(module, network.preprocessing, network.classes, constants, fingerprint, reference, trainable)


def _load_torchvision(reference: Reference) -> _Network:
    """Build a torchvision classifier with its weights' own metadata."""
    from torchvision import models
    from torchvision.transforms._presets import ImageClassification

    options = dict(reference.options)
    checkpoint = options.pop("checkpoint", None)
    weights_name = options.pop("weights", "none" if checkpoint else "DEFAULT")
    metadata_name = options.pop("weights_meta", weights_name)
    constants = _pop_normalisation(options, reference)
    try:
        available = models.get_model_weights(reference.target)
    except ValueError as error:
        close = difflib.get_close_matches(reference.target, models.list_models(module=models), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see torchvision.models.list_models()"
        raise reference.error(f"torchvision has no model {reference.target}; {hint}") from error
    for option, name in (("weights", weights_name), ("weights_meta", metadata_name)):
        if name.lower() != "none" and name not in available.__members__:
            raise reference.error(f"{option} {name!r} must be none or one of {', '.join(available.__members__)}")
    weights = None if weights_name.lower() == "none" else available[weights_name]
    module = _build(models.get_model, reference, name=reference.target, weights=weights, **_values(options))
    preprocessing, classes = None, None
    if metadata_name.lower() != "none":
        metadata = available[metadata_name]
        transform = metadata.transforms()
        if not isinstance(transform, ImageClassification):
            raise reference.error(f"{metadata} is not for image classification; choose a classifier")
        constants = constants or (transform.mean, transform.std)
        preprocessing = Preprocessing(
            resize=transform.resize_size[0],
            crop=(transform.crop_size[0], transform.crop_size[0]),
            interpolation=transform.interpolation.value,
            antialias=bool(transform.antialias),
            source=f"weights {metadata}",
        )
        categories = tuple(metadata.meta["categories"])
        classes = categories if int(options.get("num_classes", len(categories))) == len(categories) else None
    if checkpoint:
        load_checkpoint(module, checkpoint, reference)
    return _Network(_normalised(module, constants), preprocessing, classes)


def _load_timm(reference: Reference) -> _Network:
    """Build a timm model with its own data configuration."""
    try:
        import timm
    except ImportError as error:
        raise reference.error("timm is not installed; pip install timm") from error
    options = dict(reference.options)
    checkpoint = options.pop("checkpoint", None)
    pretrained = option_value(options.pop("pretrained", "false" if checkpoint else "true"))
    if not isinstance(pretrained, bool):
        raise reference.error(f"pretrained {pretrained!r} must be true or false")
    constants = _pop_normalisation(options, reference)
    module = _build(
        timm.create_model, reference, model_name=reference.target, pretrained=pretrained, **_values(options)
    )
    config = timm.data.resolve_model_data_config(module)
    height, width = config["input_size"][1:]
    mode = config["crop_mode"]
    note = "" if mode == "center" else f" (its crop mode {mode} read as center)"
    geometry = {
        "resize": int(min(height, width) / config["crop_pct"]),
        "crop": [height, width],
        "interpolation": config["interpolation"],
    }
    preprocessing = Preprocessing.from_dict(geometry, f"timm config of {reference.target}{note}")
    if checkpoint:
        load_checkpoint(module, checkpoint, reference)
    return _Network(_normalised(module, constants or (config["mean"], config["std"])), preprocessing)


def _load_factory(reference: Reference) -> _Network:
    """Call a user's factory."""
    options = dict(reference.options)
    factory = import_factory(reference)
    takes_checkpoint = "checkpoint" in inspect.signature(factory).parameters
    checkpoint = None if takes_checkpoint else options.pop("checkpoint", None)
    module = call_factory(factory, _values(options), reference)
    if not isinstance(module, nn.Module):
        raise reference.error(f"returned a {type(module).__name__}; return a torch.nn.Module")
    if checkpoint:
        load_checkpoint(module.module if isinstance(module, Normalize) else module, checkpoint, reference)
    geometry, classes = getattr(module, "preprocessing", None), getattr(module, "classes", None)
    if geometry is not None and not isinstance(geometry, Mapping):
        raise reference.error(f"its attribute preprocessing is {geometry!r}; make it a dict with resize, crop, ...")
    preprocessing = None if geometry is None else Preprocessing.from_dict(geometry, "model attribute")
    names = None if classes is None else tuple(map(str, classes))
    return _Network(module, preprocessing, names, factory_source(factory))


def _load_exported(reference: Reference) -> _Network:
    """Load a torch.export program."""
    path = local_path(reference.target)
    if not path.is_file():
        raise reference.error(f"there is no file {path}; correct the path")
    options = dict(reference.options)
    constants = _pop_normalisation(options, reference)
    _refuse(options, reference)
    mend = "write it with torch.export.save"
    if not zipfile.is_zipfile(path):  # torch would log a traceback of its own
        raise reference.error(f"{path} is not a torch.export file; {mend}")
    try:
        check_exported_file(path)
    except UnsafeFileError as error:
        raise reference.error(f"{path} is refused, since {error}; {mend}") from error
    try:
        program = torch.export.load(path)
    except Exception as error:
        message = f"{path} cannot be loaded ({type(error).__name__}: {first_line(error)})"
        raise reference.error(f"{message}; {mend}") from error
    check_exported(program, reference)
    return _Network(_normalised(ExportedModel(program), constants), code=path.read_bytes())


def _load_digits(reference: Reference) -> _Network:
    """Load the bundled example, trained on first use."""
    options = dict(reference.options)
    seed = option_value(options.pop("seed", "0"))
    _refuse(options, reference)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise reference.error(f"seed {seed!r} must be a whole number, 0 or more")
    return _Network(trained_digits(seed), classes=DIGIT_CLASSES)


_BUILDERS: dict[str, Callable[[Reference], _Network]] = {
    "torchvision": _load_torchvision,
    "timm": _load_timm,
    "file": _load_factory,
    "module": _load_factory,
    "pt2": _load_exported,
    "digits": _load_digits,
}


def _build(builder: Callable[..., Any], reference: Reference, **arguments: object) -> nn.Module:
    """Call a library's builder; its complaints become a UsageError."""
    try:
        module: nn.Module = builder(**arguments)
    except OSError as error:
        mend = f"fetch the weights once with network access, or give {_OFFLINE[reference.scheme]}&checkpoint=PATH"
        raise reference.error(f"the weights cannot be downloaded ({first_line(error)}); {mend}") from error
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise reference.error(f"cannot be built ({first_line(error)}); correct the name or the options") from error
    return module


_OFFLINE = {"torchvision": "weights=none", "timm": "pretrained=false"}


def _normalised(module: nn.Module, constants: tuple[Sequence[float], Sequence[float]] | None) -> nn.Module:
    """Put normalisation in front of a network where there are constants for it."""
    return module if constants is None else Normalize(module, *constants)


def _pop_normalisation(options: dict[str, str], reference: Reference) -> tuple[list[float], list[float]] | None:
    """Take ``mean`` and ``std`` out of the options; None where neither is there."""
    texts = options.pop("mean", None), options.pop("std", None)
    if texts == (None, None):
        return None
    try:
        mean, std = ([float(number) for number in (text or "").split(",")] for text in texts)
    except ValueError as error:
        raise reference.error("mean and std go together, as mean=0.5,0.5,0.5&std=0.25,0.25,0.25") from error
    return mean, std


def _values(options: Mapping[str, str]) -> dict[str, Any]:
    """Convert all options."""
    return {key: option_value(text) for key, text in options.items()}


def _refuse(options: Mapping[str, str], reference: Reference) -> None:
    """Refuse options that nothing takes."""
    for key in options:
        raise reference.error(f"there is no option {key}; leave it out")


@contextmanager
def _fixed_random_state() -> Iterator[None]:
    """Build networks under a fixed seed of the CPU generator; restore its state afterwards."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _fingerprint(reference: Reference, network: _Network) -> str:
    """Return a SHA-256 over the state dict, the architecture and the code; paths do not enter, contents do."""
    inner = network.module.module if isinstance(network.module, Normalize) else network.module
    name = reference.target if reference.scheme in ("torchvision", "timm") else reference.target.rpartition(":")[2]
    options = sorted((key, value) for key, value in reference.options.items() if key != "checkpoint")
    identity = (type(inner).__name__, reference.scheme, "" if reference.scheme == "pt2" else name, options)
    digest = hashlib.sha256(repr(identity).encode() + hashlib.sha256(network.code).digest())
    for key, value in network.module.state_dict().items():
        if isinstance(value, Tensor):
            data = value.detach().cpu().contiguous()
            digest.update(f"{key} {data.dtype} {tuple(data.shape)}\n".encode())
            digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(f"{key} {value!r}\n".encode())
    return digest.hexdigest()
