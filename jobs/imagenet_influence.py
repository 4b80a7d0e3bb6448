r"""How sensitive are networks on ImageNet, image by image, and where? (Shu & Zhu 2019)

    python -m jobs.imagenet_influence --out runs/influence --model digits --data digits
    ray job submit --working-dir . -- python -m jobs.imagenet_influence --out s3://bucket/influence \
        --model 'torchvision:resnet50?weights=DEFAULT' --model timm:vit_base_patch16_224 \
        --data parquet:s3://bucket/imagenet/val --workers max --device cuda --worker-cpus 8
"""

from __future__ import annotations

from raysense.studies.command import study_command
from raysense.studies.imagenet_influence import ImagenetInfluenceOptions, run_imagenet_influence

main = study_command(run_imagenet_influence, ImagenetInfluenceOptions)

if __name__ == "__main__":
    main()
