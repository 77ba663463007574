# Backbones fine-tuned on detection and segmentation.


rule transfer:
    input:
        seals("transfer"),


rule transfer_artifact:
    input:
        inputs_of("transfer"),
    output:
        "artifacts/transfer/{id}/artifact.json",
    threads: EXECUTION.threads
    resources:
        gpu=gpu,
        attempt=attempt,
    params:
        name=name_of,
    message:
        "{params.name}"
    shell:
        "{MLS} transfer {wildcards.id} --experiment {EXPERIMENT:q} --attempt {resources.attempt}"
