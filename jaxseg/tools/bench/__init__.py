"""`--mode=bench`: what a run's own train step and inference cost here, and beside the same network in PyTorch."""
