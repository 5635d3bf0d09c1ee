"""How a run was started: its command as it may be published, and a launcher that started too few processes."""

from collections.abc import Mapping, Sequence

# Set by torchrun and by the MPI launchers that accelerate reads, for every process of several.
_WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def launcher(environment: Mapping[str, str]) -> list[str]:
    """Returns the words that stand before the script on the command line by which a process was started.

    Args:
        environment: The environment variables.
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        return ["python"]
    # Of those that torch's launcher is part of, accelerate's alone sets this one (`prepare_multi_gpu_env`, 1.15).
    if "ACCELERATE_DYNAMO_USE_FULLGRAPH" in environment:
        kind = "--use_fsdp" if environment.get("ACCELERATE_USE_FSDP") == "true" else "--multi_gpu"
        return ["accelerate", "launch", kind, f"--num_processes={environment['WORLD_SIZE']}"]
    machines = environment.get("GROUP_WORLD_SIZE", "1")
    nodes = [] if machines == "1" else [f"--nnodes={machines}"]
    return ["torchrun", *nodes, f"--nproc_per_node={environment['LOCAL_WORLD_SIZE']}"]


def without_tokens(argv: Sequence[str]) -> list[str]:
    """Returns a command line as it may be published: the values of options such as `--hub_token` are masked."""
    shown: list[str] = []
    for word in argv:
        name, equals, _ = word.partition("=")
        if shown and _is_token(shown[-1]):
            shown.append("<token>")
        else:
            shown.append(f"{name}=<token>" if equals and _is_token(name) else word)
    return shown


def refuse_lone_process(environment: Mapping[str, str]) -> None:
    """Refuses the environment that `accelerate launch --cpu --num_processes 2` gives the one process it starts.

    Its launcher for a CPU (`prepare_simple_launcher_cmd_env`, accelerate 1.15) exports the address of a main process,
    which it does only for several processes, but neither rank nor world size, and starts the script once.

    Args:
        environment: The environment variables.

    Raises:
        ValueError: If this is that process.
    """
    # Of all launchers this one alone sets ACCELERATE_USE_CPU, whether it is true or not.
    is_accelerate = "ACCELERATE_USE_CPU" in environment and "MASTER_ADDR" in environment
    if is_accelerate and not any(name in environment for name in _WORLD_SIZES):
        raise ValueError(
            "`accelerate launch` was asked for several processes, but without GPUs it starts only this one, which "
            "would train alone. Use `torchrun --nproc_per_node=<N> <script> ...` (with `--use_cpu true` for "
            "train_trainer.py on a CPU), `accelerate launch --multi_gpu --num_processes <N> ...`, or "
            "`--num_processes 1`; if MASTER_ADDR is your own, unset it."
        )


def _is_token(option: str) -> bool:
    return option.startswith("--") and option.endswith("token")
