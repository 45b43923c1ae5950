"""Recordings, replay, fault scenarios and the network-namespace lab; every submodule is imported on use."""
