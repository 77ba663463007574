# Backbones evaluated by fine-tuning on detection and segmentation.


rule transfer:
    input:
        manifests("transfer"),


rule transfer_artifact:
    input:
        inputs_of("transfer"),
    output:
        "artifacts/transfer/{id}/artifact.json",
    log:
        "logs/transfer/{id}.log",
    threads: EXECUTION.threads
    resources:
        gpu=gpu,
        attempt=attempt,
    params:
        name=name_of,
    message:
        "{params.name}"
    shell:
        stage_command("transfer")
