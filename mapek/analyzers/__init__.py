"""Anomaly models: numpy to score, nothing heavier; one model a file."""
