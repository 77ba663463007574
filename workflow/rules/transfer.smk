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
        stage_command("transfer")
