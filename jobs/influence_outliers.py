r"""Which measure finds simulated outliers? (Shu & Zhu 2019, Figure 3)

    python -m jobs.influence_outliers --out runs/outliers
    ray job submit --working-dir . -- python -m jobs.influence_outliers --out s3://bucket/outliers \
        --model 'torchvision:resnet50?weights=DEFAULT' --data folder:/data/imagenet/train --method certified --epochs 2
"""

from __future__ import annotations

from raysense.studies.command import study_command
from raysense.studies.outliers import OutlierOptions, run_outliers

main = study_command(run_outliers, OutlierOptions)

if __name__ == "__main__":
    main()
