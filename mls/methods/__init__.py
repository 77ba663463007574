"""Pretraining methods: MoCo-v2 and MLS; the mathematics as pure functions."""
