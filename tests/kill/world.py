"""A small base model that writes in the right form: python -m tests.kill.world DIRECTORY

The toy world, pretrained for seconds only: its answers are poor, but there are some of every
kind, so that every stage has work and every filter a choice.
"""

from __future__ import annotations

import sys
from pathlib import Path

from examples.toy_world.build import build
from examples.toy_world.pretrain import PretrainConfig

CONFIG = PretrainConfig(num_steps=90, docs_per_step=32)

if __name__ == "__main__":
    build(Path(sys.argv[1]), CONFIG)
