"""What a sensor costs others: a load that is measured with and without it, in turns, many times.

`experiment` runs it on a flow (`flow`) or on system calls (`calls`), `result` judges it, `words` and `picture` show it.
"""

from mapek.simulations.profile.experiment import run
from mapek.simulations.profile.result import Result
from mapek.simulations.profile.subjects import Subject, subject

__all__ = ["Result", "Subject", "run", "subject"]
