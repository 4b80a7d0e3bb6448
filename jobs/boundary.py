r"""How far are decision boundaries from images, and how curved? (Fawzi et al. 2018)

    python -m jobs.boundary --out runs/boundary --model digits --data digits --split test --with paths,convexity
    ray job submit --working-dir . -- python -m jobs.boundary --out s3://bucket/boundary --limit 5000 \
        --model 'torchvision:resnet50?weights=DEFAULT' --data parquet:s3://bucket/imagenet/val \
        --workers max --device cuda --worker-cpus 8
"""

from __future__ import annotations

from raysense.studies.boundary import BoundaryOptions, run_boundary
from raysense.studies.command import study_command

main = study_command(run_boundary, BoundaryOptions)

if __name__ == "__main__":
    main()
