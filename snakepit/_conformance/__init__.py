"""Tests of any bridge: a peer that speaks raw frames with it, transcripts, cases, and their report."""
