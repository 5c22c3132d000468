"""What is trained on: documents as tokens, and which tokens a sample id means. Nothing is kept between two samples.

Start at `windows.py` for what a step reads, at `tokenfile.py` for what `understudy data prepare` writes. No torch
outside `windows.py`: preparing data starts many processes.
"""
