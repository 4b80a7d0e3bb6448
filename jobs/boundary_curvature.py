r"""How curved are decision boundaries near images, and in directions that images share? (Fawzi et al. 2018)

    python -m jobs.boundary_curvature --out runs/curvature
    ray job submit --working-dir . -- python -m jobs.boundary_curvature --out s3://bucket/curvature \
        --model 'torchvision:resnet50?weights=DEFAULT' --data folder:/data/imagenet/val \
        --directions-data folder:/data/imagenet/train --directions-split '' --limit 1000
"""

from __future__ import annotations

from raysense.studies.boundary_curvature import CurvatureOptions, run_curvature
from raysense.studies.command import study_command

main = study_command(run_curvature, CurvatureOptions)

if __name__ == "__main__":
    main()
