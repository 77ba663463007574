# Sources become verified stores of images; those of local photos have a folder that DVC does not track.


rule data:
    input:
        manifests("data"),


rule data_artifact:
    output:
        "artifacts/{folder}/{id}/artifact.json",
    log:
        "logs/{folder}/{id}.log",
    wildcard_constraints:
        folder="data|photos",
    threads: EXECUTION.threads
    resources:
        attempt=attempt,
    params:
        name=name_of,
    message:
        "{params.name}"
    shell:
        stage_command("data")
