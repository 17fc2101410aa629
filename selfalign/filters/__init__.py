"""Text filters: pure, deterministic, no I/O. Each names why it drops what it drops.

Candidates and topics (stage 1), novelty, near duplicates and contamination (its end), thoughts
and answers (stages 2 and 4). Indexes keep state in memory and nowhere else.
"""
