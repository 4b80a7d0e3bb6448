"""Constrained boxes on all recorded maps against exhaustive search, by network, and the published boxes judged alike."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from constrained_study import AREA, Figures, Study, study
from harness import Verdict, print_verdict
from region_oracle import AUTHORS_GRID, box_moments
from semantic_maps import SPACE, STARTS, recording

from raysense.measures.boxes import Evaluator, clipped
from raysense.measures.constrained_growth import ConstrainedSettings
from raysense.measures.region_evidence import contains, evidence

COLUMNS = ("boxes", "possible", "found", "feasible", "covered", "sums", "mean", "points", "most")
WIDTHS = (6, 9, 6, 9, 8, 7, 7, 7, 5)


def main(arguments: Sequence[str] = ()) -> list[Verdict]:
    """Print the tables; returns the figures against their targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--evaluations", type=int, default=400)
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _verdicts(options.seeds, options.evaluations)
    except pytest.skip.Exception as absent:
        print(f"\nno comparison: {absent}")
        return []
    finally:
        torch.set_num_threads(threads)


def _verdicts(seeds: int, evaluations: int) -> list[Verdict]:
    maps = range(len(recording().maps))
    verdicts = []
    for nearest in (False, True):
        kind = "constant on cells" if nearest else "bilinear"
        for seed in range(seeds):
            found = study(maps, ConstrainedSettings(evaluations=evaluations, seed=seed), nearest)
            figures = _print(found, kind, seed)
            what = f"maps {kind}, seed {seed}:"
            verdicts += [
                print_verdict(f"{what} feasible", f"{figures.feasible:.1%}", "at least 98%", figures.feasible >= 0.98),
                print_verdict(f"{what} means covered", f"{figures.covered:.1%}", "at least 95%", figures.covered >= 0.95),
                print_verdict(
                    f"{what} volume", f"{figures.ratio_of_sums:.1%}", "at least 85% of the largest",
                    figures.ratio_of_sums >= 0.85,
                ),
                print_verdict(
                    f"{what} evaluations", str(figures.most_evaluations), "at most 408", figures.most_evaluations <= 408
                ),
            ]  # fmt: skip
    _published()
    return verdicts


def _print(found: Study, kind: str, seed: int) -> Figures:
    print(f"\nmaps {kind}, seed {seed}: {found.seconds:.1f} s of processor time, the function's included")
    print(" " * 14 + "".join(f"{name:>{width}}" for name, width in zip(COLUMNS, WIDTHS, strict=True)))
    for network in [*sorted(set(found.networks)), "all"]:
        rows = torch.tensor([network in ("all", name) for name in found.networks])
        figures = found.only(rows)
        _row(network, figures)
    return figures


def _row(name: str, figures: Figures) -> None:
    print(
        f"{name:14}{figures.boxes:6}{figures.possible:9}{figures.found:6}{figures.feasible:9.3f}{figures.covered:8.3f}"
        f"{figures.ratio_of_sums:7.3f}{figures.mean_ratio:7.3f}{figures.evaluations:7.0f}{figures.most_evaluations:5}"
    )


def _published() -> None:
    """Recorded boxes, cut to the space as the evidence does: exact feasibility, and whether the evidence agrees."""
    data = recording()
    start = STARTS[data.init]
    low, high = clipped(SPACE, data.lower, data.upper)
    sound = (high >= low).all(1) & low.isfinite().all(1) & high.isfinite().all(1)
    volume = torch.where(sound, (high - low).clamp(min=0).prod(1) / AREA, 0.0)
    inside = contains(SPACE, data.lower, data.upper, start)
    truth = torch.full((len(start), 2), torch.nan, dtype=torch.float64)
    for row in sound.nonzero()[:, 0].tolist():
        truth[row] = torch.tensor(
            box_moments(AUTHORS_GRID, data.maps.values, int(data.subject[row]), low[row], high[row])
        )
    feasible = sound & inside & (truth[:, 0] >= 0.5) & (truth[:, 1] <= 0.05)
    robust = torch.zeros(len(start), dtype=torch.bool)
    shown = evidence(Evaluator(data.maps), SPACE, data.lower, data.upper, start, data.subject, robust)
    covered = (shown.mean_lower - 1e-12 <= truth[:, 0]) & (truth[:, 0] <= shown.mean_upper + 1e-12)
    print("\nrecorded published boxes, cut to the space; boxes above 1 square degree in brackets")
    print(
        f"{'':8}{'boxes':>12}{'feasible':>16}{'share of space where feasible':>31}{'covered by 64 points':>22}{'agree':>7}"
    )
    for method in sorted(set(data.method)):
        rows = sound & torch.tensor([name == method for name in data.method])
        large = rows & (volume * AREA > 1)
        print(
            f"{method:8}{int(rows.sum()):6} [{int(large.sum()):3}]"
            f"{float(feasible[rows].double().mean()):8.3f} [{float(feasible[large].double().mean()):.3f}]"
            f"{float((volume * feasible)[rows].mean()):31.4f}{float(covered[large].double().mean()):22.3f}"
            f"{float((shown.holds == feasible)[rows].double().mean()):7.3f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
