r"""Does curvature tell perturbed images, and the labels that they had? (Fawzi et al. 2018)

    python -m jobs.boundary_detection --out runs/detection
    ray job submit --working-dir . -- python -m jobs.boundary_detection --out s3://bucket/detection \
        --model 'torchvision:resnet50?weights=DEFAULT' --data folder:/data/imagenet/val --limit 10000
"""

from __future__ import annotations

from raysense.studies.boundary_detection import DetectionOptions, run_detection
from raysense.studies.command import study_command

main = study_command(run_detection, DetectionOptions)

if __name__ == "__main__":
    main()
