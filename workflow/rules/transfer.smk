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
    params:
        name=name_of,
    resources:
        gpu=GPUS,
    message:
        "{params.name}"
    shell:
        "{MLS} transfer {wildcards.id} --experiment {EXPERIMENT:q}"
