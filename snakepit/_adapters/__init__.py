"""The kinds of workers, a module each; ``snakepit.adapters`` exports them."""
