"""The runtimes that ``quantkit bench`` knows, a file each; the file's name is the runner's."""
