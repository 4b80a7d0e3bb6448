r"""Which pixels are vulnerable, and what does changing one do? (Shu & Zhu 2019, Figures 6 and 7)

    python -m jobs.influence_pixels --out runs/pixels
    ray job submit --working-dir . -- python -m jobs.influence_pixels --out s3://bucket/pixels \
        --model torchvision:resnet50 --data folder:/data/imagenet/val --method certified --top 10
"""

from __future__ import annotations

from raysense.studies.command import study_command
from raysense.studies.pixels import PixelOptions, run_pixels

main = study_command(run_pixels, PixelOptions)

if __name__ == "__main__":
    main()
