"""The drill: what experiments/micro.yaml survives. Exit code 1 if anything was lost.

    make drill                                     # 20 kills, a full disk, damage; a seed of its own each time
    python -m tests.drill --seed 7                 # the same moments again, as far as the machine's speed allows
    python -m tests.drill --seed 1 2 3 --kills 5   # several drills against one undisturbed run

1. The experiment runs undisturbed in a clone of this repository. Its artifacts' bytes (`artifact.json` and
   `timing.csv` aside, which tell of times) are what everything below must end with.
2. In another clone a stage, Snakemake, DVC, or all of them at once get kill -9 at a random moment, then the same
   command is started again. Where the experiment gets finished between kills, it is begun anew.
3. The disk is full while a checkpoint is written: a small tmpfs, or where mount is not allowed a limit on the size
   of files.
4. A byte is flipped in one artifact and another is cut short; `mls verify` must name both, and both are remade.
"""
