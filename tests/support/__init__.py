"""What the suites share and no user needs."""
