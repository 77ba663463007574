"""The parts of `benchmarks/gpu.py`: each module is a process of its own, ``python -m gpu_parts.<name>``.

A part prints what it finds as lines of JSON behind ``@`` as soon as it has it (see `gpu_parts.common`). So what was
measured before a failure, or before the time was up, is kept.
"""
