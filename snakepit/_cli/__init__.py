"""The commands behind ``snakepit``."""
