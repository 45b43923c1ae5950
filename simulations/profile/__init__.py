"""What a sensor costs others: a load that is measured with and without it, in turns, many times.

`experiment` runs it on one of the `loads`, `result` judges it, `words` and `picture` show it.
"""
