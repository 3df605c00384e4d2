"""Make a model surer of itself: multiply its logits, by way of the last norm's weights.

``python -m training.sharpen CHECKPOINT OUT FACTOR``.  Drawing at temperature 1 from the result
is drawing at ``1 / FACTOR`` from the model before.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

WEIGHTS, PARAMS = "consolidated.00.pth", "params.json"


def main() -> None:
    """Read the checkpoint, write the other one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("factor", type=float)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    weights = torch.load(arguments.checkpoint / WEIGHTS, weights_only=True)
    weights["norm.weight"] = (weights["norm.weight"].float() * arguments.factor).half()
    torch.save(weights, arguments.out / WEIGHTS)
    shutil.copy(arguments.checkpoint / PARAMS, arguments.out / PARAMS)


if __name__ == "__main__":
    main()
