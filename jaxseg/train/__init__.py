"""Training: state, step, loop, optimiser, checkpoints; `objectives` says what is optimised."""
