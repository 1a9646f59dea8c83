"""What a run will need, by arithmetic: memory, communication, time.  Nothing is allocated."""
