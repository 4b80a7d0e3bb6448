r"""Are classification regions connected, and are they convex? (Fawzi et al. 2018)

    python -m jobs.boundary_topology --out runs/topology
    ray job submit --working-dir . -- python -m jobs.boundary_topology --out s3://bucket/topology \
        --model 'torchvision:resnet50?weights=DEFAULT' --data folder:/data/imagenet/val --pairs 1000
"""

from __future__ import annotations

from raysense.studies.boundary_topology import TopologyOptions, run_topology
from raysense.studies.command import study_command

main = study_command(run_topology, TopologyOptions)

if __name__ == "__main__":
    main()
