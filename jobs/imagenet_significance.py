r"""Which paths do the classes of ImageNet use, and which classes share theirs? (Khaitan & Banerjee 2026)

    python -m jobs.imagenet_significance --out runs/significance --model digits --data digits
    ray job submit --working-dir . -- python -m jobs.imagenet_significance --out s3://bucket/significance \
        --model 'torchvision:resnet50?weights=DEFAULT' --layers fc --data parquet:s3://bucket/imagenet/val \
        --ood v2=parquet:s3://bucket/imagenet-v2 --workers max --device cuda --worker-cpus 8
"""

from __future__ import annotations

from raysense.studies.command import study_command
from raysense.studies.imagenet_significance import ImagenetSignificanceOptions, run_imagenet_significance

main = study_command(run_imagenet_significance, ImagenetSignificanceOptions)

if __name__ == "__main__":
    main()
