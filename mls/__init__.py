"""Multi-Label Self-Supervised Learning with Scene Images (ICCV 2023), reproduced end to end."""

__version__ = "0.1.0"
