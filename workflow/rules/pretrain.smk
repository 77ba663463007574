# A backbone for every run and seed. Resumable state is in work/<id>/ and is not a declared output, because Snakemake
# deletes outputs before a job and after its failure.


# On several nodes the stage calls srun itself: `mpi` keeps the executor plugin from doing so. `gres` is GPUs per node.
NODES = {"nodes": EXECUTION.nodes, "tasks": EXECUTION.nodes, "mpi": "srun"}
if EXECUTION.device == "cuda" or (EXECUTION.device == "auto" and devices()):
    NODES |= {"gres": f"gpu:{EXECUTION.gpus}", "tasks_per_gpu": 0}


def ranks(wildcards):
    """Number of processes on each node."""
    return gpu(wildcards) if trains_together(PLAN.jobs[wildcards.id]) else 1


rule pretrain:
    input:
        manifests("pretrain"),


rule pretrain_artifact:
    input:
        inputs_of("pretrain"),
    output:
        "artifacts/pretrain/{id}/artifact.json",
    log:
        "logs/pretrain/{id}.log",
    priority: 1  # the longest jobs first
    threads: lambda wildcards: EXECUTION.threads * max(1, ranks(wildcards))
    resources:
        **(NODES if EXECUTION.nodes > 1 else {}),
        gpu=gpu if EXECUTION.nodes == 1 else 0,
        attempt=attempt,
    params:
        name=name_of,
    message:
        "{params.name}"
    shell:
        stage_command("pretrain")
