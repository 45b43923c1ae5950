"""Debian's kernels in QEMU, on this machine's own root file system.

`python -m tools.vm test` runs the tests marked `kernel` on each of them, `python -m tools.vm run KERNEL COMMAND`
any command. The root is this machine's, read only, below a copy-on-write layer in memory: there is no image to
build and nothing to install twice, at the price of a guest that runs what is installed here.
"""
