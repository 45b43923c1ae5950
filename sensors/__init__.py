"""Touchpoints: a BPF program and its decoder, or a kernel interface; one a file."""
