"""Frozen values of images, requests and work: digests, references, sessions, records, progress.

Input is parsed into these values once, where it enters the program.
"""
