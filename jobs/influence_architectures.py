r"""How sensitive are networks and their layers to their weights? (Shu & Zhu 2019, Figure 4)

    python -m jobs.influence_architectures --out runs/architectures
    ray job submit --working-dir . -- python -m jobs.influence_architectures --out s3://bucket/architectures \
        --model torchvision:resnet50 --model torchvision:densenet121 --data folder:/data/imagenet/val --method certified
"""

from __future__ import annotations

from raysense.studies.architectures import ArchitectureOptions, run_architectures
from raysense.studies.command import study_command

main = study_command(run_architectures, ArchitectureOptions)

if __name__ == "__main__":
    main()
