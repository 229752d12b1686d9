"""What is optimised: each module's `build` returns a function of (params, model_state, batch, keys)."""
