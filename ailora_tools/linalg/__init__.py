"""Chosen singular triplets of one matrix: torch in, torch out, no files, no printing, errors measured."""
