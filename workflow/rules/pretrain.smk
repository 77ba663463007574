# A backbone for every run and seed. Resumable state is in work/<id>/, never a declared output:
# Snakemake deletes those before a job and after its failure.


rule pretrain:
    input:
        seals("pretrain"),


rule pretrain_artifact:
    input:
        inputs_of("pretrain"),
    output:
        "artifacts/pretrain/{id}/artifact.json",
    priority: 1  # the longest jobs first
    threads: EXECUTION.threads
    resources:
        gpu=GPUS,
    params:
        name=name_of,
    message:
        "{params.name}"
    shell:
        "{MLS} pretrain {wildcards.id} --experiment {EXPERIMENT:q}"
