"""Loads other people's checkpoints through name tables and array hooks, and checks parity with stored logits."""
