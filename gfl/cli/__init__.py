"""The commands: each file is one, `main(argv)` gives its exit status."""
