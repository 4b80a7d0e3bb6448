r"""Are networks more sensitive on test than on training images? (Shu & Zhu 2019, Table 2)

    python -m jobs.influence_train_test --out runs/train_test
    ray job submit --working-dir . -- python -m jobs.influence_train_test --out s3://bucket/train_test \
        --model torchvision:resnet50 --model torchvision:densenet121 --data 'folder:/data/imagenet/{split}' \
        --split train,val --method certified
"""

from __future__ import annotations

from raysense.studies.command import study_command
from raysense.studies.train_test import TrainTestOptions, run_train_test

main = study_command(run_train_test, TrainTestOptions)

if __name__ == "__main__":
    main()
