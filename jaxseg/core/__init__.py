"""What every package shares: types, errors, names, valid-pixel mask, normalisation, randomness, mesh."""
