"""The drill: kills, a full disk and damage that experiments/micro.yaml must survive. Exits with 1 if anything was lost.

    make drill                                     # 20 kills, a full disk, damage; a new seed each time
    python -m tests.drill --seed 7                 # the same moments again, as far as the machine's speed allows
    python -m tests.drill --seed 1 2 3 --kills 5   # several drills against one undisturbed run

1. The experiment runs undisturbed in a clone of this repository. Everything below must end with the same bytes
   (except `artifact.json` and `timing.csv`, which hold times).
2. In another clone a stage, Snakemake, DVC, or all of them at once get kill -9 at a random moment, then the same
   command is started again. If the experiment finishes between kills, it starts over.
3. The disk fills up while a checkpoint is written: a small tmpfs or, where mount is not allowed, a limit on the size
   of files.
4. One artifact gets a flipped byte, another is cut short; `mls verify` must name both, and both are made again.
"""
