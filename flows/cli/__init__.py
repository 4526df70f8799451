"""The commands of `dpr`, a group a file with its view beside it. Each imports what it needs only when it runs."""
