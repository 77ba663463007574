# A verified image store for every dataset. Those of local photos are in artifacts/photos, which DVC does not track.


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
