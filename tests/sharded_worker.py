"""Runs the program with FSDP on a CPU, for which accelerate has to take its processes for those of GPUs."""

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

import train_trainer


def main() -> None:
    """Runs `train_trainer.py` with the arguments of the command line."""
    argv = sys.argv[1:]
    settings, args = train_trainer.parse_settings(argv)
    # The state that the settings have made says MULTI_CPU, with which accelerate leaves FSDP out; torch needs no GPU.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    train_trainer.set_seed(args.seed)
    run = train_trainer.prepare(settings, args)
    assert run.trainer.is_fsdp_enabled
    train_trainer.finish(run, argv)
    run.trainer.end()


if __name__ == "__main__":
    main()
