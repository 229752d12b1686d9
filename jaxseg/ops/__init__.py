"""Pure array functions without parameters, channels last: `[*b, h, w, c]`."""
