"""Data sets: facts (catalog), preparation (builders), reading (dataset), transforms and the input pipeline."""
