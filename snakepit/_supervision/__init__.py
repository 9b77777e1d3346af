"""Processes from spawn to reaping: the watchdog's thread, the guardian, signals, stderr, memory."""
