"""Tests of images in files and directories."""
