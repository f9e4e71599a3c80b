"""The base model that is shipped with the package, and the script that builds it."""
