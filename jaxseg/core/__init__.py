"""What every package shares: types, errors, names, whole files, valid-pixel mask, normalisation, randomness, mesh."""
