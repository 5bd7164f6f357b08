"""Accuracy against vision tokens kept: the questions, two ways to ask them, statistics, report."""
