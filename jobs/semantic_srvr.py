r"""In how much of a semantic space do networks keep seeing a class? (Hamdi & Ghanem 2020, Table 2)

    python -m jobs.semantic_srvr --out runs/srvr
    ray job submit --working-dir . -- python -m jobs.semantic_srvr --out s3://bucket/srvr --shapes folder:/data/shapenet \
        --model torchvision:resnet50 --model torchvision:vgg11_bn --maps azimuth:3,elevation:3 \
        --iterations 800 --half-width 1e-5
"""

from __future__ import annotations

from raysense.studies.command import study_command
from raysense.studies.semantic import SemanticStudyOptions, run_semantic

main = study_command(run_semantic, SemanticStudyOptions)

if __name__ == "__main__":
    main()
