"""Rows of the influence scan's tables, collected batch by batch on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raysense.measures.influence import TargetInfluence
from raysense.measures.pixel_attack import OnePixelAttack
from raysense.measures.pixel_maps import PixelMaps
from raysense.measures.targets import Target
from raysense.scans._influence_tables import INFLUENCE, INFLUENCE_MAPS, PIXEL_ATTACKS
from raysense.scans._sampled import class_scores
from raysense.scans.base import Prepared
from raysense.scans.influence import InfluenceSpec


class Cook(NamedTuple):
    """Cook's local influence [N, T] and its error [N, T]."""

    value: Tensor
    error: Tensor


class InfluenceRows:
    """Rows of table ``influence``, a row for every target of a sample; logits are dropped batch by batch.

    Attributes:
        scores: Predicted class, p of the label and p of the predicted class, by row of the listing.
        errors: Messages of the samples that failed, by row of the listing.
    """

    def __init__(self, spec: InfluenceSpec, targets: Sequence[Target], prepared: Prepared) -> None:
        self._spec = spec
        self._targets = targets
        self._prepared = prepared
        self._rows: list[int] = []
        self._columns: dict[str, list[np.ndarray]] = {}
        self.scores: dict[int, tuple[int, float, float]] = {}
        self.errors: dict[int, str] = {}

    def add(
        self,
        rows: Sequence[int],
        labels: Tensor,
        part: TargetInfluence,
        cook: Cook | None = None,
        finite: Tensor | None = None,
    ) -> None:
        """Add a batch; samples without finite logits or gradients go to the errors.

        Args:
            rows: Rows of the listing, N of them.
            labels: True classes [N], on the host.
            part: Their influence.
            cook: Cook's local influence, where it was asked for.
            finite: Whether what else was measured of a sample is finite, [N].
        """
        logits = part.logits.cpu()
        scores = class_scores(logits, labels)
        finite_logits = torch.isfinite(logits).all(1)
        good = finite_logits & ~part.upper.isnan().any(1).cpu()
        if finite is not None:
            good &= finite.cpu()
        for position, row in enumerate(rows):
            if good[position]:
                self.scores[row] = scores[position]
                self._rows.append(row)
            else:
                kind = "gradients of the logits" if finite_logits[position] else "logits"
                self.errors[row] = f"{kind} are not finite"
        count = len(self._targets)
        known = {name: getattr(part, name) for name in ("fi", "lower", "upper", "rank", "jacobian_norm")}
        known |= {name: getattr(part, name)[:, None].expand(-1, count) for name in ("bound", "n_backward")}
        known["cook"] = torch.full_like(part.upper, torch.nan) if cook is None else cook.value
        known["cook_error"] = known["cook"] if cook is None else cook.error
        for name, values in known.items():
            self._columns.setdefault(name, []).append(values.cpu()[good].numpy())

    def table(self) -> pa.Table:
        """The rows."""
        samples, count = len(self._rows), len(self._targets)
        if not samples or not count:
            return INFLUENCE.empty_table()
        column = {name: np.concatenate(parts).reshape(-1) for name, parts in self._columns.items()}
        total = samples * count
        arrays = {
            "sample_id": self._prepared.listing["sample_id"].take(pa.array(np.repeat(self._rows, count))),
            "target": pa.array([target.name for target in self._targets] * samples, pa.string()),
            "layer": pa.array([target.layer for target in self._targets] * samples, pa.string()),
            "objective": pa.array([self._spec.objective] * total, pa.string()),
            "method": pa.array([self._spec.method] * total, pa.string()),
            "fi": _known(column["fi"]),
            "fi_lower": pa.array(column["lower"], pa.float64()),
            "fi_upper": pa.array(column["upper"], pa.float64()),
            "fi_bound": pa.array(column["bound"], pa.float64()),
            "rank": pa.array(column["rank"], mask=column["rank"] < 0).cast(pa.int32()),
            "n_backward": pa.array(column["n_backward"].astype(np.int32), pa.int32()),
            "jacobian_norm": _known(column["jacobian_norm"]),
            "cook": _known(column["cook"]),
            "cook_error": _known(column["cook_error"]),
        }
        return pa.table([arrays[field.name] for field in INFLUENCE], schema=INFLUENCE)


class MapRows:
    """Rows of the tables ``influence_maps`` and ``pixel_attacks``, where the spec asks for them."""

    def __init__(self, spec: InfluenceSpec, prepared: Prepared) -> None:
        self._spec = spec
        self._prepared = prepared
        self._maps: list[dict[str, object]] = []
        self._attacks: list[dict[str, object]] = []

    def add(self, rows: Sequence[int], maps: PixelMaps, attack: tuple[Tensor, OnePixelAttack] | None) -> None:
        """Add a batch.

        Args:
            rows: Rows of the listing, n of them.
            maps: Their maps.
            attack: The attacked pixels [n, 2], row and column, and what came of it.
        """
        values = {key: found.cpu().numpy() for key, found in maps.maps.items()}
        bounds = maps.bound.tolist()
        for position, row in enumerate(rows):
            common = {"row_of_listing": row, "objective": self._spec.objective}
            for (scale, channel), found in values.items():
                self._maps.append(
                    {
                        **common,
                        "scale": scale,
                        "channel": channel,
                        "height": found.shape[1],
                        "width": found.shape[2],
                        "fi": found[position].reshape(-1),
                        "fi_bound": bounds[position],
                    }
                )
            if attack is not None:
                (at_row, at_column), result = attack[0][position].tolist(), attack[1]
                self._attacks.append(
                    {
                        **common,
                        "row": at_row,
                        "column": at_column,
                        "fi": float(values[1, None][position, at_row, at_column]),
                        "before": result.before[position].double().tolist(),
                        "after": result.after[position].double().tolist(),
                        "class_before": int(result.class_before[position]),
                        "p_before": float(result.p_before[position]),
                        "class_after": int(result.class_after[position]),
                        "p_before_after": float(result.p_before_after[position]),
                        "p_after": float(result.p_after[position]),
                    }
                )

    def tables(self, errors: dict[int, str]) -> dict[str, pa.Table]:
        """The tables that the spec asks for, without the samples that failed."""
        found = {}
        if "pixels" in self._spec.target:
            found["influence_maps"] = self._table(self._maps, INFLUENCE_MAPS, errors)
        if self._spec.attack:
            found["pixel_attacks"] = self._table(self._attacks, PIXEL_ATTACKS, errors)
        return found

    def _table(self, rows: list[dict[str, object]], schema: pa.Schema, errors: dict[int, str]) -> pa.Table:
        good = [row for row in rows if row["row_of_listing"] not in errors]
        ids = self._prepared.listing["sample_id"].take(pa.array([row["row_of_listing"] for row in good], pa.int64()))
        columns = [ids, *(pa.array([row[field.name] for row in good], field.type) for field in list(schema)[1:])]
        return pa.table(columns, schema=schema)


def _known(values: np.ndarray) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))
