"""Tests of what packagers build: source distribution, wheel, and packages of distributions."""

from pathlib import Path

CHECKOUT = Path(__file__).parent.parent.parent
