"""The targets that an influence scan names, for the model at hand."""

from __future__ import annotations

import torch

from raysense.errors import UsageError, first_line
from raysense.measures.differences import try_passes
from raysense.measures.directions import DirectionInfluence, direction_influence
from raysense.measures.influence import GRADIENT_BYTES
from raysense.measures.perturbed import Perturbed
from raysense.measures.targets import Pixels, Target, layer_parameters, matching
from raysense.models import LoadedModel
from raysense.scans._model import shown_name
from raysense.scans._sampled import Examined
from raysense.scans.influence import InfluenceSpec
from raysense.scans.sampled import split_text
from raysense.semantics.space import SemanticSpace, parse_space
from raysense.semantics.subjects import TransformedImages


def targets_of(spec: InfluenceSpec, model: LoadedModel) -> list[Target]:
    """What the scan perturbs, except pixel by pixel and semantically.

    Raises:
        UsageError: a pattern matches nothing, or there are no trainable parameters.
    """
    found: list[Target] = []
    for text in spec.target:
        name, _, globs = text.partition(":")
        patterns = split_text(globs, ",")
        if name == "input":
            found.append(Target("input", input=Pixels()))
        elif name == "input+parameters":
            found.append(Target(text, input=Pixels(), parameters=frozenset(_trainable(spec, model))))
        elif name == "parameters":
            names = _trainable(spec, model)
            found.append(Target(text, parameters=frozenset(_named(model, text, names, patterns))))
        elif name == "layer":
            layers = layers_of(model)
            if not layers:
                _trainable(spec, model)
            try:
                chosen = matching(list(layers), patterns) if patterns else list(layers)
            except ValueError as error:
                raise UsageError(f"target {text!r}: {error}") from error
            found += [Target("layer", layer=layer, parameters=frozenset(layers[layer])) for layer in chosen]
    return found


def semantic_space(spec: InfluenceSpec) -> SemanticSpace | None:
    """The space of target ``semantic``; None where it is not among the targets.

    Raises:
        UsageError: an axis is unknown, or not of images.
    """
    if "semantic" not in spec.target:
        return None
    space = parse_space(spec.axes)
    if not space.of_images:
        raise UsageError(
            f"axes {', '.join(space.names)} are of rendered shapes; name axes of images, or use "
            "`raysense scan semantic --influence`"
        )
    return space


def image_influence(
    model: LoadedModel, space: SemanticSpace, images: torch.Tensor, classes: torch.Tensor | None, rank_rule: str
) -> DirectionInfluence:
    """FI of the axes of a space jointly, at images [n, C, H, W] as they are."""
    subjects = TransformedImages(space, images)
    points = space.default.to(images.device).repeat(len(images), 1)
    pictures, tangents = subjects.tangents(points, torch.arange(len(images), device=images.device))
    return direction_influence(model.module, pictures, tangents, classes, rank_rule)


def layers_of(model: LoadedModel) -> dict[str, tuple[str, ...]]:
    """Names of the trainable parameters by layer, in the network's order."""
    layers = layer_parameters(model.module, model.trainable)
    return {shown_name(model, layer) or "(network)": names for layer, names in layers.items()}


def examined(spec: InfluenceSpec, model: LoadedModel, images: torch.Tensor) -> Examined:
    """Check the targets and the scales on the first images; says which parameters take the generic path.

    Raises:
        UsageError: a target does not exist, a scale exceeds the image, or the model cannot be differentiated by parameters.
    """
    targets = targets_of(spec, model)
    side = max(images.shape[2:])
    for scale in spec.scales if "pixels" in spec.target else ():
        if scale > 2 * side - 1:
            raise UsageError(f"scales: {scale} is larger than any square in images of {side} pixels; leave it out")
    space = semantic_space(spec)
    if space is not None and spec.method != "bound":
        image_influence(model, space, images[:1], None, spec.rank_rule)
    facts = {"layers": list(layers_of(model))}
    if spec.method == "bound" or all(not target.parameters for target in targets):
        return Examined(facts)
    perturbed = Perturbed(model.module, targets)
    try:
        try_passes(perturbed, images, GRADIENT_BYTES)
    except Exception as error:  # a model may raise anything
        raise UsageError(
            f"model {spec.model!r} gives no gradients with respect to its parameters ({first_line(error)}); scan a model "
            "that is differentiable throughout, without checkpointing, or use --target input"
        ) from error
    return Examined(facts, tuple(_notes(model, perturbed)))


def _notes(model: LoadedModel, perturbed: Perturbed) -> list[str]:
    capture = perturbed.capture
    if capture is None:
        return []
    if capture.generic:
        names = [shown_name(model, name) for name in capture.parameters if name in capture.generic]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return [
            f"parameters {', '.join(names[:5])}{more} enter operators without a formula of their own: their gradients are "
            "as exact, but samples go one by one, which is slower"
        ]
    if not capture.batchable:
        return ["the samples of a batch cannot be told apart inside the model: they go one by one, which is slower"]
    return []


def _trainable(spec: InfluenceSpec, model: LoadedModel) -> tuple[str, ...]:
    if not model.trainable:
        raise UsageError(f"model {spec.model!r} has no trainable parameters; use --target input")
    return model.trainable


def _named(model: LoadedModel, text: str, names: tuple[str, ...], patterns: tuple[str, ...]) -> list[str]:
    if not patterns:
        return list(names)
    shown = {shown_name(model, name): name for name in names}
    try:
        return [shown[name] for name in matching(list(shown), patterns)]
    except ValueError as error:
        raise UsageError(f"target {text!r}: {error}") from error
