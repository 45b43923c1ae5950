"""Small programs that the lab starts as processes: namespace holders, senders, receivers, meters.

They import the standard library and `mapek.simulations.libc` only, so that each costs a bare interpreter.
"""
