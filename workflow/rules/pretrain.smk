# A backbone for every run and seed. Resumable state is in work/<id>/ and is not a declared output, because Snakemake
# deletes outputs before a job and after its failure.


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
    threads: training_threads
    resources:
        **NODES,
        gpu=gpu if EXECUTION.nodes == 1 else 0,
        attempt=attempt,
    params:
        name=name_of,
    message:
        "{params.name}"
    shell:
        stage_command("pretrain")
