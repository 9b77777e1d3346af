"""One pool at work: admission, the manager's thread, the conversation with each worker, futures and maps."""
