"""Fits a linear model in R once a session, and asks it many times."""

from pathlib import Path

from snakepit import CommandError, RAdapter, SnakepitExecutor

HANDLERS = Path(__file__).with_name("handlers.R")


def main() -> None:
    """Two users, two models of R's own data on cars; each session stays with the worker that holds its model."""
    with SnakepitExecutor(RAdapter(HANDLERS), max_workers=2, timeout=30) as pool:
        with pool.session("by-weight") as weight, pool.session("by-weight-and-power") as both:
            for session, formula in ((weight, "mpg ~ wt"), (both, "mpg ~ wt + hp")):
                fitted = session.execute("fit", {"formula": formula})
                terms = ", ".join(f"{name} {value:.3f}" for name, value in fitted["coefficients"].items())
                print(f"{formula}: {terms}; R squared {fitted['r_squared']:.3f}")
            cars = [{"wt": weight_t, "hp": 120} for weight_t in (2.0, 3.0, 4.0)]
            for car, guess in zip(cars, both.map("predict", cars), strict=True):
                print(f"{car}: {guess['fit']:.1f} miles a gallon, {guess['lwr']:.1f} to {guess['upr']:.1f}")
        try:
            pool.execute("predict", {"wt": 2.0})
        except CommandError as error:
            print(f"without a session: {error}")


if __name__ == "__main__":
    main()
