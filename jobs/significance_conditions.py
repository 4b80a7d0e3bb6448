r"""Do class paths tell a trained network from a memorising one? (Khaitan & Banerjee 2026, Tables 1, 2, 5-7)

    python -m jobs.significance_conditions --out runs/conditions
    python -m jobs.significance_conditions --out runs/cifar10 --data 'npz:/data/cifar10/{split}.npz?x=x&y=y' \
        --train-split train --validation test --split test \
        --ood 'cifar10.1=npz:/data/cifar10.1.npz?x=x&y=y' \
        --ood 'svhn=torchvision:SVHN?root=/data/svhn&split=test' \
        --ood 'tiny_imagenet=folder:/data/tiny-imagenet/val?resize=32&class_map=tiny_imagenet_to_cifar10' \
        --ood 'noise=raysense.studies.shifts:Shifted?data=npz:/data/cifar10/test.npz%3Fx=x%26y=y&noise=0.1'
    ray job submit --working-dir . -- python -m jobs.significance_conditions --out s3://bucket/cifar10 --device cuda \
        --data 'npz:s3://bucket/cifar10/{split}.npz?x=x&y=y' --validation test --split test

Epochs are as long as the training set: the paper's decay of 0.95 after 50,000 images is 0.995 after 5,000 (--decay).
"""

from __future__ import annotations

from raysense.studies.command import study_command
from raysense.studies.significance import ConditionOptions, run_conditions

main = study_command(run_conditions, ConditionOptions)

if __name__ == "__main__":
    main()
