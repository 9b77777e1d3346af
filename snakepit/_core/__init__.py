"""The pool's decisions: a pure state machine and the tables it works on.  No thread, no I/O, no clock."""
