"""Pure losses: one value per pixel, unreduced; `reduction` sums, counts and composes them."""
