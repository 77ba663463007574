# Frozen features of a backbone, extracted once for every probe of them.


rule features:
    input:
        manifests("features"),


rule features_artifact:
    input:
        inputs_of("features"),
    output:
        "artifacts/features/{id}/artifact.json",
    log:
        "logs/features/{id}.log",
    threads: EXECUTION.threads
    resources:
        gpu=gpu,
        attempt=attempt,
    params:
        name=name_of,
    message:
        "{params.name}"
    shell:
        stage_command("features")
